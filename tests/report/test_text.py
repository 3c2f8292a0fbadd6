"""Text of a model never reaches a terminal as it is, objects never a report."""

from __future__ import annotations

import json

import pytest

from pytest_transformer_validate.report.text import plain, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07 nul\x00 del\x7f csi\x9b", "bell\\x07 nul\\x00 del\\x7f csi\\x9b"),
        ("left\u202eright", "left\\u202eright"),
        ("half \udc80", "half \\udc80"),
        ("carriage\rreturn", "carriage\\rreturn"),
        ("windows\r\nline", "windows\nline"),
        ("modèle 模型 😀", "modèle 模型 😀"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_anything_becomes_plain_json() -> None:
    class Odd(int):
        def __repr__(self) -> str:
            return "odd\x1b"

    given = {1: (2, {3.5}), "a\x1b": Odd(3), "n": None, "b": True}
    shown = plain(given)
    assert shown == {"1": [2, [3.5]], "a\\x1b": "odd\\x1b", "n": None, "b": True}
    json.dumps(shown)
