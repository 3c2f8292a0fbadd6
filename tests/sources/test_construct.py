from __future__ import annotations

import copy
import pickle
import re
import types

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import SourceWarning
from pytest_transformer_validate.sources.construct import call
from pytest_transformer_validate.sources.settings import given_settings

HEAD = """\
from __future__ import annotations
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Dict, Optional
from torch import nn
"""
DATACLASS = """
@dataclass
class NetConfig:
    vocab_size: int = 5
    width: int = 4
"""


def net(signature, extra=""):
    return f"""{HEAD}{extra}
class Net(nn.Module):
    def __init__(self, {signature}):
        super().__init__()
        self.got = {{k: v for k, v in locals().items() if k not in ("self", "__class__")}}
"""


def got(load, spec="m.py"):
    return load(spec).model.got


def test_arguments_come_by_name(write, load):
    write("m.py", net("vocab_size, *, d_model, dropout=0.5, **kwargs"))
    write("config.json", {"vocab_size": 5, "d_model": 4, "other": 3})
    assert got(load) == {"vocab_size": 5, "d_model": 4, "dropout": 0.5, "kwargs": {}}


def test_positional_only_arguments(write, load):
    write("m.py", net("vocab_size, width=3, /, depth=2"))
    write("config.json", {"vocab_size": 5, "depth": 7})
    assert got(load) == {"vocab_size": 5, "width": 3, "depth": 7}


def test_every_missing_argument_is_named_at_once(write, load):
    write("m.py", net("vocab_size, d_model, nhead"))
    path = write("config.json", {"d_model": 4, "other": 1})
    with pytest.raises(SourceError) as caught:
        load("m.py")
    for word in ("2 arguments", "vocab_size, nhead", str(path), "keys there: d_model, other"):
        assert word in str(caught.value)


def test_without_a_config_the_place_to_put_one_is_named(write, load):
    write("m.py", net("config"))
    with pytest.raises(SourceError, match="no config.json in .*"):
        load("m.py")


@pytest.mark.parametrize("name", ["config", "cfg", "args", "hparams"])
def test_the_whole_config_goes_to_a_parameter_that_asks_for_it(write, load, name):
    write("m.py", net(name))
    write("config.json", {"vocab_size": 5})
    given = got(load)[name]
    assert given.vocab_size == given["vocab_size"] == 5
    assert getattr(given, "missing", 3) == 3


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        ("dict", "dict"),
        ("Dict[str, Any]", "dict"),
        ("Mapping", "dict"),
        ("Optional[dict]", "dict"),
        ("SimpleNamespace", "SimpleNamespace"),
        ("Namespace", "Namespace"),
        ("Any", "WholeConfig"),
    ],
)
def test_the_whole_config_has_the_type_that_is_asked_for(write, load, annotation, kind):
    write("m.py", net(f"config: {annotation}"))
    write("config.json", {"vocab_size": 5})
    assert type(got(load)["config"]).__name__ == kind


@pytest.mark.parametrize(
    "signature",
    [
        *("config", "config: NetConfig", "c: NetConfig", "config: NetConfig | None"),
        *("x: 'NetConfig'", "c", "c, depth=3"),
    ],
)
def test_a_config_class_of_the_file_is_built(write, load, signature):
    write("m.py", net(signature, DATACLASS))
    config, *_ = got(load).values()
    assert (type(config).__name__, config.vocab_size) == ("NetConfig", 5)
    assert load("m.py").config["vocab_size"] == 5
    write("config.json", {"width": 9, "other": 1})
    config, *_ = got(load).values()
    assert (config.vocab_size, config.width) == (5, 9)
    assert dict(load("m.py").config) == {"vocab_size": 5, "width": 9, "other": 1}


def test_a_number_is_no_config(write, load):
    write("m.py", net("width: int", DATACLASS))
    with pytest.raises(SourceError, match="requires an argument .*: width"):
        load("m.py")


def test_a_config_class_is_not_made_of_itself(write, load):
    own = "class NetConfig:\n    def __init__(self, n):\n        self.n = n\n"
    write("m.py", net("config", own))
    with pytest.raises(SourceError, match=r"requires an argument .*: NetConfig\.n"):
        load("m.py")


def test_a_default_config_is_used_and_known(write, load):
    write("m.py", net("c=NetConfig(vocab_size=6)", DATACLASS))
    assert got(load)["c"].vocab_size == 6
    assert load("m.py").config.vocab_size == 6
    write("config.json", {"vocab_size": 7})
    assert got(load)["c"].vocab_size == 7


PLAIN = "class CFG:\n    vocab_size = 5\n    width = 4\n"


@pytest.mark.parametrize("signature", ["cfg", "cfg=CFG", "config=CFG()", "c: CFG"])
def test_a_plain_config_class_of_the_file_gives_what_the_file_beside_it_does_not(
    write, load, signature
):
    write("m.py", net(signature, PLAIN))
    write("config.json", {"width": 9, "task": "classification"})
    [config] = got(load).values()
    assert (config.vocab_size, config.width) == (5, 9)
    [config] = got(load).values()  # the class itself is left as it is
    assert type(config).width == 4


@pytest.mark.parametrize(
    "default", ["SimpleNamespace(vocab_size=5, width=4)", "dict(vocab_size=5, width=4)", "Hyper"]
)
def test_a_default_gives_what_a_configuration_lacks(write, load, default):
    write("m.py", net(f"config={default}", PLAIN.replace("CFG", "Hyper")))
    write("config.json", {"width": 9, "task": "classification"})
    [config] = got(load).values()
    assert (config.vocab_size, config.width) == (5, 9)
    if default.startswith("dict"):
        assert config["vocab_size"] == 5


def test_an_optional_config_is_left_out_without_values(write, load):
    write("m.py", net("config=None"))
    assert got(load) == {"config": None}


def test_missing_fields_of_a_config_class_are_named(write, load):
    text = "@dataclass\nclass Args:\n    vocab_size: int\n    depth: int\n"
    write("m.py", net("args: Args", text))
    with pytest.raises(SourceError, match=r"2 arguments .*: Args.vocab_size, Args.depth"):
        load("m.py")


def test_nested_config_classes_come_from_nested_objects(write, load):
    text = f"{DATACLASS}\n@dataclass\nclass TopConfig:\n    inner: NetConfig\n    depth: int = 1\n"
    write("m.py", net("config: TopConfig", text))
    write("config.json", {"inner": {"width": 3}, "depth": 2})
    config = got(load)["config"]
    assert (type(config.inner).__name__, config.inner.width, config.depth) == ("NetConfig", 3, 2)


def test_a_config_class_with_from_dict_is_made_with_it(write, load):
    text = """
class NetConfig:
    @classmethod
    def from_dict(cls, values):
        made = cls()
        made.values = values
        return made
"""
    write("m.py", net("config: NetConfig", text))
    write("config.json", {"a": 1})
    assert got(load)["config"].values == {"a": 1}


def test_annotations_that_cannot_be_read_are_ignored(write, load):
    write("m.py", net("vocab_size: Nowhere"))
    write("config.json", {"vocab_size": 5})
    assert got(load) == {"vocab_size": 5}


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("", None),
        ("config", 5),
        ("whatever", 5),
        ("config=None", 5),
        ("vocab_size", 5),
        ("vocab_size=1, depth=2", 5),
        ("**kwargs", None),
    ],
)
def test_factories_take_a_config_or_nothing(write, load, signature, expected):
    body = f"""
class Net(nn.Module): pass
def build_model({signature}):
    model = Net()
    first = next(iter(locals().values()))
    model.got = getattr(first, "vocab_size", first)
    return model
"""
    write("m.py", HEAD + body)
    write("config.json", {"vocab_size": 5})
    model = load("m.py").model
    assert expected is None or model.got == expected


@pytest.mark.parametrize(
    "body",
    [
        "NetConfig(**config)",
        "NetConfig(width=config['width'], vocab_size=config.get('vocab_size', 5))",
        "NetConfig(**{k: v for k, v in config.items() if k in NetConfig.__annotations__})",
        "NetConfig(**config) if isinstance(config, dict) else None",
        "NetConfig(width=config.pop('width'))",
        "config",
    ],
)
def test_a_factory_makes_the_config_class_of_its_file_itself(write, load, body):
    text = f"""
class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.got = (config.vocab_size, config.width)
def build_model(config):
    return Net({body})
"""
    write("m.py", HEAD + DATACLASS + text)
    write("config.json", {"width": 9})
    loaded = load("m.py")
    assert loaded.model.got == (5, 9)
    assert dict(loaded.config) == {"vocab_size": 5, "width": 9}


def test_a_factory_that_says_so_is_given_the_config_class(write, load):
    text = """
class Net(nn.Module): pass
def build_model(config: NetConfig):
    model = Net()
    model.got = config
    return model
"""
    write("m.py", HEAD + DATACLASS + text)
    write("config.json", {"width": 9})
    assert type(got(load)).__name__ == "NetConfig"


def test_a_factory_is_given_the_object_that_a_person_made(write, load):
    text = """
class Net(nn.Module): pass
def build_model(config):
    model = Net()
    model.got = config
    return model
"""
    module = {"__name__": "net"}
    source = HEAD.partition("\n")[2] + DATACLASS + text
    exec(compile(source, "net.py", "exec", dont_inherit=True), module)
    config = module["NetConfig"](width=9)
    model, _ = call(module["build_model"], "build_model", given_settings(config))
    assert model.got is config
    settings = given_settings(types.SimpleNamespace(width=9))
    model, _ = call(module["build_model"], "build_model", settings)
    assert model.got == config


def test_a_factory_whose_config_class_asks_for_more_is_called_with_the_keys(write, load):
    text = """
@dataclass
class NetConfig:
    vocab_size: int
    width: int
class Net(nn.Module): pass
def build_model(config):
    model = Net()
    model.got = NetConfig(width=4, **config)
    return model
"""
    write("m.py", HEAD + text)
    write("config.json", {"vocab_size": 9})
    assert (got(load).vocab_size, got(load).width) == (9, 4)


def test_a_whole_config_can_be_copied_and_kept(write, load):
    write("m.py", net("config"))
    write("config.json", {"vocab_size": 5, "inner": {"width": 3}})
    config = got(load)["config"]
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == dict(config)
        assert twin.inner == {"width": 3}
    assert not hasattr(config, "missing")


def test_keys_that_nothing_takes_are_pointed_out_once(write, load):
    write("m.py", net("width=1, depth=2"))
    write("config.json", {"width": 3, "detph": 4, "author": "me", "dropout": 0.5, "pad_id": 0})
    words = "takes no 'detph' (did you mean depth? The default is in force), 'dropout'"
    with pytest.warns(SourceWarning, match=re.escape(words) + "$") as caught:
        assert got(load) == {"width": 3, "depth": 2}
    assert len(caught) == 1
    write("config.json", {"author": "me", "detph": 4})
    assert got(load) == {"width": 1, "depth": 2}, "nothing says that keys are arguments"
    write("m.py", net("width=1, **more"))
    write("config.json", {"width": 3, "dropout": 0.5})
    got(load)


@pytest.mark.parametrize(
    ("signature", "config", "known"),
    [
        ("width=1, img_size=32", None, {"img_size": 32}),
        ("width=1, image_size=(32, 48)", {"width": 2}, {"width": 2, "image_size": (32, 48)}),
        ("img_size=32", {"image_size": 64}, {"image_size": 64}),
        ("vocab_size=9, image_size=32, max_batch_size=8", None, {"max_batch_size": 8}),
        ("max_batch_size=8", {"max_batch_size": 2}, {"max_batch_size": 2}),
        ("image_size=None, max_batch_size=True", None, {}),
        ("block_size=64, max_len=9", None, {"block_size": 64}),
        ("block_size=64", {"max_seq_len": 32}, {"max_seq_len": 32}),
        ("max_seq_len=8192", None, {}),
        ("channels=1, image_size=8", None, {"channels": 1, "image_size": 8}),
        ("in_chans=2, img_size=8", {"num_channels": 3}, {"num_channels": 3, "img_size": 8}),
        ("channels=64", None, {}),
    ],
)
def test_defaults_in_force_bound_what_may_be_given(write, load, signature, config, known):
    write("m.py", net(signature))
    if config:
        write("config.json", config)
    assert dict(load("m.py").config) == known
