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
    """Tells Ctrl-C from a KeyboardInterrupt that a model raises, by listening to the signal."""

    def __init__(self) -> None:
        self._before: Any = None
        self._own: Any = None
        self._came = False

    def listen(self) -> None:
        """Note from now on that the signal came; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGINT)
        if not callable(before):
            return

        def note(number: int, frame: Any) -> Any:
            self._came = True
            return before(number, frame)

        self._before, self._own = before, note
        signal.signal(signal.SIGINT, note)

    def stop_listening(self) -> None:
        """Give the signal back to who had it."""
        if self._own is not None and signal.getsignal(signal.SIGINT) is self._own:
            signal.signal(signal.SIGINT, self._before)
        self._before = self._own = None

    def ends_run(self, error: BaseException) -> bool:
        """Whether a person asked for the end of the run, and not the model."""
        if isinstance(error, KeyboardInterrupt):
            return self._own is None or self._came
        if isinstance(error, GeneratorExit):
            return True
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__") == _DEBUGGER for frame, _ in frames)
