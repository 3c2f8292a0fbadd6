"""The hooks that show what was found: in the terminal, in files, in the rows of pytest-html."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import __version__
from pytest_transformer_validate.collection import unmatched
from pytest_transformer_validate.report import baseline, github, guest, terminal
from pytest_transformer_validate.report import json as json_report
from pytest_transformer_validate.report.json import Stored
from pytest_transformer_validate.report.record import Record
from pytest_transformer_validate.report.terminal import Line
from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_transformer_validate.models import Run

# Under this key workers tell how many checks they held back, by the hint that says why.
DESELECTED = "tb_deselected"
_MOST_NAMES = 5
_PACKAGE = str(Path(__file__).parent)
_MARKUP = {"good": {"green": True}, "bad": {"red": True}, "odd": {"yellow": True}}


class Results:
    """Gathers the records and reports them. Lives where the run is controlled."""

    def __init__(self, config: pytest.Config, run: Run, held_back: Mapping[str, int]) -> None:
        self.config = config
        self.run = run
        self.records: dict[str, Record] = {}
        self.locations: dict[str, tuple[str, int]] = {}
        self.contexts: dict[str, dict[str, Any]] = {}
        self.remarks: list[str] = []
        self.held_back = held_back
        self.held_back_by_workers: dict[str, int] = {}

    def pytest_report_header(self) -> list[str]:
        settings = self.run.settings
        names = [model.id for model in self.run.models]
        if len(names) > _MOST_NAMES:
            names[_MOST_NAMES:] = [f"and {len(names) - _MOST_NAMES} more"]
        dtype = f", {settings.dtype}" if settings.dtype else ""
        about = f"{settings.device}{dtype}, seed {settings.seed}"
        lines = [f"transformer-validate {__version__}: {', '.join(names)} ({about})"]
        for model in self.run.models:
            if model.task is not None:
                lines.append(f"  {model.id}: task {model.task} (declared by --tb-task)")
            lines += [f"  {model.id}: {line}" for line in model.source.provenance().splitlines()]
        lines.append(f"  {self._isolation()}")
        if self.config.get_verbosity() > 0:
            lines += [f"  {line}" for line in self._declared()]
        return [printable(line) for line in lines]

    def _isolation(self) -> str:
        if any(source.fetched for source in self.run.sources):
            return "fetched code runs in workers, which have no credentials"
        count = len(self.config.getoption("tx", None) or [])
        where = f"{count} worker process{'es'[: 2 * (count != 1)]}" if count else "this process"
        return f"models run in {where}"

    def _declared(self) -> Iterator[str]:
        settings = self.run.settings
        for key in ("limits", "budgets"):
            for check, given in getattr(settings, key).items():
                yield from (f"{key[:-1]} {check}.{name} = {v}" for name, v in given.items())
        for check, reason in settings.expect_fail.items():
            yield f"expected to fail: {check}: {reason}"
        if settings.baseline is not None:
            yield f"baseline {settings.baseline.name}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: dict[str, Any] | None = getattr(report, "tb_record", None)
        if data is not None:
            record = Record.from_json(data)
            known = self.contexts.setdefault(record.model, record.context)
            if record.context == known:  # one for all records of a model
                data["context"] = known
                record = Record.from_json(data)
            self.records[report.nodeid] = record
            if (location := getattr(report, "tb_location", None)) is not None:
                self.locations[record.model] = location
            self.config.hook.pytest_tb_record(record=record)

    def in_order(self) -> list[Record]:
        """The records as one process would give them, whichever worker was first."""
        models = {model.id: place for place, model in enumerate(self.run.models)}
        checks = {check.name: place for place, check in enumerate(self.run.checks)}
        return sorted(self.records.values(), key=lambda r: (models[r.model], checks[r.check]))

    def _places(self) -> Iterator[tuple[str, tuple[str, int]]]:
        """Where the classes of the models stand that are in the repository."""
        repository = Path(os.environ.get("GITHUB_WORKSPACE") or self.config.rootpath)
        for model in self.run.models:
            beside = (str(model.path), 1) if model.path.is_file() else None
            location = self.locations.get(model.id, beside)
            if location is not None and Path(location[0]).is_relative_to(repository):
                file = Path(location[0]).relative_to(repository).as_posix()
                yield model.id, (file, int(location[1]))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", None) or {}
        self.held_back_by_workers.update(output.get(DESELECTED, {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not self.run.settings.allow_skipped:
            self.remarks += terminal.unjudged(self.in_order())
        elsewhere = self.held_back or self.held_back_by_workers
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not elsewhere:
            self.remarks += unmatched(self.config, self.run.models, self.run.checks)
        if exitstatus == pytest.ExitCode.OK and self.remarks:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        if self.run.baseline is not None and self.records:
            self._compare(session, self.run.baseline)
        if self.run.settings.json is not None:
            self._write_json(session, self.run.settings.json)
        if os.environ.get("GITHUB_STEP_SUMMARY") and self.records:
            self._write_summary(Path(os.environ["GITHUB_STEP_SUMMARY"]))

    def _write_summary(self, path: Path) -> None:
        text = github.summary(self.in_order(), self.remarks)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
        except OSError as error:
            self.remarks.append(f"GITHUB_STEP_SUMMARY: the file could not be written: {error}")

    def _compare(self, session: pytest.Session, old: Stored) -> None:
        new = Stored({**json_report.about(), **self._facts(session)}, tuple(self.in_order()))
        found = baseline.compare(old, new, list(self._budgets()))
        path = self.run.settings.baseline
        self.remarks += found.lines("" if path is None else path.name)
        judged = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if found.worse and session.exitstatus in judged:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _budgets(self) -> Iterator[baseline.BudgetOf]:
        declared = self.run.settings.budgets
        for check in self.run.checks:
            for budget in check.budgets:
                growth = declared.get(check.name, {}).get(budget.limit)
                if growth is not None:
                    yield baseline.BudgetOf(
                        check=check.name, number=budget.number, growth=growth, timed=budget.timed
                    )

    def _facts(self, session: pytest.Session) -> dict[str, Any]:
        return {
            "arguments": [str(arg) for arg in self.config.invocation_params.args],
            "exit": int(session.exitstatus),
            "seed": self.run.settings.seed,
            "workers": len(self.config.getoption("tx", None) or []),
        }

    def _write_json(self, session: pytest.Session, path: Path) -> None:
        run = {**json_report.about(), **self._facts(session)}
        models = [(model.id, model.source.spec) for model in self.run.models]
        try:
            json_report.write(path, self.in_order(), models=models, run=run)
        except OSError as error:
            self.remarks.append(f"--tb-json: the file could not be written: {error}")

    @pytest.hookimpl(trylast=True)
    def pytest_internalerror(self, excrepr: object) -> None:
        terminal_ = self.config.pluginmanager.getplugin("terminalreporter")
        if terminal_ is not None and _PACKAGE in str(excrepr):
            terminal_.write_line(
                "INTERNALERROR> pytest-transformer-validate had a part in this: please open an "
                "issue of it with these lines and the header of the run"
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        quiet = self.config.get_verbosity() < 0 or self.config.getoption("no_summary")
        narrow = terminalreporter.isatty or "COLUMNS" in os.environ
        width = self.config.get_terminal_writer().fullwidth if narrow else None
        lines = [] if quiet else terminal.summary(self.in_order(), width)
        for hint, count in {**self.held_back_by_workers, **self.held_back}.items():
            lines.append(Line(f"{hint} ({count} check{'s'[: count != 1]} not run)"))
        lines += map(Line, self.remarks)
        if lines:
            terminalreporter.write_sep("=", "transformer validation")
            for line in lines:
                terminalreporter.write_line(printable(line.text), **_MARKUP.get(line.tone, {}))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for command in github.commands(self.in_order(), dict(self._places())):
                terminalreporter.write_line(command)


class HtmlRows:
    """What pytest-html shows of a check besides its outcome, and of the models above the rows.

    Its rows are sorted by outcome, failures first, unless its ini key initial_sort says else.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.rules = {c.name: c.summary.replace("``", "") for c in results.run.checks}

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_html_report_title(self, report: Any) -> None:
        report.title = guest.TITLE
        if report.data["renderCollapsed"] == ["passed"]:  # the default
            report.set_data("renderCollapsed", ["passed", "skipped"])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = _record(report)
        if record is not None:
            from pytest_html import extras

            shown = extras.html(guest.details(record, self.rules.get(record.check, "")))
            vars(report)["extras"] = [*getattr(report, "extras", []), shown]

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        """What was captured; the message stands in the details."""
        if _record(report) is not None:
            data[:] = data[bool(report.longreprtext) :] if report.sections else []

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        if self.results.records:
            sources = {
                model.id: ", ".join(filter(None, (model.source.spec, model.source.provenance())))
                for model in self.results.run.models
            }
            results = self.results
            prefix.append(guest.summary(results.in_order(), sources, results.remarks))

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        cells[2:2] = guest.HEADER

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        if cells:
            cells[2:2] = guest.row(_record(report))


def _record(report: pytest.TestReport) -> Record | None:
    data: dict[str, Any] | None = getattr(report, "tb_record", None)
    return None if data is None else Record.from_json(data)
