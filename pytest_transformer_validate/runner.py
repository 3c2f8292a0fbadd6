"""From a check and a probe to a Record: the one place where exceptions become statuses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_transformer_validate.errors import (
    Blocked,
    CheckFailed,
    MissingDependency,
    NotApplicable,
    SourceError,
    SubjectError,
)
from pytest_transformer_validate.measures.measurement import Measurement
from pytest_transformer_validate.report.record import Record
from pytest_transformer_validate.report.text import plain, printable
from pytest_transformer_validate.report.trace import exception_line, model_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.probe.probe import Probe

LOAD = "load"


@dataclass(frozen=True)
class Outcome:
    """A record, and the exception behind it where there was one (for ``--pdb``)."""

    record: Record
    error: BaseException | None = None


class _Verdict(NamedTuple):
    status: str
    message: str = ""
    measurement: Measurement | None = None
    error: BaseException | None = None
    where: str | None = None


@dataclass
class ModelRun:
    """Judges the checks of one model and remembers what they share.

    ``limits`` holds overrides as ``{check: {limit: value}}``; ``declared`` the deviations in
    force as ``{check or check[case]: reason}``; ``again`` makes the command that repeats a check
    from its ``tierN::name`` (no line is written without it); ``stops`` are the exceptions besides
    ``Exception`` that end a check and not the run, such as the one that a time limit raises.
    """

    model: str
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    again: Callable[[str], str] | None = None
    stops: tuple[type[BaseException], ...] = (SystemExit,)
    _load_error: BaseException | None = None
    _load_traceback: TracebackType | None = None
    _load_shown: bool = False
    _ran: dict[str, set[str | None]] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)

    def judge(self, check: Check, case: str | None, get_probe: Callable[[], Probe]) -> Outcome:
        """Run one check (or one case of it). What the model raises becomes the record's status."""
        start = time.perf_counter()
        context: dict[str, Any] = {}
        verdict = self._verdict(check, case, get_probe, context)
        status, message = self._apply_declared(check, case, verdict.status, verdict.message)
        measurement = verdict.measurement
        record = Record(
            model=self.model,
            tier=check.tier,
            check=check.name,
            case=case,
            status=status,
            message=printable(message),
            where=None if verdict.where is None else printable(verdict.where),
            numbers=plain(measurement.numbers()) if measurement is not None else {},
            context=plain(context),
            seconds=time.perf_counter() - start,
        )
        return Outcome(record, verdict.error)

    def _verdict(
        self,
        check: Check,
        case: str | None,
        get_probe: Callable[[], Probe],
        context: dict[str, Any],
    ) -> _Verdict:
        """What the check says; ``context`` is filled as soon as there is a model."""
        probe = None
        try:
            probe = self._loaded(get_probe)
            context.update(probe.context())
            return _Verdict("passed", measurement=self._call(check, case, probe))
        except CheckFailed as failure:
            text = self._failure_text(check, case, failure.message)
            return _Verdict("failed", text, failure.measurement, failure, failure.where)
        except NotApplicable as skip:
            return _Verdict("skipped", skip.reason, skip.measurement, skip)
        except Blocked as blocked:
            text = self._failure_text(check, case, blocked.place)
            return _Verdict("blocked", text, error=blocked)
        except self._caught() as raised:
            where = None if probe is None else probe.where_raised(raised)
            return self._raised(check, case, raised, where)

    def _caught(self) -> tuple[type[BaseException], ...]:
        return (Exception, *self.stops)

    def _loaded(self, get_probe: Callable[[], Probe]) -> Probe:
        if self._load_error is not None:
            raise self._load_error.with_traceback(self._load_traceback)
        try:
            return get_probe()
        except self._caught() as error:
            self._load_error, self._load_traceback = error, error.__traceback__
            raise

    def _call(self, check: Check, case: str | None, probe: Probe) -> Measurement | None:
        if check.tasks is not None and probe.subject.task.task_type not in check.tasks:
            task = probe.subject.task.task_type
            raise NotApplicable(f"{check.name} promises nothing about task {task}")
        arguments = [probe] if case is None else [probe, case]
        with probe.threads():
            measured = check.function(*arguments, **self.limits.get(check.name, {}))
        if not isinstance(measured, Measurement | None):
            raise TypeError(
                f"a check returns a Measurement or None; {check.name} returned "
                f"{type(measured).__name__}"
            )
        return measured

    def _raised(
        self, check: Check, case: str | None, raised: BaseException, where: str | None
    ) -> _Verdict:
        own_words = isinstance(raised, SourceError | SubjectError | MissingDependency)
        text = str(raised) if own_words else model_traceback(raised)
        if raised is not self._load_error:
            who = "the check raised" if where is None else f"the model raised in {where}"
            text = text if own_words else f"{who}\n{text}"
            text = self._failure_text(check, case, text)
            return _Verdict("broken", text, error=raised, where=where)
        shown, self._load_shown = self._load_shown, True
        if check.name == LOAD:
            text = f"the model does not load\n{text}"
            return _Verdict("broken", self._failure_text(check, case, text), error=raised)
        line = f"blocked by {LOAD}: {exception_line(raised).partition(chr(10))[0]}"
        text = self._failure_text(check, case, line if shown else f"{line}\n{text}")
        return _Verdict("blocked", text, error=raised)

    def _failure_text(self, check: Check, case: str | None, message: str) -> str:
        name = _name(check, case)
        first, *rest = message.splitlines() or [""]
        lines = [f"{name} (tier {check.tier}): {first}", *(f"  {line}" for line in rest)]
        if self.again is not None:
            lines.append(f"  again: {self.again(f'tier{check.tier}::{name}')}")
        return "\n".join(lines)

    def _apply_declared(
        self, check: Check, case: str | None, status: str, message: str
    ) -> tuple[str, str]:
        """Excuse a declared failure; call a declaration stale once nothing of it failed."""
        name = _name(check, case)
        key = name if name in self.declared else check.name
        if key not in self.declared:
            return status, message
        ran = self._ran.setdefault(key, set())
        ran.add(case)
        if status == "failed":
            self._excused.add(key)
            return "xfailed", f"declared: {self.declared[key]}\n{message}"
        complete = key == name or len(ran) == len(check.cases)
        if status in {"passed", "skipped"} and complete and key not in self._excused:
            did = "does not apply" if status == "skipped" else "holds"
            text = (
                f"declared to fail and it {did}\n"
                f"declared reason: {self.declared[key]}\n"
                f"remove this line: {key!r}"
            )
            return "stale", self._failure_text(check, case, text)
        return status, message


def _name(check: Check, case: str | None) -> str:
    return check.name if case is None else f"{check.name}[{case}]"
