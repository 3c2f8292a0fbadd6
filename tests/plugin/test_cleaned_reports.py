"""Reports are cleaned whole, and not copied where nothing was to clean."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pytest_transformer_validate.redaction import REDACTED, redact
from pytest_transformer_validate.sinks import clean

TOKEN = "hf_" + "Ab3" * 12
PLAIN: dict[str, Any] = {
    "message": "",
    "where": None,
    "numbers": {"value": 0.25, "rows": [{"name": "a", "shape": [2, 3]}], "pair": ("a", 1)},
    "notes": ["one", "two"],
}


def _report(**given: Any) -> pytest.TestReport:
    given = {"sections": [], "user_properties": [], "longrepr": None, **given}
    extra = {"tb_record": given.pop("record", {})}
    return pytest.TestReport(
        nodeid="m.py::tier1::one",
        location=("m.py", 0, "one"),
        keywords={},
        outcome="passed",
        when="call",
        **given,
        **extra,
    )


def test_what_is_clean_is_left_where_it_is() -> None:
    report = _report(
        record=copy.deepcopy(PLAIN),
        user_properties=[("status", "passed"), ("value", 0.25)],
        sections=[("Captured stdout call", "said")],
    )
    before = dict(vars(report))
    clean(report, redact, redact)
    assert vars(report) == before
    for name in ("tb_record", "user_properties", "sections"):
        assert vars(report)[name] is before[name]
    assert vars(report)["tb_record"] == PLAIN


@pytest.mark.parametrize(
    "hidden",
    [
        {"message": TOKEN},
        {TOKEN: None},
        {"numbers": {"rows": [{"name": "a"}, {"name": TOKEN}]}},
        {"numbers": {"rows": [{TOKEN: 1}]}},
        {"pair": (1, (None, TOKEN))},
        {"notes": ["one", TOKEN]},
        {"notes": [1, [2.5, True, [TOKEN]]]},
    ],
)
def test_what_is_hidden_deep_in_a_record_is_found(hidden: dict[str, Any]) -> None:
    report = _report(record={**copy.deepcopy(PLAIN), **hidden})
    clean(report, redact, redact)
    shown = repr(vars(report)["tb_record"])
    assert TOKEN not in shown
    assert shown == repr({**PLAIN, **hidden}).replace(TOKEN, REDACTED)


def test_properties_sections_and_texts_are_cleaned() -> None:
    report = _report(
        user_properties=[("status", "passed"), ("note", TOKEN)],
        sections=[("Captured stdout call", f"said {TOKEN}")],
        longrepr=f"it is {TOKEN}",
    )
    clean(report, redact, redact)
    assert report.user_properties == [("status", "passed"), ("note", REDACTED)]
    assert report.sections == [("Captured stdout call", f"said {REDACTED}")]
    assert report.longrepr == f"it is {REDACTED}"
