"""The limit of time of one check, which a model that catches everything does not outrun."""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pytest_transformer_validate.containment.stops import TimeLimit

if TYPE_CHECKING:
    from types import FrameType

# After the limit: how often a check is told to stop, and when the process is ended instead.
AGAIN = 1.0
GRACE = 30.0

_HERE = str(Path(__file__).parent)
_GUARDS = ("guard.py", "keeping.py", "attributes.py", "scope.py", "contextlib.py")


class Deadline:
    """Raises TimeLimit in the main thread after some seconds, and again until ``stop``.

    ``last_resort``: a file to which the stacks go when the process has to be ended, because code
    that is not Python does not come back; ``None`` where somebody else sees to that.
    """

    def __init__(self, last_resort: IO[str] | None = None) -> None:
        self.last_resort = last_resort
        self._seconds = 0.0
        self._began = 0.0
        self._before: Any = None
        self.running = False

    def works(self) -> bool:
        """Whether this thread can be told by a signal."""
        main = threading.current_thread() is threading.main_thread()
        return main and hasattr(signal, "SIGALRM")

    def start(self, seconds: float) -> None:
        """From now on there are ``seconds``."""
        self._seconds, self._began = seconds, time.monotonic()
        self.running = True
        if self.last_resort is not None:
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=self.last_resort)
        if self.works():
            self._before = signal.signal(signal.SIGALRM, self._strike)
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)

    def stop(self) -> None:
        """There is no limit any more."""
        if not self.running:
            return
        self.running = False
        if self.last_resort is not None:
            faulthandler.cancel_dump_traceback_later()
        if self.works():
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before or signal.SIG_DFL)

    def passed(self) -> str | None:
        """The words for a check that ran longer than it may, and was not stopped by that."""
        if not self.running or time.monotonic() - self._began <= self._seconds:
            return None
        return f"{self._text()}\n  it went on when it was told to stop"

    def _text(self) -> str:
        return f"Timeout (>{self._seconds:g}s): the check ran longer than its limit"

    def _strike(self, _number: int, frame: FrameType | None) -> None:
        if self.running and not _gives_back(frame):
            raise TimeLimit(self._text())


def _gives_back(frame: FrameType | None) -> bool:
    """Whether code is struck that gives back what a model changed: it is done in no time."""
    for _ in range(2):
        if frame is None:
            return False
        file = frame.f_code.co_filename
        if file.startswith(_HERE) or file.endswith(_GUARDS):
            return True
        frame = frame.f_back
    return False
