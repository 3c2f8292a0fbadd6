"""What every reporter of pytest gets to see: no credential, and nothing raw of a model."""

from __future__ import annotations

import functools
import linecache
import operator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.collection import entry_of
from pytest_transformer_validate.errors import text_of
from pytest_transformer_validate.redaction import redact, secrets
from pytest_transformer_validate.report.text import (
    LONGEST_OUTPUT,
    NO_TEXT,
    escaped,
    printable,
    tail,
)

if TYPE_CHECKING:
    import warnings
    from collections.abc import Callable, Generator

    from pytest_transformer_validate.models import Run


class Sinks:
    """Cleans reports and warnings before terminal, JUnit, pytest-html and others read them.

    Reports of tests about a model are redacted, escaped and cut, others redacted only. A worker
    does not know the credentials that were withheld from it: its reports are redacted once more
    where the run is controlled.
    """

    def __init__(self, run: Run) -> None:
        self.heads = tuple(f"{model.id}::" for model in run.models)
        self._before: dict[str, pytest.TestReport] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if entry_of(item) is not None:
            clean(report, _texts_of_model(), _output_of_model)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid.startswith(self.heads):
            clean(report, _texts_of_model(), _output_of_model)
            self._share(report)
        else:
            clean(report, redact, redact)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        clean(report, redact, redact)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr: Any) -> None:
        _mapped(excrepr, _texts_of_model())

    @pytest.hookimpl(tryfirst=True)
    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        shown: Any = warning_message
        shown.message = printable(text_of(shown.message))
        line = shown.line or linecache.getline(shown.filename, shown.lineno)
        shown.line = printable(line.strip())
        shown.filename = printable(shown.filename)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """pytest-metadata keeps variables of CI machines, URLs among them."""
        if session.config.pluginmanager.hasplugin("metadata"):
            from pytest_metadata.plugin import metadata_key

            known: dict[str, Any] = session.config.stash.get(metadata_key, {})
            known.update({key: _mapped(value, redact) for key, value in known.items()})

    def _share(self, report: pytest.TestReport) -> None:
        """Give a report what it has in common with the one before of the same test: pytest keeps
        all of them until the run ends."""
        before = self._before.pop(report.nodeid, None)
        for name in ("keywords", "user_properties", "sections"):
            if before is not None and getattr(before, name) == getattr(report, name):
                setattr(report, name, getattr(before, name))
        if report.when != "teardown":
            self._before[report.nodeid] = report


def _texts_of_model() -> Callable[[str], str]:
    return functools.partial(printable, longest=LONGEST_OUTPUT, values=secrets())


def _output_of_model(text: str) -> str:
    return escaped(tail(text))


def clean(
    report: pytest.TestReport | pytest.CollectReport,
    text: Callable[[str], str],
    output: Callable[[str], str],
) -> None:
    """Put every text of a report through ``text``, captured output through ``output``."""
    sections = [(text(title), output(content)) for title, content in report.sections]
    if sections != report.sections:
        report.sections = sections
    for name in ("longrepr", "wasxfail", "user_properties", "tb_record"):
        if hasattr(report, name):
            setattr(report, name, _mapped(getattr(report, name), text))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with its texts changed; the same object where there was nothing to change. Lines
    of text are changed as the one text that they are."""
    if value is None or type(value) in NO_TEXT:
        return value
    if isinstance(value, str):
        changed = change(value)
        return value if type(value) is str and changed == value else changed
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        ended = all(line.endswith("\n") for line in value)
        whole = "".join(value)[:-1] if ended else "\n".join(value)
        changed = change(whole)
        end = "\n" if ended else ""
        return value if changed == whole else [line + end for line in changed.split("\n")]
    if isinstance(value, list | tuple):
        items = [_mapped(item, change) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    if isinstance(value, dict):
        pair = tuple(value), tuple(value.values())
        new = _mapped(pair, change)
        return value if new is pair else dict(zip(*new, strict=True))
    if hasattr(value, "toterminal"):  # what pytest keeps of an exception
        vars(value).update({name: _mapped(item, change) for name, item in vars(value).items()})
    return value
