"""tb.lock is read strictly, written whole, and made to be reviewed."""

from __future__ import annotations

import json

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.fetch.lock import Lock
from pytest_transformer_validate.sources.fetch.tree import Pin, Tree

PIN = Pin("a" * 40, "me", Tree.of({"model.py": b"x", "config.json": b"{}"}))
OTHER = Pin("b" * 40, None, Tree.of({"model.py": b"y"}))


def test_without_a_file_nothing_is_accepted(tmp_path):
    lock = Lock.read(tmp_path / "tb.lock")
    assert lock.find("gist:x") is None
    assert not (tmp_path / "tb.lock").exists()


def test_what_is_written_is_read(tmp_path):
    lock = Lock(tmp_path / "tb.lock").add("gist:x", PIN).add("gist:y", OTHER)
    lock.write()
    assert Lock.read(tmp_path / "tb.lock") == lock
    assert [path.name for path in tmp_path.iterdir()] == ["tb.lock"]


def test_the_file_is_sorted_and_a_line_a_fact(tmp_path):
    Lock(tmp_path / "tb.lock").add("gist:y", OTHER).add("gist:x", PIN).write()
    text = (tmp_path / "tb.lock").read_text()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert list(values["models"]) == ["gist:x", "gist:y"]
    assert (tmp_path / "tb.lock").stat().st_mode & 0o777 == 0o644


def test_a_typed_revision_is_accepted_beside_the_other(tmp_path):
    lock = Lock(tmp_path / "tb.lock").add("gist:x", PIN).add("gist:x", OTHER, typed=True)
    assert lock.find("gist:x") == PIN
    assert lock.find("gist:x", "b" * 40) == OTHER
    assert lock.find("gist:x", "a" * 40) == PIN
    assert lock.find("gist:x", "c" * 40) is None
    assert lock.add("gist:x", PIN, typed=True) is lock


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("<<<<<<< HEAD\n", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"models": {}}', "keys models, version"),
        ('{"models": {}, "version": 2}', "version must be 1"),
        ('{"models": {}, "version": true}', "version must be 1"),
        ('{"models": [], "version": 1}', "models must be an object"),
        ('{"models": {"gist:x": 3}, "version": 1}', "models.gist:x: it must be an object"),
        ('{"models": {"a": 1, "a": 2}, "version": 1}', "the key is there twice"),
    ],
)
def test_a_broken_lock_is_refused(tmp_path, text, words):
    path = tmp_path / "tb.lock"
    path.write_text(text)
    with pytest.raises(SpecError, match=words) as caught:
        Lock.read(path)
    assert "take it from git again" in str(caught.value)
    assert "tb.lock" in str(caught.value)


def test_a_hash_that_was_edited_is_refused(tmp_path):
    path = tmp_path / "tb.lock"
    Lock(path).add("gist:x", PIN).write()
    path.write_text(path.read_text().replace(PIN.tree.files["model.py"].sha256, "0" * 64))
    with pytest.raises(SpecError, match="does not fit the files"):
        Lock.read(path)


def test_a_folder_is_no_lock(tmp_path):
    (tmp_path / "tb.lock").mkdir()
    with pytest.raises(SpecError, match="cannot read"):
        Lock.read(tmp_path / "tb.lock")


def test_a_lock_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be written") as caught:
        Lock(tmp_path / "file/tb.lock").add("gist:x", PIN).write()
    assert "--tb-trust=SHA256" in str(caught.value)
