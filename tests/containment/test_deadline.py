"""A limit of time that strikes again, and only where a model runs."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.containment import deadline
from pytest_transformer_validate.containment.deadline import Deadline
from pytest_transformer_validate.containment.stops import TimeLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm here")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deadline]:
    monkeypatch.setattr(deadline, "AGAIN", 0.05)
    limit = Deadline()
    yield limit
    limit.stop()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_it_strikes_again(limit: Deadline) -> None:
    limit.start(0.05)
    for _ in range(3):
        with pytest.raises(TimeLimit, match=r"Timeout \(>0.05s\)"):
            time.sleep(5)
    passed = limit.passed()
    assert passed is not None
    assert "went on when it was told to stop" in passed


def test_nothing_strikes_in_time_or_after_the_end(limit: Deadline) -> None:
    limit.start(5)
    assert limit.passed() is None
    limit.stop()
    limit.start(0.05)
    limit.stop()
    time.sleep(0.1)
    assert limit.passed() is None


def test_who_had_the_alarm_has_it_again(limit: Deadline) -> None:
    before = signal.getsignal(signal.SIGALRM)
    limit.start(5)
    assert signal.getsignal(signal.SIGALRM) is not before
    limit.stop()
    assert signal.getsignal(signal.SIGALRM) is before
