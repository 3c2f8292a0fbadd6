"""The hooks of a run that has models; registered only then."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import __version__, collection, outcome
from pytest_transformer_validate.collection import CheckItem, OwnReports
from pytest_transformer_validate.isolation.controller import Workers
from pytest_transformer_validate.isolation.worker import Worker
from pytest_transformer_validate.report import html, terminal
from pytest_transformer_validate.report import json as json_report
from pytest_transformer_validate.report.record import Record
from pytest_transformer_validate.report.text import printable
from pytest_transformer_validate.resolution import Messenger
from pytest_transformer_validate.sinks import Sinks

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pytest_transformer_validate.models import Run, RunModel

_DESELECTED = "tb_deselected"


def register(config: pytest.Config, run: Run) -> None:
    """Register what a run with models needs."""
    manager = config.pluginmanager
    manager.register(OwnReports(), "transformer_validate_reports")
    models = Models(config, run)
    manager.register(models, "transformer_validate_models")
    manager.register(Sinks(run), "transformer_validate_sinks")
    if hasattr(config, "workerinput"):
        manager.register(Worker(config, run), "transformer_validate_worker")
        return
    manager.register(Messenger(run.sources), "transformer_validate_messenger")
    manager.register(Results(config, run, models), "transformer_validate_results")
    if config.getoption("tx", None):
        manager.register(Workers(config, run), "transformer_validate_workers")
    elif not config.getini("faulthandler_timeout"):  # Python has one such timer
        last_resort = os.fdopen(os.dup(2), "w")
        config.add_cleanup(last_resort.close)
        run.house.deadline.last_resort = last_resort
    if manager.hasplugin("html"):
        manager.register(HtmlColumns(), "transformer_validate_html")


class Models:
    """Collects the checks, runs them, and lets go of a model after its last test."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self.config = config
        self.run = run
        self.held_back: dict[str, int] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.Session) and report.passed:
            collection.add_models(report, collector, self.run)
        return report

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        collection.parametrize(metafunc, self.run)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        self.held_back = collection.hold_back(config, items, self.run)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            model = collection.entry_of(item)
            if model is not None:
                model.waiting += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        done = yield
        model = collection.entry_of(item)
        if model is not None:
            model.waiting -= 1
            if model.waiting <= 0 or self._left_for_good(item, nextitem, model):
                model.release()
        return done

    def _left_for_good(
        self, item: pytest.Item, nextitem: pytest.Item | None, model: RunModel
    ) -> bool:
        """A worker has all items and runs a part: there a model ends with its last check."""
        if not hasattr(self.config, "workerinput"):
            return False
        follower = None if nextitem is None else collection.entry_of(nextitem)
        return isinstance(item, CheckItem) and follower is not model

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool | None:
        """The limit of a check is set by a timer that strikes again."""
        if not isinstance(item, CheckItem):
            return None
        return outcome.limit_time(item, settings)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if isinstance(item, CheckItem):
            record = outcome.finish_report(item, call, report)
            if record is not None:
                vars(report)["tb_record"] = record.to_json()
        return report

    def pytest_sessionfinish(self) -> None:
        for model in self.run.models:
            model.release()
        gc.unfreeze()
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[_DESELECTED] = self.held_back

    def pytest_sessionstart(self) -> None:
        self.run.house.interrupts.listen()

    def pytest_unconfigure(self) -> None:
        self.run.house.close()


class Results:
    """Gathers the records and reports them. Lives where the run is controlled."""

    def __init__(self, config: pytest.Config, run: Run, models: Models) -> None:
        self.config = config
        self.run = run
        self.models = models
        self.records: dict[str, Record] = {}
        self.remarks: list[str] = []
        self.held_back: dict[str, int] = {}

    def pytest_report_header(self) -> list[str]:
        settings = self.run.settings
        names = ", ".join(model.id for model in self.run.models)
        dtype = f", {settings.dtype}" if settings.dtype else ""
        about = f"{settings.device}{dtype}, seed {settings.seed}"
        lines = [f"transformer-validate {__version__}: {names} ({about})"]
        for model in self.run.models:
            lines += [f"  {model.id}: {line}" for line in model.source.provenance().splitlines()]
        if any(source.fetched for source in self.run.sources):
            lines.append("  fetched code runs in workers, which have no credentials")
        return [printable(line) for line in lines]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: dict[str, Any] | None = getattr(report, "tb_record", None)
        if data is not None:
            record = Record.from_json(data)
            self.records[report.nodeid] = record
            self.config.hook.pytest_tb_record(record=record)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", None) or {}
        self.held_back.update(output.get(_DESELECTED, {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not self.run.settings.allow_skipped:
            self.remarks += terminal.unjudged(list(self.records.values()))
        if exitstatus == pytest.ExitCode.OK and self.remarks:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        if self.run.settings.json is not None:
            self._write_json(session, self.run.settings.json)

    def _write_json(self, session: pytest.Session, path: Path) -> None:
        run = {
            "arguments": [str(arg) for arg in self.config.invocation_params.args],
            "exit": int(session.exitstatus),
            "seed": self.run.settings.seed,
        }
        models = [(model.id, model.source.spec) for model in self.run.models]
        try:
            json_report.write(path, list(self.records.values()), models=models, run=run)
        except OSError as error:
            self.remarks.append(f"--tb-json: the file could not be written: {error}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        quiet = self.config.get_verbosity() < 0 or self.config.getoption("no_summary")
        lines = [] if quiet else terminal.summary(list(self.records.values()))
        for hint, count in {**self.held_back, **self.models.held_back}.items():
            lines.append(f"{hint} ({count} check{'s'[: count != 1]} not run)")
        lines += self.remarks
        if lines:
            terminalreporter.section("transformer validation")
            for line in lines:
                terminalreporter.write_line(printable(line))


class HtmlColumns:
    """Columns of pytest-html."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        cells[2:2] = html.HEADER

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        if cells:
            data = getattr(report, "tb_record", None)
            cells[2:2] = html.row(None if data is None else Record.from_json(data))
