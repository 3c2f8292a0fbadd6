"""Exceptions that end a check and not the run, and those that a person sent."""

from __future__ import annotations

import signal
import threading
import traceback
from typing import Any

_DEBUGGER = "_pytest.debugging"


class TimeLimit(BaseException):
    """A check has run longer than it may. No ``except Exception`` of a model stops it."""


class LeftProcess(SystemExit):
    """A model asked for the end of the process."""


class Interrupts:
    """Tells Ctrl-C from a KeyboardInterrupt that a model raises, by listening to the signal. The
    polite request to end (SIGTERM), which would end Python at once, interrupts as Ctrl-C does."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._came = False

    def listen(self) -> None:
        """Note from now on that a signal came; only the main thread of a process can."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if callable(before) or (number == signal.SIGTERM and before == signal.SIG_DFL):
                self._before[number] = before
                signal.signal(number, self._note)

    def stop_listening(self) -> None:
        """Give the signals back to who had them."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)
        self._before.clear()

    def _note(self, number: int, frame: Any) -> Any:
        self._came = True
        before = self._before.get(number)
        if callable(before):
            return before(number, frame)
        raise KeyboardInterrupt(signal.Signals(number).name)

    def ends_run(self, error: BaseException) -> bool:
        """Whether a person asked for the end of the run, and not the model."""
        if isinstance(error, KeyboardInterrupt):
            if self._came or signal.SIGINT in self._before:
                return self._came
            # Nobody listens: it may be a person's, unless the signal is ignored (nohup).
            return callable(signal.getsignal(signal.SIGINT))
        if isinstance(error, GeneratorExit):
            return True
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__") == _DEBUGGER for frame, _ in frames)
