"""From a check and a probe to a Record: the one place where exceptions become statuses."""

from __future__ import annotations

import contextlib
import importlib
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_transformer_validate.containment.stops import TimeLimit
from pytest_transformer_validate.errors import (
    Blocked,
    CheckFailed,
    MissingDependency,
    NotApplicable,
    SourceError,
    SubjectError,
)
from pytest_transformer_validate.measures.measurement import Measurement
from pytest_transformer_validate.report.record import FAILURES, Record
from pytest_transformer_validate.report.text import plain, printable
from pytest_transformer_validate.report.trace import exception_line, model_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.containment.room import Room
    from pytest_transformer_validate.probe.probe import Probe

LOAD = "load"
_OWN_PACKAGE = __name__.partition(".")[0]
_CALLS = ("torch.nn.modules.module", "torch.autograd.function")


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
    from its ``tierN::name`` (no line is written without it); ``passes`` are exceptions by which a
    check speaks to pytest itself. ``room`` is where the model's code runs: what it did there that
    no verdict may rest on makes the check ``broken``. Without it nothing is contained.
    """

    model: str
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    again: Callable[[str], str] | None = None
    passes: tuple[type[BaseException], ...] = ()
    room: Room | None = None
    _load_error: BaseException | None = None
    _load_traceback: TracebackType | None = None
    _load_shown: bool = False
    _ran: dict[str, set[str | None]] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)

    def judge(self, check: Check, case: str | None, get_probe: Callable[[], Probe]) -> Outcome:
        """Run one check (or one case of it). What the model raises becomes the record's status."""
        start = time.perf_counter()
        context: dict[str, Any] = {}
        if self.room is None:
            verdict = self._verdict(check, case, get_probe, context)
        else:
            _import_before_models()
            with self.room:
                verdict = self._verdict(check, case, get_probe, context)
                found = self.room.objections()
            verdict = self._objected(check, case, verdict, found)
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
        except (CheckFailed, NotApplicable, Blocked) as forged:
            self._look_around(failed=not isinstance(forged, NotApplicable))
            if not _by_model(forged):
                if self.room is not None:
                    self.room.rest()
                return self._said(check, case, forged)
            return self._raised(
                check, case, forged, None if probe is None else probe.where_raised(forged)
            )
        except BaseException as raised:
            self._look_around()
            if self._ends_run(raised):
                raise
            if isinstance(raised, TimeLimit) and not context:
                self._load_error, self._load_traceback = raised, raised.__traceback__
            where = None if probe is None else probe.where_raised(raised)
            return self._raised(check, case, raised, where)

    def _said(
        self, check: Check, case: str | None, said: CheckFailed | NotApplicable | Blocked
    ) -> _Verdict:
        if isinstance(said, CheckFailed):
            text = self.failure_text(check, case, said.message)
            return _Verdict("failed", text, said.measurement, said, said.where)
        if isinstance(said, NotApplicable):
            return _Verdict("skipped", said.reason, said.measurement, said)
        return _Verdict("blocked", self.failure_text(check, case, said.place), error=said)

    def _objected(
        self, check: Check, case: str | None, verdict: _Verdict, found: list[str]
    ) -> _Verdict:
        """The verdict, broken where the model did what none may rest on."""
        told = [text for text in found if text.partition("\n")[0] not in verdict.message]
        if not told:
            return verdict
        if verdict.status in FAILURES:
            added = "\n".join(f"  {line}" for text in told for line in text.splitlines())
            return verdict._replace(message=f"{verdict.message}\n{added}")
        return _Verdict("broken", self.failure_text(check, case, "\n".join(told)))

    def _look_around(self, *, failed: bool = True) -> None:
        """Put back what is needed to say what happened."""
        if self.room is not None:
            self.room.house.limits.lift()
            self.room.look_around(failed=failed)

    def _ends_run(self, raised: BaseException) -> bool:
        """Whether it is a person's, or a word of the check to pytest, and not the model's."""
        if isinstance(raised, self.passes):
            return not _by_model(raised)
        if self.room is None:
            return isinstance(raised, KeyboardInterrupt | GeneratorExit)
        return self.room.house.interrupts.ends_run(raised)

    def _loaded(self, get_probe: Callable[[], Probe]) -> Probe:
        if self._load_error is not None:
            raise self._load_error.with_traceback(self._load_traceback)
        try:
            return get_probe()
        except BaseException as error:
            self._look_around()
            if self._ends_run(error):
                raise
            loud: BaseException = error
            if isinstance(error, CheckFailed | NotApplicable) and not _is_own(error):
                loud = SourceError(f"the model raised {type(error).__name__} while it was loaded")
            self._load_error, self._load_traceback = loud, error.__traceback__
            raise loud from error.__cause__

    def _call(self, check: Check, case: str | None, probe: Probe) -> Measurement | None:
        if probe.subject.quantised and not check.quantised:
            raise NotApplicable(probe.subject.quantised)
        if check.tasks is not None and probe.subject.task.task_type not in check.tasks:
            task = probe.subject.task.task_type
            raise NotApplicable(f"{check.name} promises nothing about task {task}")
        arguments = [probe] if case is None else [probe, case]
        try:
            with probe.threads():
                measured = check.function(*arguments, **self.limits.get(check.name, {}))
        except MissingDependency as error:
            if _by_model(error):
                raise
            raise NotApplicable(str(error)) from error
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
        limit = None if self.room is None else self.room.house.limits.explain(raised)
        text = text if limit is None else f"{text}\n{limit}"
        if raised is not self._load_error:
            who = "the check raised" if where is None else f"the model raised in {where}"
            text = text if own_words else f"{who}\n{text}"
            text = self.failure_text(check, case, text)
            return _Verdict("broken", text, error=raised, where=where)
        shown, self._load_shown = self._load_shown, True
        if check.name == LOAD:
            text = f"the model does not load\n{text}"
            return _Verdict("broken", self.failure_text(check, case, text), error=raised)
        line = f"blocked by {LOAD}: {exception_line(raised).partition(chr(10))[0]}"
        text = self.failure_text(check, case, line if shown else f"{line}\n{text}")
        return _Verdict("blocked", text, error=raised)

    def failure_text(self, check: Check, case: str | None, message: str) -> str:
        """The text of a failure: the check, its message, the command that repeats it."""
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
            return "stale", self.failure_text(check, case, text)
        return status, message


def _import_before_models() -> None:
    """Now, because functions are compared with what they were before any model ran, and because
    inside a model's scope no bytecode is written, and every run would compile."""
    with contextlib.suppress(ImportError):
        importlib.import_module(f"{_OWN_PACKAGE}.probe.probe")


def _by_model(error: BaseException) -> bool:
    """Whether an exception came out of the call of a module: whatever its class, it is the
    model's."""
    names = _modules_of(error)
    return not _is_own(error) and any(name in _CALLS for name in names)


def _is_own(error: BaseException) -> bool:
    names = _modules_of(error)
    return bool(names) and names[-1].partition(".")[0] == _OWN_PACKAGE


def _modules_of(error: BaseException) -> list[str]:
    frames = traceback.walk_tb(error.__traceback__)
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in frames]


def _name(check: Check, case: str | None) -> str:
    return check.name if case is None else f"{check.name}[{case}]"
