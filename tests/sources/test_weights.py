from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.weights import load_weights


class Net(nn.Module):
    def __init__(self, tied=False, width=3):
        super().__init__()
        self.table = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5, bias=False)
        if tied:
            self.head.weight = self.table.weight


def same(one, two):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
def test_a_file_of_tensors(tmp_path, name):
    one, two = Net(), Net()
    path = tmp_path / name
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(one.state_dict(), path)
    assert not same(one, two)
    assert load_weights(two, path) == name
    assert same(one, two)
    assert two.head.weight.requires_grad


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_a_checkpoint_holds_the_tensors_under_a_key(tmp_path, key):
    one, two = Net(), Net()
    torch.save({key: one.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    load_weights(two, tmp_path / "w.pt")
    assert same(one, two)


def test_a_folder_holds_model_safetensors(tmp_path):
    one, two = Net(), Net()
    folder = tmp_path / "step-10"
    folder.mkdir()
    with pytest.raises(SourceError, match="no model.safetensors"):
        load_weights(two, folder)
    save_file(one.state_dict(), folder / "model.safetensors")
    assert load_weights(two, folder) == "step-10/model.safetensors"
    assert same(one, two)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    one, two = Net(), Net()
    save_file({prefix + k: v for k, v in one.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    assert same(one, two)


def test_a_prefix_that_the_model_has_stays(tmp_path):
    one, two = nn.ModuleDict({"module": Net()}), nn.ModuleDict({"module": Net()})
    save_file(one.state_dict(), tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    assert same(one, two)


def test_tied_weights_may_be_saved_once(tmp_path):
    one, two = Net(tied=True), Net(tied=True)
    save_model(one, str(tmp_path / "w.safetensors"))
    load_weights(two, tmp_path / "w.safetensors")
    assert same(one, two)
    assert two.head.weight is two.table.weight


def test_tied_weights_may_not_differ(tmp_path):
    two = Net(tied=True)
    save_file(Net().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match="one tensor in the model and differ"):
        load_weights(two, tmp_path / "w.safetensors")


def test_differences_are_counted_and_nothing_is_loaded(tmp_path):
    model = Net(width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = Net().state_dict()
    del state["head.weight"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(7)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SourceError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "1 missing in the file: head.weight" in text
    assert "7 unexpected in the file: extra.0, extra.1, extra.2, extra.3, extra.4 and 2" in text
    assert "5 of another shape: " in text
    assert "table.weight 5x3 for 5x4" in text
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("never",)


@pytest.mark.parametrize("value", [{"a": Malicious()}, Net()])
def test_a_pickle_runs_nothing(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="w.pt cannot be read as plain tensors") as caught:
        load_weights(Net(), tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)
    assert "GLOBAL" in str(caught.value)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"PK\x03\x04", b"\x08" + b"\0" * 7 + b"{}"]
)
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=name):
        load_weights(Net(), tmp_path / name)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_truncated_file_is_named(tmp_path, name):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(Net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=name):
        load_weights(Net(), path)


@pytest.mark.parametrize("value", [3, {}, {"a": 1}, [torch.zeros(1)], {"model": {"a": 1}}])
def test_something_else_in_the_file(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="no dict of tensors"):
        load_weights(Net(), tmp_path / "w.pt")


def test_other_paths(tmp_path):
    with pytest.raises(SourceError, match="no weights at"):
        load_weights(Net(), tmp_path / "gone.pt")
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(SourceError, match="weights end in"):
        load_weights(Net(), tmp_path / "w.npz")


def test_by_the_option(tmp_path, write, load):
    write(
        "m.py",
        "from torch import nn\nclass Net(nn.Linear):\n def __init__(s): super().__init__(2, 2)",
    )
    layer = nn.Linear(2, 2)
    save_file(layer.state_dict(), tmp_path / "weights.safetensors")
    loaded = load("m.py", weights=tmp_path / "weights.safetensors")
    assert loaded.weights == "weights.safetensors"
    assert torch.equal(loaded.model.weight, layer.weight)
