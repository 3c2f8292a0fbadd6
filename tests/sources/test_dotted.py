from __future__ import annotations

import sys

import pytest

from pytest_transformer_validate.errors import SourceError

MODULE = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width=3):
            super().__init__()
            self.layer = nn.Linear(width, width)

    class Zoo:
        net = Net

    def build(config): return Net(config.width)
    def needs_two(width, depth): return Net(width)
    def nothing(): return None
    def returns_class(): return Net
    ready = Net()
    number = 3
    """


@pytest.fixture(autouse=True)
def forget():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("tv_"):
            del sys.modules[name]


@pytest.fixture
def module(write):
    write("tv_pkg/__init__.py", "")
    return write("tv_pkg/models.py", MODULE)


def test_a_class(module, load, tmp_path):
    loaded = load("tv_pkg.models:Net")
    assert loaded.weights == "random (seed 0)"
    assert loaded.origin == "import tv_pkg.models:Net, class Net"
    assert loaded.location == (str(module), 4)
    assert isinstance(loaded.model, sys.modules["tv_pkg.models"].Net)
    assert str(tmp_path) not in sys.path
    with loaded.scope:
        assert sys.path[0] == str(tmp_path)


def test_an_attribute_of_an_attribute(module, load):
    assert type(load("tv_pkg.models:Zoo.net").model).__name__ == "Net"


def test_an_object_is_used_as_it_is(module, load):
    loaded = load("tv_pkg.models:ready")
    assert loaded.model is sys.modules["tv_pkg.models"].ready
    assert loaded.weights == "as given"


def test_a_factory_with_a_config(module, load, write):
    config = write("config.json", {"width": 5})
    assert load("tv_pkg.models:build", config=config).model.layer.in_features == 5


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("tv_nowhere.models:Net", "no module 'tv_nowhere' can be found"),
        ("tv_pkg.model:Net", "no module 'model' .did you mean models"),
        ("tv_pkg.models.deep:Net", "'tv_pkg.models' is a module, no package"),
        ("tv_pkg.models:Nett", "tv_pkg.models has no 'Nett' .did you mean Net"),
        ("tv_pkg.models:Zoo.nte", "tv_pkg.models.Zoo has no 'nte' .did you mean net"),
        ("tv_pkg.models:needs_two", "2 arguments .*: width, depth"),
        ("tv_pkg.models:build", "an argument .*: config"),
        ("tv_pkg.models:nothing", "gave None"),
        ("tv_pkg.models:returns_class", "the class Net"),
        ("tv_pkg.models:number", "an object of type int"),
        ("tv_pkg.models:Zoo", "the class is no torch.nn.Module"),
    ],
)
def test_what_cannot_be_loaded_is_named(module, load, spec, text):
    with pytest.raises(SourceError, match=text) as caught:
        load(spec)
    assert len(str(caught.value).splitlines()) <= 12


def test_a_missing_import_of_the_module_is_another_one(write, load):
    write("tv_mod.py", "import torch\nimport tv_gone\n")
    with pytest.raises(SourceError, match=r"tv_mod.py:2 imports 'tv_gone'"):
        load("tv_mod:Net")


def test_what_the_module_raises_comes_through(write, load):
    write("tv_mod.py", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        load("tv_mod:Net")


def test_a_module_that_is_no_python(write, load):
    write("tv_mod.py", "x = (")
    with pytest.raises(SourceError, match=r"tv_mod.py:1:5"):
        load("tv_mod:Net")
