from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SourceError

HEAD = "import torch\nfrom torch import nn\n"


def classes(*names):
    return HEAD + "".join(f"class {name}(nn.Module): pass\n" for name in names)


def chosen(load, spec):
    return load(spec).origin.rpartition(", ")[2]


def test_the_order_of_entry_points(write, load):
    write("config.json", {"model_name": "Named"})
    text = classes("Named", "Model", "Other")
    write("m.py", text + "def build_model(): return Other()\n")
    assert chosen(load, "m.py::Other") == "class Other"
    assert chosen(load, "m.py") == "build_model"
    write("m.py", text)
    assert chosen(load, "m.py") == "class Named"
    write("config.json", {"model_name": "A display name"})
    assert chosen(load, "m.py") == "class Model"
    write("m.py", classes("Only"))
    assert chosen(load, "m.py") == "class Only"


def test_parts_are_no_candidates(write, load):
    write(
        "m.py",
        HEAD
        + """
class Norm(nn.Module): pass
class Base(nn.Module): pass
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Norm()
class Net(Base):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
Alias = Net
""",
    )
    assert chosen(load, "m.py") == "class Net"


def test_parts_are_found_through_functions_and_tables(write, load):
    write(
        "m.py",
        HEAD
        + """
class Block(nn.Module): pass
BLOCKS = {"plain": Block}
def stack(): return [BLOCKS["plain"]()]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(stack())
""",
    )
    assert chosen(load, "m.py") == "class Net"


def test_classes_under_a_condition_count(write, load):
    text = "if True:\n  class Part(nn.Module): pass\ntry:\n  class Net(nn.Module): p = Part\n"
    write("m.py", HEAD + text + "except ValueError: pass\n")
    assert chosen(load, "m.py") == "class Net"


def test_imported_classes_are_no_candidates(write, load):
    write("m.py", "from torch.nn import Linear, Module\nclass Net(Module): pass\n")
    assert chosen(load, "m.py") == "class Net"


def test_several_candidates_are_listed(write, load):
    write("m.py", classes("One", "Two"))
    with pytest.raises(SourceError, match="more than one model: One, Two") as caught:
        load("m.py")
    assert "m.py::One" in str(caught.value)


def test_classes_that_use_each_other_are_listed(write, load):
    write("m.py", HEAD + "class A(nn.Module):\n  def f(s): B\nclass B(nn.Module):\n  a = A\n")
    with pytest.raises(SourceError, match="A, B"):
        load("m.py")


def test_without_a_module_the_names_are_listed(write, load):
    write("m.py", "import torch\ndef make(): pass\nclass Thing: pass\nvalue = 3\n")
    with pytest.raises(SourceError, match="names found: make, Thing, value") as caught:
        load("m.py")
    for word in ("build_model", "model_name", "Model", "only nn.Module"):
        assert word in str(caught.value)


def test_a_name_that_is_not_there(write, load):
    write("m.py", classes("Network", "Model"))
    with pytest.raises(SourceError, match="did you mean Network"):
        load("m.py::Netwrk")


def test_functions_and_objects_can_be_named(write, load):
    write("m.py", classes("Net") + "def build_other(): return Net()\nready = Net()\nnumber = 3\n")
    loaded = load("m.py::build_other")
    assert loaded.origin.endswith("function build_other")
    assert loaded.weights == "as built (seed 0)"
    assert load("m.py::ready").weights == "as given"
    with pytest.raises(SourceError, match="object of type int, no torch.nn.Module"):
        load("m.py::number")


SIZED = """
class Net(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, size)
"""


def test_the_object_that_a_file_makes_is_taken_where_its_class_cannot_be_built(write, load):
    write("m.py", HEAD + SIZED + "loss = nn.CrossEntropyLoss()\nnet = Net(3)\nalias = net\n")
    assert chosen(load, "m.py") in {"object net", "object alias"}
    write("config.json", {"size": 5})
    assert chosen(load, "m.py") == "class Net"


def test_the_object_that_a_file_makes_decides_between_its_classes(write, load):
    stack = "stack = nn.Sequential(One(), Two())\n"
    write("m.py", classes("One", "Two") + "one = One()\ntwo = Two()\n")
    with pytest.raises(SourceError, match="more than one model: One, Two"):
        load("m.py")
    write("m.py", classes("One", "Two") + stack + "part = stack[0]\nhead = nn.Linear(2, 2)\n")
    assert chosen(load, "m.py") == "object stack"
    write("m.py", classes("One", "Two") + "model = Two()\nteacher = One()\n")
    assert chosen(load, "m.py") == "object model"


def test_what_a_package_takes_from_its_files_is_its_model(write, load):
    write("tv_pkg/__init__.py", "from .net import Net\n")
    write("tv_pkg/net.py", "from .part import Part\n" + classes("Net"))
    write("tv_pkg/part.py", classes("Part"))
    assert chosen(load, "tv_pkg/__init__.py") == "class Net"
    write("tv_pkg/__init__.py", "from torch.nn import Linear\n")
    with pytest.raises(SourceError, match="defines no torch.nn.Module"):
        load("tv_pkg/__init__.py")


def test_a_file_without_a_class_of_its_own_gives_the_model_that_it_makes(write, load):
    layer = "net = nn.Linear(2, 2)\nloss = nn.CrossEntropyLoss()\n"
    write("m.py", HEAD + layer)
    assert chosen(load, "m.py") == "object net"
    write("m.py", HEAD + layer + "model = nn.Linear(3, 3)\n")
    assert chosen(load, "m.py") == "object model"
    write("m.py", HEAD + "def get_model():\n    return nn.Linear(2, 2)\n")
    assert chosen(load, "m.py") == "function get_model"
    write("m.py", HEAD + "def build():\n    return nn.Linear(2, 2)\n")
    assert chosen(load, "m.py") == "function build"
    write("m.py", HEAD + "def build_dataset():\n    raise SystemExit\n")
    with pytest.raises(SourceError, match="defines no torch.nn.Module"):
        load("m.py")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("None", "gave None"),
        ("3", "type int"),
        ("Net", "the class Net.*not its class"),
    ],
)
def test_a_factory_returns_a_module(write, load, result, text):
    write("m.py", classes("Net") + f"def build_model(): return {result}\n")
    with pytest.raises(SourceError, match=text):
        load("m.py")


def test_a_class_that_is_no_module(write, load):
    write("m.py", classes("Net") + "class Config: pass\n")
    with pytest.raises(SourceError, match="class Config: the class is no torch.nn.Module"):
        load("m.py::Config")
