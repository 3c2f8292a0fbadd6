"""What pytest-html is given: cells, details under a row, models above the rows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_transformer_validate.report import guest
from pytest_transformer_validate.report.captions import CAPTIONS
from pytest_transformer_validate.report.record import Record

CONTEXT = {
    "task": "causal_lm <b>",
    "parameters": 1_234_567,
    "device": "cpu",
    "dtype": "float32",
    "seed": 0,
    "weights": "random (seed 0)",
}


def record(status: str = "failed", check: str = "c", model: str = "m.py", **more: Any) -> Record:
    return Record(**{"tier": 1, **more}, status=status, check=check, model=model)


def cells(given: Record | None) -> list[str]:
    return re.findall(r"<td[^>]*>(.*?)</td>", "".join(guest.row(given)))


@pytest.mark.parametrize(
    ("value", "limit", "part"),
    [
        (0.25, 0.5, "0.5 x limit"),
        (3e-6, 1e-6, "3 x limit"),
        (0.5, 0.0, ""),
        ("nan", 1.0, ""),
        (1, 3, "0.33 x limit"),
        (0.5, 1e-4, "5,000 x limit"),
    ],
)
def test_a_row_has_measured_limit_margin_and_where(value: Any, limit: float, part: str) -> None:
    numbers = {"value": value, "limit": {"value": limit, "rule": "<u>"}}
    measured, held, margin, where = cells(record(numbers=numbers, where="h.0"))
    assert (measured, where, margin) == (f"{value:.3g}" if value != "nan" else "nan", "h.0", part)
    assert held == f"{limit:.3g} = &lt;u&gt;"


def test_where_nothing_was_measured_the_reason_stands_there() -> None:
    broken = record("broken", message="c (tier 1): the model raised <i>\n  more", where="h.0")
    assert cells(broken) == ["the model raised &lt;i&gt;", "", "", "h.0"]
    assert cells(record("skipped", message="no cache")) == ["no cache", "", "", ""]


def test_every_row_has_as_many_cells_as_the_head() -> None:
    for given in (
        None,
        record(),
        record("passed"),
        record("skipped"),
        record(numbers={"value": 1}),
    ):
        assert len(guest.row(given)) == len(guest.HEADER)


def test_details_have_the_rule_of_what_holds_and_the_message_of_what_does_not() -> None:
    good = guest.details(record("passed", numbers={"longest": 12, "ways": ["a"]}), "Rows <b>.")
    assert "<p>Rows &lt;b&gt;.</p>" in good
    assert "<summary>1 number</summary>" in good
    assert "longest 12<" in good
    bad = guest.details(record(message="one\n<two>"), "Rows.")
    assert bad == "<div class=tb-details><pre>one\n&lt;two&gt;</pre></div>"
    assert guest.details(record("passed")) == ""
    assert guest.details(record("skipped", message="no cache")) == ""
    assert guest.details(record("blocked", message="by load\n  again: x")) == ""
    assert "by load" in guest.details(record("blocked", message="by load\n  why\n  again: x"))


def test_the_models_that_failed_come_first() -> None:
    good = record("passed", model="a.py", tier=2, context=CONTEXT)
    text = guest.summary([good, record(where="h.0")], {"a.py": "a.py::<Net>"})
    assert ">1 of 2 models passed</p>" in text
    assert re.findall("<t[hd][^>]*>(.*?)</t[hd]>", text.partition("</thead>")[2]) == [
        "m.py", "1 failed", "", "not loaded", "", "", "", "", "fails: c at h.0",
        "a.py", "", "1 passed", "causal_lm &lt;b&gt;", "1.2M",
        "a.py::&lt;Net&gt;; weights random (seed 0)", "cpu, float32, seed 0",
    ]  # fmt: skip


def test_a_model_that_was_not_judged_did_not_pass() -> None:
    text = guest.summary([record("skipped"), record("xfailed", model="a.py")], {})
    assert ">1 of 2 models passed</p>" in text


def test_remarks_on_the_run_stand_under_the_verdict() -> None:
    text = guest.summary([record()], {}, ["slower <than> before"])
    assert "passed</p><ul><li>slower &lt;than&gt; before</li></ul><table" in text


def test_of_many_failures_some_are_named() -> None:
    text = guest.summary([record(check=f"c{n}") for n in range(20)], {})
    assert "c7 and 12 more<" in text
    assert "c8" not in text


def test_what_another_failure_blocks_is_counted() -> None:
    text = guest.summary([record("broken", "load"), record("blocked"), record("blocked")], {})
    assert "fails: load and 2 more<" in text


def test_captions_name_checks_and_fields_that_are_there() -> None:
    from pytest_transformer_validate.checks.registry import all_checks

    assert set(CAPTIONS) <= {check.name for check in all_checks()}
