from __future__ import annotations

import importlib
import sys
import types

import pytest

from pytest_transformer_validate.sources.scope import ModuleScope, PathScope, is_taken


@pytest.fixture(autouse=True)
def unchanged():
    """Every test gives sys.path and sys.modules back, apart from new modules of its own."""
    path, modules, bytecode = list(sys.path), dict(sys.modules), sys.dont_write_bytecode
    yield
    assert sys.path == path
    assert sys.dont_write_bytecode == bytecode
    assert {name: sys.modules.get(name) for name in modules} == modules


def test_modules_come_and_go_with_the_scope(tmp_path, write):
    write("tv_helper.py", "value = 1")
    write("tv_package/__init__.py", "")
    write("tv_package/inner.py", "value = 2")
    write("tv_namespace/inner.py", "value = 3")
    scope = ModuleScope(tmp_path)
    with scope:
        assert sys.path[0] == str(tmp_path)
        helper = importlib.import_module("tv_helper")
        inner = importlib.import_module("tv_package.inner")
        importlib.import_module("tv_namespace.inner")
    assert not [name for name in sys.modules if name.startswith("tv_")]
    with scope:
        assert importlib.import_module("tv_helper") is helper
        assert importlib.import_module("tv_package.inner") is inner
    assert "tv_helper" not in sys.modules
    assert not list(tmp_path.rglob("__pycache__"))


def test_nested_entries_count(tmp_path, write):
    write("tv_helper.py", "")
    scope = ModuleScope(tmp_path)
    with scope:
        with scope:
            importlib.import_module("tv_helper")
        assert "tv_helper" in sys.modules
    assert "tv_helper" not in sys.modules


def test_equally_named_neighbours_do_not_meet(tmp_path, write):
    for name in "ab":
        write(f"{name}/tv_helper.py", f"value = {name!r}")
    scopes = {name: ModuleScope(tmp_path / name) for name in "ab"}
    for _ in range(2):
        for name, scope in scopes.items():
            with scope:
                assert importlib.import_module("tv_helper").value == name


def test_nested_scopes_do_not_meet_either(tmp_path, write):
    for name in "ab":
        write(f"{name}/tv_helper.py", f"value = {name!r}")
    with ModuleScope(tmp_path / "a"):
        assert importlib.import_module("tv_helper").value == "a"
        with ModuleScope(tmp_path / "b"):
            assert importlib.import_module("tv_helper").value == "b"
        assert importlib.import_module("tv_helper").value == "a"


def test_a_neighbour_wins_over_a_module_from_elsewhere(tmp_path, write, monkeypatch):
    write("tests/tv_helper.py", "value = 'tests'")
    write("model/tv_helper.py", "value = 'model'")
    monkeypatch.syspath_prepend(str(tmp_path / "tests"))
    theirs = importlib.import_module("tv_helper")
    scope = ModuleScope(tmp_path / "model")
    for _ in range(2):
        with scope:
            assert importlib.import_module("tv_helper").value == "model"
        assert sys.modules["tv_helper"] is theirs
    monkeypatch.delitem(sys.modules, "tv_helper")
    monkeypatch.undo()
    sys.modules.pop("tv_helper", None)


def test_what_was_imported_from_the_folder_before_is_shared(tmp_path, write, monkeypatch):
    write("tv_helper.py", "value = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    theirs = importlib.import_module("tv_helper")
    with ModuleScope(tmp_path):
        assert importlib.import_module("tv_helper") is theirs
    assert sys.modules.pop("tv_helper") is theirs
    monkeypatch.undo()


def test_the_standard_library_wins_over_a_neighbour(tmp_path, write, monkeypatch):
    write("random.py", "raise RuntimeError('shadowed')")
    write("wave.py", "raise RuntimeError('shadowed')")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with ModuleScope(tmp_path):
        importlib.import_module("random").random()
        importlib.import_module("wave").open  # noqa: B018
    monkeypatch.undo()


def test_installed_modules_are_not_touched(tmp_path, write):
    write("pytest.py", "raise RuntimeError('shadowed')")
    with ModuleScope(tmp_path):
        assert importlib.import_module("pytest") is pytest


def test_an_environment_below_the_folder_stays_imported(tmp_path, write, monkeypatch):
    write("venv/lib/site-packages/tv_installed/__init__.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "venv/lib/site-packages"))
    with ModuleScope(tmp_path):
        installed = importlib.import_module("tv_installed")
    assert sys.modules.pop("tv_installed") is installed
    monkeypatch.undo()


def test_what_the_code_adds_to_the_path_comes_back(tmp_path, write):
    write("lib/tv_inner.py", "value = 1")
    scope = ModuleScope(tmp_path)
    with scope:
        sys.path.insert(0, str(tmp_path / "lib"))
        inner = importlib.import_module("tv_inner")
    assert "tv_inner" not in sys.modules
    with scope:
        assert str(tmp_path / "lib") in sys.path
        assert sys.modules["tv_inner"] is inner


def test_modules_without_a_file_stay(tmp_path):
    with ModuleScope(tmp_path):
        sys.modules["tv_made"] = made = types.ModuleType("tv_made")
    assert sys.modules.pop("tv_made") is made


def test_the_scope_is_left_when_the_code_raises(tmp_path, write):
    write("tv_helper.py", "")

    def fail() -> None:
        with ModuleScope(tmp_path):
            importlib.import_module("tv_helper")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "tv_helper" not in sys.modules


def test_a_missing_folder_is_no_problem(tmp_path):
    with ModuleScope(tmp_path / "gone"):
        pass


def test_a_path_scope_leaves_modules(tmp_path, write):
    write("tv_normal.py", "")
    with PathScope(tmp_path):
        normal = importlib.import_module("tv_normal")
    assert sys.modules.pop("tv_normal") is normal


def test_taken_names():
    assert is_taken("random")
    assert is_taken("torch")
    assert is_taken("pytest_transformer_validate")
    assert is_taken("__main__")
    assert not is_taken("tv_free")
    assert not is_taken("a b")
