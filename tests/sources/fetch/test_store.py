"""The store is private, hashed again before each use, and whole whoever writes to it."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import time

import pytest

from pytest_transformer_validate.errors import MissingDependency, SpecError
from pytest_transformer_validate.sources.fetch import store as store_module
from pytest_transformer_validate.sources.fetch.store import Store, holds
from pytest_transformer_validate.sources.fetch.tree import Tree

FILES = {"model.py": b"x = 1\n", "sub/other.py": b"y = 2\n"}
TREE = Tree.of(FILES)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def writable(folder):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)


def test_what_is_put_is_got(store):
    folder = store.put(FILES)
    assert store.get(TREE) == folder
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert store.put(FILES) == folder


def test_everything_is_of_the_user_alone(store):
    folder = store.put(FILES)
    for path in [store.root, folder, *folder.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert not folder.stat().st_mode & 0o222


def test_what_is_not_there_is_none(store):
    assert store.get(TREE) is None


@pytest.mark.parametrize("change", ["byte", "more", "less", "link", "folder", "pipe"])
def test_d28_what_was_changed_is_never_given_out(store, tmp_path, change):
    """D28: hashed again before every use, thrown away, fetched again."""
    folder = store.put(FILES)
    writable(folder)
    file = folder / "model.py"
    if change == "byte":
        file.write_bytes(b"x = 2\n")
    elif change == "more":
        (folder / "torch.py").write_bytes(b"")
    elif change == "folder":
        (folder / "__pycache__").mkdir()
    else:
        file.unlink()
    if change == "link":
        (tmp_path / "same.py").write_bytes(FILES["model.py"])
        file.symlink_to(tmp_path / "same.py")
    if change == "pipe":
        os.mkfifo(file)
    assert not holds(folder, TREE)
    assert store.get(TREE) is None
    assert not folder.exists()
    assert store.put(FILES) == folder
    assert store.get(TREE) == folder


def test_f4_every_flipped_bit_and_every_cut_is_found(store):
    """F4: 1,000 flips and 200 truncations of the cache, all detected."""
    code = bytes(range(256)) * 4
    tree = Tree.of({"model.py": code})
    folder = store.put({"model.py": code})
    writable(folder)
    file = folder / "model.py"
    draw = random.Random(0)
    for _ in range(1000):
        changed = bytearray(code)
        changed[draw.randrange(len(code))] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        assert not holds(folder, tree)
    for _ in range(200):
        file.write_bytes(code[: draw.randrange(len(code))])
        assert not holds(folder, tree)
    file.write_bytes(code)
    assert holds(folder, tree)


def test_d29_a_linked_tree_is_not_followed(store, tmp_path):
    (tmp_path / "planted").mkdir()
    folder = store.put(FILES)
    writable(folder)
    folder.rename(tmp_path / "planted/tree")
    folder.symlink_to(tmp_path / "planted/tree")
    assert store.get(TREE) is None
    assert (tmp_path / "planted/tree/model.py").exists()


@pytest.mark.parametrize("which", ["", "trees", "notes"])
def test_d29_a_folder_that_others_may_use_is_refused(tmp_path, which):
    """D29: mode checked."""
    Store(tmp_path / "cache")
    folder = tmp_path / "cache" / which
    folder.chmod(0o770)
    with pytest.raises(SpecError, match="others may use it") as caught:
        Store(tmp_path / "cache")
    assert str(folder) in str(caught.value)
    assert "XDG_CACHE_HOME" in str(caught.value)


def test_d29_a_linked_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpecError, match="it is a link"):
        Store(tmp_path / "cache")


def test_d29_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    Store(tmp_path / "cache")
    other = os.getuid() + 1
    monkeypatch.setattr(store_module.os, "getuid", lambda: other)
    with pytest.raises(SpecError, match="belongs to another user"):
        Store(tmp_path / "cache")


def test_c84_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.raises(SpecError, match="cannot be used") as caught:
        Store.of_user()
    assert str(tmp_path / "home") in str(caught.value)


def test_without_platformdirs_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(MissingDependency, match=r"validate\[gist\]"):
        Store.of_user()


def test_a_note_is_kept(store):
    store.note("any / text", {"a": 1})
    assert store.noted("any / text") == {"a": 1}
    assert store.noted("another") is None


def test_a_broken_note_is_none(store):
    store.note("place", {"a": 1})
    (note,) = (store.root / "notes").iterdir()
    note.write_text('{"a"')
    assert store.noted("place") is None


def test_what_a_killed_process_left_is_swept(store):
    left = store.root / "trees/.new-left"
    fresh = store.root / "trees/.new-fresh"
    for folder in (left, fresh):
        folder.mkdir()
        (folder / "model.py").write_text("")
    os.utime(left, (time.time() - 7200,) * 2)
    store.put(FILES)
    assert not left.exists()
    assert fresh.exists()


WRITE = """
import sys
sys.modules["filelock"] = None
from pathlib import Path
from pytest_transformer_validate.sources.fetch.store import Store
store = Store(Path(sys.argv[1]))
print(store.put({"model.py": b"x" * 300_000, "b.py": b"y" * 300_000}).name)
"""


def test_without_filelock_many_writers_make_one_tree(tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    names = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(names) == 1
    assert len(list((tmp_path / "cache/trees").iterdir())) == 1


HOLD = """
import sys, time
from pathlib import Path
from pytest_transformer_validate.sources.fetch.store import Store
with Store(Path(sys.argv[1])).locked("one"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_d21_the_lock_of_a_killed_process_is_free_at_once(store):
    """D21: the next one takes over in less than 2 s."""
    command = [sys.executable, "-c", HOLD, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
        process.wait()
    start = time.monotonic()
    with store.locked("one"):
        pass
    assert time.monotonic() - start < 2


def test_a_lock_that_stays_taken_is_not_waited_for_forever(store, monkeypatch):
    monkeypatch.setattr(store_module, "_LOCK_SECONDS", 0.05)
    with store.locked("one"), Store(store.root).locked("one"):
        pass
