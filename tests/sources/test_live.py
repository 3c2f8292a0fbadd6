from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.live import LiveSource


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, width)


def load(model, config=None, **options):
    return LiveSource("net", model, config).load(LoadOptions(**options))


def test_an_object_is_used_as_it_is():
    net = Net()
    loaded = load(net, {"width": 3})
    assert loaded.model is net
    assert (loaded.weights, loaded.origin) == ("as given", "net, object Net")
    assert loaded.config["width"] == 3
    assert loaded.location is not None
    assert loaded.location[0] == __file__


def test_source_has_spec_and_id():
    source = LiveSource("net", Net())
    assert (source.id, source.spec) == ("net", "net")


def test_a_class_is_built_from_the_config():
    loaded = load(Net, SimpleNamespace(width=5), seed=3)
    assert loaded.model.layer.in_features == 5
    assert loaded.weights == "random (seed 3)"


def test_a_factory_receives_the_config_as_it_was_given():
    given = {"width": 4}
    seen = []

    def make(config):
        seen.append(config)
        return Net(config["width"])

    loaded = load(make, given)
    assert seen == [given]
    assert seen[0] is given
    assert loaded.weights == "as built (seed 0)"
    assert load(lambda: Net(2)).model.layer.in_features == 2


def test_a_factory_for_a_class_of_torch_is_its_place():
    loaded = load(lambda: nn.Sequential(nn.Linear(2, 2)))
    assert loaded.location is not None
    assert loaded.location[0] == __file__


def test_weights_go_into_a_copy(tmp_path):
    net = Net()
    before = net.layer.weight.clone()
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    loaded = load(net, weights=tmp_path / "w.pt")
    assert loaded.model is not net
    assert torch.equal(net.layer.weight, before)
    assert loaded.weights == "w.pt"


def test_what_is_no_model():
    with pytest.raises(SourceError, match="an object of type int"):
        load(3)


def test_sources_of_objects_can_be_keys():
    assert len({LiveSource("net", Net(), {"width": 3}), LiveSource("net", Net())}) == 2


@pytest.mark.parametrize(
    "name", ["x" * 3000, "<script>", "a\x1b\x00\u202e", "hf_" + "Ab3" * 12, "é"]
)
def test_an_odd_name_becomes_a_plain_id(name):
    source = LiveSource(name, Net())
    assert source.short == name
    assert re.fullmatch(r"[A-Za-z0-9._:/@=-]{1,120}-[0-9a-f]{8}", source.id)
    assert "Ab3" not in source.id
    assert source.id != LiveSource(f"{name}'", Net()).id
    assert LiveSource("a/b.py::C@1=2-3", Net()).id == "a/b.py::C@1=2-3"
