"""From a check and a probe to a Record: the one place where exceptions become statuses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import (
    Blocked,
    CheckFailed,
    NotApplicable,
    SourceError,
    SubjectError,
)
from pytest_transformer_validate.report.record import Record
from pytest_transformer_validate.report.trace import exception_line, model_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.measures.measurement import Measurement
    from pytest_transformer_validate.probe.probe import Probe

LOAD = "load"


@dataclass(frozen=True)
class Outcome:
    """A record, and the exception behind it where there was one (for ``--pdb``)."""

    record: Record
    error: BaseException | None = None


@dataclass
class ModelRun:
    """Judges the checks of one model and remembers what they share.

    ``limits`` holds overrides as ``{check: {limit: value}}``; ``declared`` the deviations in
    force as ``{check or check[case]: reason}``; ``again`` makes the command that repeats a check
    from its ``tierN::name`` (no line is written without it).
    """

    model: str
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    again: Callable[[str], str] | None = None
    _load_error: BaseException | None = None
    _load_shown: bool = False
    _ran: dict[str, set[str | None]] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)

    def judge(self, check: Check, case: str | None, get_probe: Callable[[], Probe]) -> Outcome:
        """Run one check (or one case of it). What the model raises becomes the record's status."""
        start = time.perf_counter()
        context: dict[str, Any] = {}
        measurement: Measurement | None = None
        error: BaseException | None = None
        where = None
        try:
            probe = self._loaded(get_probe)
            context = probe.context()
            measurement = self._call(check, case, probe)
            status, message = "passed", ""
        except CheckFailed as failure:
            error, measurement, where = failure, failure.measurement, failure.where
            status, message = "failed", self._failure_text(check, case, failure)
        except NotApplicable as skip:
            status, message, measurement = "skipped", skip.reason, skip.measurement
        except Blocked as blocked:
            status, message, error = "blocked", blocked.place, blocked
        except (Exception, SystemExit) as raised:
            error = raised
            status, message = self._broken(check, raised)
        status, message = self._apply_declared(check, case, status, message)
        record = Record(
            model=self.model,
            tier=check.tier,
            check=check.name,
            case=case,
            status=status,
            message=message,
            where=where,
            numbers=measurement.numbers() if measurement is not None else {},
            context=context,
            seconds=time.perf_counter() - start,
        )
        return Outcome(record, error)

    def _loaded(self, get_probe: Callable[[], Probe]) -> Probe:
        if self._load_error is not None:
            raise self._load_error
        try:
            return get_probe()
        except (Exception, SystemExit) as error:
            self._load_error = error
            raise

    def _call(self, check: Check, case: str | None, probe: Probe) -> Measurement:
        task = probe.subject.task
        if check.tasks is not None and task.task_type not in check.tasks:
            raise NotApplicable(f"{check.name} promises nothing about task {task}")
        arguments = [probe] if case is None else [probe, case]
        return check.function(*arguments, **self.limits.get(check.name, {}))

    def _broken(self, check: Check, raised: BaseException) -> tuple[str, str]:
        own_words = isinstance(raised, SourceError | SubjectError)
        text = str(raised) if own_words else model_traceback(raised)
        if raised is not self._load_error:
            return "broken", f"{check.name}: the model raised\n{text}" if not own_words else text
        shown, self._load_shown = self._load_shown, True
        if check.name == LOAD:
            return "broken", text
        line = f"blocked by {LOAD}: {exception_line(raised).partition(chr(10))[0]}"
        return "blocked", line if shown else f"{line}\n{text}"

    def _failure_text(self, check: Check, case: str | None, failure: CheckFailed) -> str:
        name = check.name if case is None else f"{check.name}[{case}]"
        first, *rest = failure.message.splitlines() or [""]
        lines = [f"{name} (tier {check.tier}): {first}", *(f"  {line}" for line in rest)]
        if self.again is not None:
            lines.append(f"  again: {self.again(f'tier{check.tier}::{name}')}")
        return "\n".join(lines)

    def _apply_declared(
        self, check: Check, case: str | None, status: str, message: str
    ) -> tuple[str, str]:
        """Excuse a declared failure; call a declaration stale once nothing of it failed."""
        name = check.name if case is None else f"{check.name}[{case}]"
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
            return "stale", (
                f"{name} (tier {check.tier}): declared to fail and it {did}\n"
                f"  declared reason: {self.declared[key]}\n"
                f"  remove this line: {key!r}"
            )
        return status, message
