"""Lines about records."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.report import html, terminal
from pytest_transformer_validate.report.record import STATUSES, Record

CONTEXT = {
    "task": "causal_lm (assumed)",
    "parameters": 1_234_567,
    "device": "cpu",
    "dtype": "float32",
    "seed": 0,
    "weights": "random (seed 0)",
}


def record(
    check: str, status: str, *, model: str = "m.py", tier: int = 1, **more: object
) -> Record:
    return Record(model=model, tier=tier, check=check, status=status, **more)  # type: ignore[arg-type]


def test_the_summary_counts_by_model_and_tier() -> None:
    records = [
        record("a", "blocked"),
        record("b", "passed", context=CONTEXT, seconds=1.26),
        record("c", "skipped", tier=2),
        record("a", "xfailed", model="n.py"),
    ]
    assert terminal.summary(records) == [
        (
            "m.py: task causal_lm (assumed), 1.2M parameters, cpu, float32, seed 0, "
            "weights: random (seed 0)",
            "",
        ),
        ("  tier 1   1 passed  1 blocked                         1.3 s", "bad"),
        ("  tier 2                        1 skipped              0.0 s", "odd"),
        ("n.py", ""),
        ("  tier 1                                   1 xfailed   0.0 s", "odd"),
    ]


def test_the_summary_fits_the_width() -> None:
    records = [
        record("a", status, context=CONTEXT, seconds=1) for status in STATUSES for _ in range(40)
    ]
    lines = [line.text for line in terminal.summary(records, 60)]
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == " ".join(
        " ".join(line.text for line in terminal.summary(records)).split()
    ), "nothing is left out"
    assert len(terminal.summary(records)) == 2


def test_what_blocked_the_checks_is_said_once() -> None:
    text = "(tier 1): blocked by load: SourceError: no\n  details"
    records = [record(name, "blocked", message=f"{name} {text}") for name in "abc"]
    records += [record("d", "blocked", message="d (tier 2): blocked by other: x", tier=2)]
    lines = [line.text for line in terminal.summary(records)]
    assert lines[-2:] == ["  blocked by load: SourceError: no", "  blocked by other: x"]
    assert len(lines) == 5


def test_a_model_is_unjudged_when_all_was_skipped() -> None:
    reasons = [record(f"c{n}", "skipped", message=f"reason {n}\nmore") for n in range(40)]
    assert terminal.unjudged([*reasons, record("a", "xfailed")]) == []
    (line,) = terminal.unjudged(reasons)
    assert line.startswith("m.py: nothing was judged, every check was skipped (c0: reason 0; c1:")
    assert len(line) < 320


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (12_345, "12.3K"), (7_000_000_000, "7.0B")]
)
def test_counts_are_short(number: int, text: str) -> None:
    assert terminal.count(number) == text


def test_html_shows_the_number_and_its_limit() -> None:
    numbers = {"value": 0.123456, "limit": {"value": 1.1e-6, "rule": "16 u"}}
    assert html.numbers(record("a", "failed", numbers=numbers)) == ("0.123", "1.1e-06 = 16 u")
    assert html.numbers(record("a", "failed")) == ("", "")
