from __future__ import annotations

import os
import pickle
import random
import sys

import pytest
import torch

from pytest_transformer_validate.errors import SourceError

NET = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, vocab_size=5, d_model=4):
            super().__init__()
            self.table = nn.Embedding(vocab_size, d_model)
    """


def test_a_file_gives_its_only_class(write, load):
    path = write("runs/net.py", NET)
    loaded = load("runs/net.py")
    assert loaded.model.table.weight.shape == (5, 4)
    assert loaded.origin.endswith("runs/net.py, class Net")
    assert loaded.weights == "random (seed 0)"
    assert loaded.location == (str(path), 4)
    assert dict(loaded.config) == {}


def test_the_config_beside_it_gives_arguments(write, load):
    write("net.py", NET)
    write(
        "config.json",
        {
            "vocab_size": 7,
            "unknown": "text",
            "task": "lm",
            "expect_fail": {"causality": "by design"},
        },
    )
    loaded = load("net.py")
    assert loaded.model.table.weight.shape == (7, 4)
    assert loaded.config["task"] == "lm"
    assert loaded.expect_fail == {"causality": "by design"}


def test_another_config_replaces_the_one_beside_it(write, load):
    write("net.py", NET)
    write("config.json", "{")
    other = write("other.json", {"vocab_size": 8})
    assert load("net.py", config=other).model.table.weight.shape == (8, 4)


def test_the_model_belongs_to_its_scope(write, load):
    write("net.py", NET)
    loaded = load("net.py")
    name = type(loaded.model).__module__
    assert name not in sys.modules
    with loaded.scope:
        copy = pickle.loads(pickle.dumps(loaded.model))
        assert type(copy) is type(loaded.model)
    assert name not in sys.modules


def test_neighbours_are_importable_and_do_not_meet(write, load):
    for name in "ab":
        write(f"{name}/model.py", "from tv_parts import Net\nModel = Net\n")
        write(
            f"{name}/tv_parts.py", f"from torch import nn\nclass Net(nn.Module): word = {name!r}"
        )
    models = [load(f"{name}/model.py").model for name in "abab"]
    assert [model.word for model in models] == ["a", "b", "a", "b"]


def test_neighbours_are_importable_while_the_model_runs(write, load):
    write(
        "model.py",
        """
        from torch import nn
        class Net(nn.Module):
            def forward(self, x):
                from tv_late import value
                return value
        """,
    )
    write("tv_late.py", "value = 3")
    loaded = load("model.py")
    with loaded.scope:
        assert loaded.model(None) == 3
    with pytest.raises(ModuleNotFoundError):
        loaded.model(None)


def test_a_rewritten_file_is_read_again(write, load):
    for value in (1, 2, 3):
        path = write("model.py", f"from tv_part import V\n{NET_LINE}\n    a = {value}, V\n")
        part = write("tv_part.py", f"V = {value}\n")
        for file in (path, part):
            os.utime(file, (1_000_000, 1_000_000))
        assert load("model.py").model.a == (value, value)


NET_LINE = "import torch\nclass Net(torch.nn.Module):"


@pytest.mark.parametrize("name", ["random.py", "torch.py", "pytest.py", "my net.py", "v1.2.py"])
def test_any_file_name_works(write, load, name):
    write(name, "import random\nfrom torch import nn\nclass Net(nn.Module):\n    pass\n")
    before = {known: sys.modules.get(known) for known in ("random", "torch", "pytest")}
    loaded = load(name)
    assert type(loaded.model).__name__ == "Net"
    assert {known: sys.modules.get(known) for known in before} == before
    with loaded.scope:
        assert sys.modules[type(loaded.model).__module__].__file__.endswith(name)


def test_a_file_in_a_package_is_imported_by_its_dotted_name(write, load):
    write("tv_pkg/__init__.py", "")
    write("tv_pkg/sub/__init__.py", "")
    write("tv_pkg/sub/layers.py", "WIDTH = 3")
    write(
        "tv_pkg/sub/model.py",
        """
        from torch import nn
        from .layers import WIDTH
        class Net(nn.Module):
            width = WIDTH
        """,
    )
    loaded = load("tv_pkg/sub/model.py")
    assert type(loaded.model).__module__ == "tv_pkg.sub.model"
    assert loaded.model.width == 3
    assert "tv_pkg" not in sys.modules
    with loaded.scope:
        import tv_pkg.sub.model as module

        assert module.Net is type(loaded.model)


def test_a_package_file_that_its_package_imports_runs_once(write, load):
    write("tv_pkg/__init__.py", "from .model import Net")
    write("tv_pkg/model.py", NET)
    loaded = load("tv_pkg/model.py")
    with loaded.scope:
        assert sys.modules["tv_pkg"].Net is type(loaded.model)
    assert type(load("tv_pkg/__init__.py::Net").model).__name__ == "Net"


def test_a_package_whose_name_is_taken(write, load):
    write("json/__init__.py", "")
    write("json/model.py", NET)
    with pytest.raises(SourceError, match="that name is taken"):
        load("json/model.py")


def test_a_relative_import_in_a_lone_file(write, load):
    write("model.py", "import torch\nfrom .layers import Net\n")
    with pytest.raises(SourceError, match=r"model.py:2: a relative import") as caught:
        load("model.py")
    assert "__init__.py" in str(caught.value)


def test_a_missing_import_names_module_and_line(write, load):
    write("model.py", "import torch\nimport tv_not_installed.part\n")
    with pytest.raises(SourceError, match=r"model.py:2 imports 'tv_not_installed'") as caught:
        load("model.py")
    assert "nothing is installed automatically" in str(caught.value)


def test_what_the_file_raises_comes_through(write, load):
    write("model.py", "raise KeyError('mine')")
    with pytest.raises(KeyError, match="mine"):
        load("model.py")
    write("model.py", "from torch import nn\nclass Net(nn.Module):\n    nope\n")
    with pytest.raises(NameError):
        load("model.py")
    assert "model" not in sys.modules


def test_what_the_constructor_raises_comes_through(write, load):
    init = "    def __init__(self):\n        raise ZeroDivisionError('mine')\n"
    write("model.py", f"{NET_LINE}\n{init}")
    with pytest.raises(ZeroDivisionError, match="mine"):
        load("model.py")


def test_a_neighbour_that_is_no_python(write, load):
    write("model.py", "import tv_bad")
    write("tv_bad.py", "x = (")
    with pytest.raises(SourceError, match=r"tv_bad.py:1:5: not valid Python"):
        load("model.py")


def test_weights_come_from_the_seed_alone(write, load):
    write(
        "net.py",
        """
        import random
        import numpy
        import torch
        from torch import nn
        torch.rand(3)
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 2)
                self.other = random.random(), float(numpy.random.rand())
        """,
    )
    torch.manual_seed(11)
    random.seed(11)
    expected = torch.rand(1), random.random()
    torch.manual_seed(11)
    random.seed(11)
    one, two, three = load("net.py"), load("net.py"), load("net.py", seed=1)
    assert (torch.rand(1), random.random()) == expected
    assert torch.equal(one.model.layer.weight, two.model.layer.weight)
    assert one.model.other == two.model.other
    assert not torch.equal(one.model.layer.weight, three.model.layer.weight)
    assert three.weights == "random (seed 1)"


def test_a_read_only_folder(write, load, tmp_path):
    write("ro/net.py", "import tv_part\n" + "from torch import nn\nclass Net(nn.Module): pass\n")
    write("ro/tv_part.py", "")
    (tmp_path / "ro").chmod(0o555)
    try:
        load("ro/net.py")
        assert sorted(p.name for p in (tmp_path / "ro").iterdir()) == ["net.py", "tv_part.py"]
    finally:
        (tmp_path / "ro").chmod(0o755)


def test_a_model_without_a_config_keeps_its_own(write, load):
    write("net.py", f"{NET_LINE}\n    config = {{'vocab_size': 3}}\n")
    assert load("net.py").config["vocab_size"] == 3
