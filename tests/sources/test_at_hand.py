"""Models whose class asks for arguments that no config.json gives, and the file has."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources import size

HEAD = "from dataclasses import dataclass\nfrom torch import nn\n"
SIZED = """
class Net(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
"""
CONFIGURED = """
class Net(nn.Module):
    def __init__(self, {config}):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear({width}, {width}) for _ in range(2))
"""
DATACLASS = """
@dataclass
class NetConfig:
    width: int
"""


def configured(config, width):
    return CONFIGURED.format(config=config, width=width)


FILES = {
    "an object of the class that is asked for": (
        DATACLASS + configured("config: NetConfig", "config.width") + "small = NetConfig(width=3)"
    ),
    "an object of the only such class": (
        DATACLASS + configured("cfg", "cfg.width") + "CONFIG = NetConfig(width=3)"
    ),
    "a dict": configured("cfg", "cfg['width']") + "NET_124M = {'width': 3, 'bias': False}",
    "keys of a dict": SIZED + "config = {'width': 3, 'depth': 2, 'rate': 1e-3}",
    "a namespace": (
        "import argparse\n" + configured("args", "args.width") + "a = argparse.Namespace(width=3)"
    ),
    "numbers": SIZED + "WIDTH, DEPTH, RATE = 3, 2, 0.1",
    "an object": SIZED + "net = Net(3, 2)",
    "a function": SIZED + "def make_model(depth=2): return Net(3, depth)",
}


@pytest.mark.parametrize("what", FILES)
def test_what_the_file_has_builds_its_model(write, load, what):
    write("m.py", HEAD + FILES[what] + "\n")
    assert [layer.in_features for layer in load("m.py").model.layers] == [3, 3]


def test_a_configuration_of_the_file_is_the_models(write, load):
    write("m.py", HEAD + FILES["an object of the class that is asked for"])
    assert load("m.py").config.width == 3
    assert load("m.py::Net").config.width == 3


def test_what_is_written_beside_the_file_comes_first(write, load):
    write("m.py", HEAD + FILES["an object of the class that is asked for"])
    write("config.json", {"width": 5})
    assert load("m.py").model.layers[0].in_features == 5


@pytest.mark.parametrize(
    "text",
    [
        configured("cfg", "cfg['width']") + "SMALL, LARGE = {'width': 3}, {'width': 5}",
        SIZED + "WIDTH = 3",
        SIZED + "def get_model(width): return Net(width, 2)",
        SIZED + "def make_data(): raise SystemExit",
    ],
)
def test_what_does_not_decide_is_asked_for(write, load, text):
    write("m.py", HEAD + text + "\n")
    with pytest.raises(SourceError, match="that the configuration does not give"):
        load("m.py")


def test_a_class_that_is_named_is_not_exchanged(write, load):
    write("m.py", HEAD + FILES["an object"])
    with pytest.raises(SourceError, match="width, depth"):
        load("m.py::Net")


LLAMA = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class Own(LlamaForCausalLM):
    config_class = OwnConfig

{config}
"""
SIZES = "hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2"


def test_a_configuration_of_a_library_is_the_one_that_the_file_holds(write, load):
    pytest.importorskip("transformers")
    write("m.py", LLAMA.format(config=f"config = OwnConfig(vocab_size=11, {SIZES})"))
    assert load("m.py").model.lm_head.out_features == 11


def test_the_defaults_of_a_library_are_looked_at_before_they_are_built(write, load, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(size, "free_memory", lambda: 2**30)
    write("m.py", LLAMA.format(config="rates = {'warmup': 3}"))
    with pytest.raises(SourceError, match=r"the largest numbers in the defaults of LlamaConfig"):
        load("m.py")


def test_a_dict_that_takes_attributes_for_keys_is_no_configuration_of_a_library(write, load):
    kind = "class Cfg(dict):\n    def __getattr__(self, key): return self[key]\n"
    write("config.json", '{"width": 3}')
    write("m.py", HEAD + kind + configured("config", "Cfg(config).width"))
    assert [layer.in_features for layer in load("m.py").model.layers] == [3, 3]
