"""A run against an older one."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_transformer_validate.report.baseline import BudgetOf, compare
from pytest_transformer_validate.report.json import Stored
from pytest_transformer_validate.report.record import Record

RUN = {"machine": "a" * 12, "workers": 0, "python": "3.11.1", "packages": {"torch": "2.12.0"}}
CONTEXT = {"device": "cpu", "dtype": "float32", "parameters": 544}
SIZE = BudgetOf(check="size", number="bytes", growth=1.1)
SPEED = BudgetOf(check="size", number="bytes", growth=1.5, timed=True)


def record(status: str = "passed", check: str = "size", **more: Any) -> Record:
    more = {"context": CONTEXT, **more}
    return Record(model="m.py", tier=1, check=check, status=status, **more)


def stored(*records: Record, **run: Any) -> Stored:
    return Stored({**RUN, **run}, records)


def sized(number: object, **context: Any) -> Record:
    return record(numbers={"bytes": number}, context={**CONTEXT, **context})


@pytest.mark.parametrize(
    ("was", "now", "worse"),
    [
        ("passed", "failed", True),
        ("passed", "skipped", True),
        ("passed", "xfailed", True),
        ("skipped", "failed", True),
        ("xfailed", "stale", True),
        ("passed", "passed", False),
        ("failed", "broken", False),
        ("failed", "passed", False),
        ("skipped", "xfailed", False),
        ("failed", "skipped", False),
    ],
)
def test_a_verdict_is_worse_where_less_can_be_relied_on(was: str, now: str, worse: bool) -> None:
    found = compare(stored(record(was, case="long")), stored(record(now, case="long")), [])
    line = f"m.py::tier1::size[long]: {now}, was {was}"
    assert found.worse == ([line] if worse else [])
    assert found.notes == []


def test_what_is_new_is_not_worse_and_what_is_gone_is_said() -> None:
    found = compare(stored(record(check="old")), stored(record("failed", check="new")), [])
    assert found.worse == []
    assert found.notes == ["1 check of it did not run here, the first m.py::tier1::old"]


def test_a_budget_is_held_and_the_growth_named() -> None:
    found = compare(stored(sized(1000)), stored(sized(1234)), [SIZE])
    assert found.worse == [
        "m.py::tier1::size: bytes 1234, was 1000: 1.23 times (limit 1.1 = size.bytes_growth)"
    ]
    assert compare(stored(sized(1000)), stored(sized(1100)), [SIZE]).worse == []
    (line,) = compare(stored(sized(0)), stored(sized(1)), [SIZE]).worse
    assert "was 0: from nothing" in line


@pytest.mark.parametrize(
    ("was", "now", "reason"),
    [
        (sized(None), sized(1), "the baseline does not have the number"),
        (sized(1), sized("nan"), "this run does not have the number"),
        (record("skipped"), sized(1), "the baseline does not have the number"),
    ],
)
def test_a_budget_that_cannot_be_held_is_said(was: Record, now: Record, reason: str) -> None:
    found = compare(stored(was), stored(now), [SIZE])
    assert found.notes == [f"m.py::tier1::size: size.bytes_growth was not held: {reason}"]


@pytest.mark.parametrize(
    ("run", "context", "other"),
    [
        ({"machine": "b" * 12}, {}, "machine"),
        ({"workers": 2}, {}, "workers"),
        ({}, {"device": "cuda:0"}, "device"),
        ({"machine": None}, {"dtype": "bfloat16"}, "machine and dtype"),
    ],
)
def test_times_are_compared_on_the_same_machine_alone(run: Any, context: Any, other: str) -> None:
    slow = sized(9.0, **context)
    found = compare(stored(sized(1.0)), stored(slow, **run), [SPEED])
    assert found.worse == []
    (note,) = found.notes
    assert note.endswith(f"was not held: times tell nothing with another {other}")
    assert len(compare(stored(sized(1.0)), stored(sized(9.0)), [SPEED]).worse) == 1


def test_what_changed_is_named_beside_what_got_worse() -> None:
    new = stored(record("failed", context={**CONTEXT, "parameters": 600}), packages={"torch": "3"})
    assert compare(stored(record()), new, []).lines("old.json") == [
        "baseline old.json: 1 thing got worse",
        "  m.py::tier1::size: failed, was passed",
        "  changed since: torch 2.12.0 -> 3; m.py: parameters 544 -> 600",
    ]
    assert compare(stored(record()), stored(record(), python="3.13"), []).lines("old.json") == []
