"""One hash stands for names and contents."""

from __future__ import annotations

import hashlib

import pytest

from pytest_transformer_validate.sources.fetch.tree import File, Pin, Tree

FILES = {"model.py": b"x", "config.json": b"{}"}
TREE = Tree.of(FILES)
PIN = Pin("a" * 40, "me", TREE)


def test_the_hash_is_over_name_length_and_sha256():
    text = "".join(
        f"{name}\0{len(data)}\0{hashlib.sha256(data).hexdigest()}\n"
        for name, data in sorted(FILES.items())
    )
    assert TREE.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert TREE.size == 3


@pytest.mark.parametrize(
    "files",
    [
        {"model.py": b"y", "config.json": b"{}"},
        {"Model.py": b"x", "config.json": b"{}"},
        {"model.py": b"{}", "config.json": b"x"},
        {"model.py": b"x"},
        {**FILES, "a.py": b""},
    ],
)
def test_every_change_changes_it(files):
    assert Tree.of(files).sha256 != TREE.sha256


def test_the_order_of_files_does_not():
    assert Tree.of(dict(reversed(FILES.items()))).sha256 == TREE.sha256


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../x", "/x", "a/../b", "a//b", "a\\b", "a\nb", "a\0b", "a/", "\ud800"]
)
def test_a_path_that_is_not_plain_has_no_hash(path):
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        Tree({path: File(0, "0" * 64)})


def test_no_files_have_no_hash():
    with pytest.raises(ValueError, match="no file"):
        Tree({})


def test_differences_are_named():
    new = Tree.of({"model.py": b"y", "extra.py": b""})
    assert TREE.difference(new) == [
        "config.json (removed)",
        "extra.py (added)",
        "model.py (changed)",
    ]


def test_a_pin_survives_json():
    assert Pin.from_json(PIN.to_json()) == PIN


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("revision", "A" * 40, "revision must be 40 lower-case hex"),
        ("revision", None, "revision must be 40"),
        ("owner", 3, "owner must be a name or null"),
        ("sha256", "0" * 64, "does not fit the files"),
        ("files", {}, "no file"),
        ("files", {"../x": {"sha256": "0" * 64, "size": 1}}, "no plain path"),
        ("files", {"x": {"sha256": "0" * 63, "size": 1}}, "files.x.sha256 must be 64"),
        ("files", {"x": {"sha256": "0" * 64, "size": True}}, "files.x.size must be"),
        ("files", {"x": {"sha256": "0" * 64, "size": -1}}, "files.x.size must be"),
        ("files", {"x": []}, "files.x must be an object"),
        ("more", 1, "must have the keys"),
    ],
)
def test_a_wrong_pin_names_its_key(key, value, text):
    with pytest.raises(ValueError, match=text):
        Pin.from_json({**PIN.to_json(), key: value})
