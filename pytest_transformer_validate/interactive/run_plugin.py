"""What a run that is started in a notebook knows besides its arguments: a plugin of that run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.interactive.cell import Cell
from pytest_transformer_validate.isolation.policy import distributes
from pytest_transformer_validate.options import NOTEBOOK
from pytest_transformer_validate.report.text import printable
from pytest_transformer_validate.sources.live import LiveSource
from pytest_transformer_validate.sources.wording import near

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from pytest_transformer_validate.report.record import Record
    from pytest_transformer_validate.sources.base import Source

_COLOR = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Test:
    """A test that is no check: its id, its outcome in pytest's word, the text of a failure."""

    __test__ = False
    id: str
    outcome: str
    message: str = ""

    @property
    def failure(self) -> bool:
        """Whether pytest counts it as a failure."""
        return self.outcome in {"failed", "error"}


class Notebook:
    """Gives a run the notebook's variables and the cell's tests, and gathers what came of it."""

    __name__ = NOTEBOOK  # pytest registers a plugin under this name
    config: pytest.Config

    def __init__(self, variables: Mapping[str, Any], cell: str | None = None) -> None:
        self.variables = variables
        self.cell = cell
        self.records: list[Record] = []
        self.tests: dict[str, Test] = {}

    def source(self, spec: str) -> Source | None:
        """The variable that ``spec`` names, if it is one that can be a model. Raises SpecError
        for a text, which names no model until it is put into the line."""
        value = self.variables.get(spec)
        if isinstance(value, str):
            raise SpecError(f"{spec} is a text of this notebook: write --tb-model=${spec}")
        return LiveSource(spec, value) if callable(value) else None

    def hint(self, spec: str) -> str:
        """What is known of a spec that names nothing."""
        if spec in self.variables:
            kind = type(self.variables[spec]).__name__
            return f"{spec} is a variable of this notebook, and no model: its type is {kind}"
        names = [name for name, value in self.variables.items() if callable(value)]
        return f"no variable of this notebook has that name{near(spec, names)}"

    def kept_here(self, config: pytest.Config) -> Iterator[str]:
        """What of the run no other process has."""
        if self.cell is not None:
            yield "the tests of the cell are in this process"
        named = config.getoption("tb_model", None) or []
        for spec in [*named, config.getoption("tb_reference", None)]:
            if callable(self.variables.get(spec)):
                yield f"{spec} is a variable of this process"

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config
        elsewhere = config.pluginmanager.hasplugin("xdist") and distributes(config)
        for what in self.kept_here(config) if elsewhere else ():
            raise pytest.UsageError(f"{what}, and no worker of pytest-xdist has it: give -n 0")
        if self.cell is not None and config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args[:] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if self.cell is not None and isinstance(collector, pytest.Session) and report.passed:
            report.result.append(Cell.make(collector, self.cell, self.variables))
        return report

    @pytest.hookimpl(optionalhook=True)
    def pytest_tb_record(self, record: Record) -> None:
        self.records.append(record)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "tb_record", None) is None:
            hook = self.config.hook.pytest_report_teststatus
            self._note(report, hook(report=report, config=self.config)[0])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report, "error")

    def _note(self, report: pytest.TestReport | pytest.CollectReport, outcome: str) -> None:
        if outcome:
            text = printable(_COLOR.sub("", report.longreprtext)) if report.failed else ""
            self.tests[report.nodeid] = Test(printable(report.nodeid), outcome, text)
