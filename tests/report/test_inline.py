"""The page that a notebook shows: what is in it, in which order, and how large it may be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_transformer_validate.report import inline
from pytest_transformer_validate.report.record import Record

if TYPE_CHECKING:
    import pytest


def record(status: str = "passed", **fields: object) -> Record:
    given = {"model": "net", "tier": 1, "check": "sound", "message": "", **fields}
    return Record(status=status, **given)  # type: ignore[arg-type]


BAD = record("failed", check="causality", message="<b>looks</b> ahead", numbers={"value": 0.5})
CURVE = record(numbers={"value": 1.0, "losses": [3.5, 2.5, 1.5]})


def statuses(page: str) -> list[str]:
    return re.findall(">(passed|failed|skipped)</td>", page)


def test_failures_stand_open_and_first() -> None:
    page = inline.page([record(), BAD, record("skipped")], "failed")
    assert statuses(page) == ["failed", "passed", "skipped"]
    opened = page.partition("<details>")[0]
    assert statuses(opened) == ["failed"]
    assert "&lt;b&gt;looks&lt;/b&gt; ahead" in opened
    assert "<b>" not in page
    assert "<summary>2 other checks</summary>" in page


def test_no_text_brings_credentials_or_markup() -> None:
    token = "ghp_" + "x" * 36
    evil = f"<script>{token}</script>\x1b[31m"
    bad = record(
        "failed", check=evil, model=evil, message=evil, where=evil, numbers={evil: [evil]}
    )
    page = inline.page([bad, record(model="b")], evil, [(evil, evil)])
    assert token not in page
    assert "<script" not in page
    assert "\x1b" not in page


def test_figures_are_folded_into_the_row() -> None:
    page = inline.page([CURVE], "passed")
    assert "<summary>1 check</summary>" in page
    assert re.search("<details><summary>1 figure.*?</summary>.*?<svg.*?polyline", page)


def test_what_is_too_large_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = len(inline.page([CURVE], "")) - len(inline.page([record()], ""))
    monkeypatch.setattr(inline, "MOST_BYTES", 2 * one)
    page = inline.page([CURVE] * 5, "passed")
    assert page.count("<svg") == 2
    assert "figures of 3 checks are left out" in page


def test_the_model_is_named_where_there_are_several() -> None:
    assert ">net</td>" not in inline.page([record()], "")
    assert ">other</td>" in inline.page([record(), record(model="other")], "")


def test_tests_that_failed_are_folded_with_their_text() -> None:
    page = inline.page([], "failed", [("cell::test_<x>", "assert 1 < 0")])
    assert "<summary>cell::test_&lt;x&gt;</summary>" in page
    assert ">assert 1 &lt; 0</pre>" in page
