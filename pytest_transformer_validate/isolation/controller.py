"""The workers of a run, where it is controlled: what they run, how they end, and who is next."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import outcome
from pytest_transformer_validate.containment import deadline
from pytest_transformer_validate.isolation.lost import Lost
from pytest_transformer_validate.isolation.scheduling import whole_models
from pytest_transformer_validate.isolation.worker import INPUT
from pytest_transformer_validate.report.record import Record
from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.models import Run, RunModel

_EVERY = 0.25
_INTERRUPTED = int(pytest.ExitCode.INTERRUPTED)
_AFTER_INTERRUPT = 1.5
_STACK_LINES = 24
_MOST_NAMES = 30
_EARLY = "ended before its work was done"


@dataclass
class _Running:
    """A test that a worker runs, and since when."""

    test: str
    since: float
    killed: bool = False


class Workers:
    """Follows the workers: names to the others the model that ended one, kills a worker that is
    stuck, and lists what never ran."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._lost = Lost(Path(tempfile.mkdtemp(prefix="transformer-validate-")))
        self._nodes: dict[str, Any] = {}
        self._running: dict[str, _Running] = {}
        self._ends: dict[str, str] = {}
        self._collected: dict[str, None] = {}
        self._reported: set[str] = set()
        self._not_run: list[str] = []
        self._over = threading.Event()

    # workers come...

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[INPUT] = str(self._lost.folder)
        self._nodes[node.gateway.id] = node
        node.putevent = self._listening(node.putevent)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        return whole_models(config, log) if config.getoption("dist") == "loadfile" else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._collected.update(dict.fromkeys(ids))

    def pytest_sessionstart(self) -> None:
        threading.Thread(target=self._watch, daemon=True, name="transformer-validate").start()

    def _listening(self, putevent: Any) -> Any:
        """Note what is running from what a worker says."""

        def put(event: tuple[str, dict[str, Any]]) -> None:
            name, said = event
            worker = said["node"].gateway.id if "node" in said else ""
            if name == "logstart":
                self._running[worker] = _Running(said["nodeid"], time.monotonic())
            elif name == "runtest_protocol_complete":
                self._running.pop(worker, None)
            elif name == "workerfinished" and _is_early(said["node"]):
                event = "errordown", {"node": said["node"], "error": _EARLY}
            putevent(event)

        return put

    # ... and go

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        if not error or (getattr(node, "workeroutput", None) is not None and error != _EARLY):
            return
        name = node.gateway.id
        running = self._running.pop(name, None)
        node.between_tests = running is None
        how = _how_it_ended(node) if running is None or not running.killed else self._stuck()
        stack = self._stack(name)
        _end_group(node)
        if running is not None:
            self._ends[running.test] = f"{how}\n{stack}".strip()
            self._name_to_others(running.test, how)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any) -> None:
        model = self._model_of(crashitem)
        how = self._ends.get(crashitem)
        if model is None:
            if how is not None:
                report.longrepr = f"{report.longrepr}\n{printable(how)}"
            return
        how = how or "the worker ended before it could report"
        self._name_to_others(crashitem, how.partition("\n")[0])
        record = self._record(model, crashitem, how)
        report.when, report.longrepr = "call", record.message
        report.user_properties = list(outcome.properties(record))
        report.tb_record = record.to_json()

    def _record(self, model: RunModel, test: str, how: str) -> Record:
        tier, _, name = test.removeprefix(f"{model.id}::").partition("::")
        check, _, case = name.removesuffix("]").partition("[")
        known = next(each for each in self._run.checks if each.name == check)
        return Record(
            model=model.id,
            tier=int(tier.removeprefix("tier")),
            check=check,
            case=case or None,
            status="broken",
            message=printable(model.run.failure_text(known, case or None, how)),
        )

    def _name_to_others(self, test: str, how: str) -> None:
        model = self._model_of(test)
        if model is not None:
            index = self._run.models.index(model)
            if self._lost.why(index) is None:
                check = test.removeprefix(f"{model.id}::")
                self._lost.note(index, f"blocked by {check}: {how}")

    def _model_of(self, test: str) -> RunModel | None:
        owners = [model for model in self._run.models if test.startswith(f"{model.id}::tier")]
        return max(owners, key=lambda model: len(model.id), default=None)

    def _stack(self, worker: str) -> str:
        """What Python wrote down of a crash."""
        with contextlib.suppress(OSError):
            text = self._lost.crash_file(worker).read_text(encoding="utf-8", errors="replace")
            before, thread, stack = text.partition("Current thread")
            first = before.partition("\n")[0]
            return "\n".join([first, *(thread + stack).splitlines()[:_STACK_LINES]])
        return ""

    def _stuck(self) -> str:
        return (
            f"the worker was killed: the check ran {deadline.GRACE:g} s longer than its limit of "
            f"{self._run.settings.timeout:g} s, in code that does not stop when it is told to"
        )

    # a check that does not stop

    def _watch(self) -> None:
        limit = self._run.settings.timeout + deadline.GRACE
        while not self._over.wait(_EVERY):
            for worker, running in list(self._running.items()):
                late = time.monotonic() - running.since > limit
                if late and not running.killed and self._has_limit(running.test):
                    running.killed = True
                    _signal(self._nodes[worker], signal.SIGKILL)

    def _has_limit(self, test: str) -> bool:
        model = self._model_of(test)
        limited = bool(self._run.settings.timeout)
        return limited and model is not None and not test.startswith(f"{model.id}::tier3")

    # the end

    def pytest_keyboard_interrupt(self) -> None:
        """Workers lead groups of their own, to which a terminal does not send Ctrl-C."""
        for node in self._nodes.values():
            _signal(node, signal.SIGINT)
        timer = threading.Timer(_AFTER_INTERRUPT, self._end_all)
        timer.daemon = True
        timer.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reported.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self._not_run = [name for name in self._collected if name not in self._reported]
        if self._not_run:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._not_run:
            return
        terminalreporter.section("never ran, because too many workers ended")
        for name in self._not_run[:_MOST_NAMES]:
            terminalreporter.write_line(printable(name))
        if len(self._not_run) > _MOST_NAMES:
            terminalreporter.write_line(f"... and {len(self._not_run) - _MOST_NAMES} more")

    def pytest_unconfigure(self) -> None:
        self._over.set()
        self._end_all()
        shutil.rmtree(self._lost.folder, ignore_errors=True)

    def _end_all(self) -> None:
        for node in self._nodes.values():
            _end_group(node)


def _is_early(node: Any) -> bool:
    """Whether a worker says that it is done and nobody told it to stop: it hears no more, because
    of something that a model did to it. pytest-xdist takes that for an error of its own."""
    said = node.workeroutput
    asked = said["shouldfail"] or said["shouldstop"] or said["exitstatus"] == _INTERRUPTED
    return not (asked or node._shutdown_sent)


def _how_it_ended(node: Any) -> str:
    popen: subprocess.Popen[bytes] | None = getattr(node.gateway._io, "popen", None)
    if popen is None:
        return "the worker ended before it could report"
    try:
        code = popen.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "the worker does not answer any more"
    if code >= 0:
        return f"the worker's process ended with code {code} before it could report"
    name = signal.Signals(-code).name
    if -code != getattr(signal, "SIGKILL", 9):
        return f"the worker's process was ended by {name}"
    return f"the worker's process was ended by {name}, likely for want of memory{_peak()}"


def _peak() -> str:
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return f" (no worker so far used more than {used // 1024} MB)"
    return ""


def _end_group(node: Any) -> None:
    """End what a worker has left running."""
    _signal(node, getattr(signal, "SIGKILL", signal.SIGTERM))


def _signal(node: Any, number: int) -> None:
    popen = getattr(node.gateway._io, "popen", None)
    if popen is None:
        return
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(popen.pid, number)
    if popen.poll() is None:
        with contextlib.suppress(OSError):
            popen.send_signal(number)
