"""What a check said of a model, in pytest's words: outcomes, reports, properties."""

from __future__ import annotations

import functools
import unittest
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.report.record import Record
from pytest_transformer_validate.report.text import plain, printable
from pytest_transformer_validate.report.trace import model_traceback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.collection import CheckItem
    from pytest_transformer_validate.runner import Outcome

# They end the run or skip the item, and a model may raise them too.
_WORDS = (pytest.exit.Exception, unittest.SkipTest)
RECORD = pytest.StashKey[Record]()


class Verdict(Exception):
    """What a check says of a model, as the exception that ends a pytest item."""


def keep(item: CheckItem, record: Record) -> None:
    """Remember the record with the item, and its numbers as the item's properties."""
    if RECORD in item.stash:
        item.user_properties = []
    item.stash[RECORD] = record
    item.user_properties.extend(properties(record))


def forget(item: CheckItem) -> None:
    """Let go of what the reports have: pytest keeps the item until the run ends."""
    if RECORD in item.stash:
        del item.stash[RECORD]
    item.user_properties = []
    item._report_sections.clear()


def speak(outcome: Outcome) -> None:
    """End the item as the record says; with the model's own exception, for ``--pdb``, unless that
    would tell pytest something else."""
    record, error = outcome.record, outcome.error
    if record.status == "passed":
        return
    if record.status == "skipped":
        pytest.skip(record.message)
    if record.status == "xfailed":
        pytest.xfail(record.message.partition("\n")[0])
    if error is None or record.status == "stale":
        raise Verdict(record.message)
    if isinstance(error, Exception) and not isinstance(error, _WORDS):
        raise error
    raise Verdict(record.message).with_traceback(error.__traceback__)


def failure_repr(record: Record) -> Any:
    """The record's text in the form in which pytest carries failures through xdist."""
    try:
        raise Verdict(record.message)
    except Verdict:
        shown: Any = pytest.ExceptionInfo.from_current().getrepr(style="value", chain=False)
    if shown.reprcrash is not None:
        # pytest's summary of failures prints this whole on CI machines.
        shown.reprcrash.message = record.message.partition("\n")[0]
    return shown


def finish_report(
    item: CheckItem, call: pytest.CallInfo[None], report: pytest.TestReport
) -> Record | None:
    """The record that belongs to this report; made from it where the check could not speak."""
    record = item.stash.get(RECORD, None)
    if record is None and report.outcome != "passed" and report.when != "teardown":
        record = _record_without_check(item, call, report)
        keep(item, record)
    elif report.when != "call":
        return None
    if record is not None and record.status == "skipped" and report.skipped:
        report.longrepr = (str(item.model.id), 1, f"Skipped: {record.message}")
    if record is not None:
        report.user_properties = list(item.user_properties)
    return record


def properties(record: Record) -> Iterator[tuple[str, object]]:
    """The numbers of a record, one a property, for JUnit files and their readers."""
    yield "status", record.status
    if record.where is not None:
        yield "where", record.where
    yield from _flat("", record.numbers)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(_joined(prefix, key) if prefix else key, item)
    elif isinstance(value, list):
        if value and all(isinstance(row, list | dict) for row in value):
            return  # a table is for the page, not for a thousand properties
        for index, item in enumerate(value[:32]):
            yield from _flat(_joined(prefix, index), item)
    elif value is not None:
        yield prefix, value


@functools.lru_cache(maxsize=1024)
def _joined(prefix: str, key: object) -> str:
    """One object for a name, which comes again with every model."""
    return f"{prefix}.{key}"


def _record_without_check(
    item: CheckItem, call: pytest.CallInfo[None], report: pytest.TestReport
) -> Record:
    """A mark skipped it, a fixture of a conftest failed, a time limit struck before the check."""
    error = call.excinfo.value if call.excinfo is not None else None
    if report.skipped:
        message = str(getattr(error, "msg", "") or error or "skipped")
    else:
        message = f"{item.name} (tier {item.tier}): {model_traceback(error) if error else ''}"
    return Record(
        model=item.model.id,
        tier=item.tier,
        check=item.check.name,
        case=item.case,
        status="skipped" if report.skipped else "broken",
        message=printable(message),
        seconds=plain(call.duration),
    )


def limit_time(item: CheckItem, settings: Any) -> bool | None:
    """Set the timer of a check, for pytest-timeout; ``None`` where that has to do it itself.

    What the process needs before any model does not count.
    """
    import pytest_timeout

    deadline = item.model.room.house.deadline
    if settings.method != "signal" or not deadline.works():
        return None
    if settings.disable_debugger_detection or not pytest_timeout.is_debugging():
        if item.get_closest_marker("skip") is None:
            item.prepare()
        timed: Any = item
        timed.cancel_timeout = deadline.stop
        deadline.start(settings.timeout)
    return True
