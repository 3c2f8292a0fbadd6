"""Text of a model never reaches a terminal as it is, objects never a report."""

from __future__ import annotations

import json

import pytest

from pytest_transformer_validate.errors import error_line, first_line, text_of
from pytest_transformer_validate.redaction import REDACTED, remember
from pytest_transformer_validate.report.text import (
    LONGEST,
    LONGEST_OUTPUT,
    capped,
    escaped,
    plain,
    printable,
    tail,
)
from pytest_transformer_validate.report.trace import exception_line, model_traceback

TOKEN = "hf_" + "Ab3" * 12


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07 nul\x00 del\x7f csi\x9b", "bell\\x07 nul\\x00 del\\x7f csi\\x9b"),
        ("left\u202eright", "left\\u202eright"),
        ("line\u2028next", "line\\u2028next"),
        ("no\u200bspace \ufffe", "no\\u200bspace \\ufffe"),
        ("half \udc80", "half \\udc80"),
        ("carriage\rreturn", "carriage\\rreturn"),
        ("windows\r\nline", "windows\nline"),
        ("modèle\xa0模型 😀", "modèle\xa0模型 😀"),
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


def test_credentials_are_redacted() -> None:
    assert TOKEN not in printable(f"a {TOKEN}")
    assert TOKEN not in json.dumps(plain({TOKEN: [TOKEN, {TOKEN}]}))


@pytest.mark.parametrize("before", [0, LONGEST - 20, LONGEST])
def test_no_half_of_a_credential_is_left_before_a_cut(before: int) -> None:
    shown = capped("." * before + TOKEN + "." * LONGEST)
    assert "hf_" not in shown
    assert len(shown) < LONGEST + 100
    assert "hf_" not in first_line("." * (before % 190) + TOKEN, 200)


def test_no_half_of_a_credential_is_left_after_a_cut() -> None:
    shown = tail("x " * 500_000 + TOKEN + "." * (LONGEST_OUTPUT - 20))
    assert TOKEN[20:] not in shown
    assert shown.startswith("(1000019 characters dropped)")
    assert len(shown) < LONGEST_OUTPUT + 100


class Hostile(Exception):
    """Raises wherever text is made of it."""

    def __str__(self) -> str:
        raise SystemExit(0)

    __repr__ = __str__


class Loud(str):
    """Text that raises when it is used."""

    def __str__(self) -> str:
        raise ValueError

    __len__ = __getitem__ = partition = __str__  # type: ignore[assignment]


def test_what_raises_when_it_is_asked_for_its_text() -> None:
    assert text_of(Hostile()) == "<unprintable>"
    assert error_line(Hostile()) == "Hostile: <unprintable>"
    assert exception_line(Hostile()) == "Hostile: <unprintable>"
    assert model_traceback(Hostile()).endswith("Hostile: <unprintable>")
    assert plain(["a", Hostile()]) == ["a", "<unprintable>"]


def test_texts_that_are_objects_of_their_own_kind() -> None:
    class Says(Exception):
        def __str__(self) -> str:
            return Loud("words")

    assert type(text_of(Says())) is str
    assert exception_line(Says()).endswith("Says: words")
    assert plain(Loud("words")) == "words"


def test_a_text_of_50_megabytes_is_cut() -> None:
    error = RuntimeError("x" * 50_000_000)
    assert len(exception_line(error)) < LONGEST + 100
    assert len(model_traceback(error)) < LONGEST + 100
    assert len(error_line(error)) == 200


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("::error file=a.py::done", r"\x3a:error file=a.py::done"),
        ("first\n \t::set-output name=a::b", "first\n \t\\x3a:set-output name=a::b"),
        ("all ##[error]of it", r"all \x23#[error]of it"),
        ("model.py::tier1::causality", "model.py::tier1::causality"),
        ("## heading [1]", "## heading [1]"),
    ],
)
def test_no_line_is_a_command_to_the_runner_of_a_ci(said: str, shown: str) -> None:
    assert escaped(said) == printable(said) == escaped(shown) == shown


@pytest.mark.parametrize("text", ["it is swordfish", "it is swordfish " + "x" * 200])
def test_a_text_that_was_shown_is_looked_at_again_when_credentials_change(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printable(text) == text
    monkeypatch.setenv("A_KEY", "swordfish")
    assert printable(text) == text.replace("swordfish", REDACTED)
    monkeypatch.delenv("A_KEY")
    assert printable(text) == text
    remember(["swordfish"])
    assert printable(text) == text.replace("swordfish", REDACTED)


def test_a_short_text_of_another_kind_is_not_taken_for_one_that_was_shown() -> None:
    class Liar(str):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("harmless")

    assert printable("harmless") == "harmless"
    assert str.__eq__(printable(Liar("\x1b[31m")), "\\x1b[31m")
