"""What ``%pytest`` gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.report import inline, terminal
from pytest_transformer_validate.validation import Result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_transformer_validate.interactive.run_plugin import Test
    from pytest_transformer_validate.report.record import Record

_WORDS: dict[int, str] = {
    pytest.ExitCode.OK: "passed",
    pytest.ExitCode.TESTS_FAILED: "failed",
    pytest.ExitCode.INTERRUPTED: "interrupted",
    pytest.ExitCode.INTERNAL_ERROR: "ended by an error of pytest or of a plugin",
    pytest.ExitCode.USAGE_ERROR: "not run: what was typed is wrong",
    pytest.ExitCode.NO_TESTS_COLLECTED: "nothing was judged",
}


class RunResult(Result):
    """The records of a run, as a sequence; ``tests`` are those that are no checks, ``exit_code``
    is pytest's. A notebook shows it as a table with figures."""

    def __init__(self, records: Iterable[Record], tests: Iterable[Test], exit_code: int) -> None:
        super().__init__(records)
        self.tests = tuple(tests)
        self.exit_code = exit_code

    @property
    def passed(self) -> bool:
        """Whether pytest ended with 0."""
        return self.exit_code == pytest.ExitCode.OK

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of the checks."""
        return tuple(self)

    @property
    def failed_tests(self) -> tuple[Test, ...]:
        """The tests that failed and are no checks."""
        return tuple(test for test in self.tests if test.failure)

    def __str__(self) -> str:
        lines = [self._verdict(), *(line.text for line in terminal.summary(self))]
        lines += [f"  {test.outcome}: {test.id}" for test in self.failed_tests]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RunResult: {self._verdict()}>"

    def _verdict(self) -> str:
        word = _WORDS.get(self.exit_code, "ended")
        checks = _counted("check", len(self), len(self.failures))
        tests = _counted("test", len(self.tests), len(self.failed_tests))
        counts = ", ".join(filter(None, (checks, tests)))
        if not counts and self.passed:
            return "nothing was to run (exit 0)"
        return f"{word} (exit {int(self.exit_code)})" + (f": {counts}" if counts else "")

    def _repr_html_(self) -> str:
        bad = [(test.id, test.message) for test in self.failed_tests]
        return inline.page(self, self._verdict(), bad)


def _counted(noun: str, every: int, bad: int) -> str:
    """``3 checks``, ``1 of 3 checks``, or nothing where there is none."""
    text = f"{every} {noun}{'s'[: every != 1]}"
    return f"{bad} of {text}" if bad else text if every else ""
