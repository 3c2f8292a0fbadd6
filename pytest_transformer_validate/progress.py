"""What takes long, on a terminal: the checks that are running and for how long they have been."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, TextIO

import pytest

from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.models import Run

PATIENCE = 5.0
EVERY = 1.0
_MOST = 2
# Keep the place and do not wrap; back to the place, with the rest of the line gone.
_BEFORE, _AFTER = "\x1b7\x1b[?7l", "\x1b[?7h\x1b8"
_GONE = "\x1b[K"


def watch(config: pytest.Config, run: Run) -> None:
    """Show progress where somebody can see it: on a terminal that pytest has to itself."""
    if config.get_verbosity() < 0 or config.getoption("capture") == "no":
        return
    if not config.pluginmanager.hasplugin("terminal") or not _is_terminal(1):
        return
    stream = os.fdopen(os.dup(1), "w")
    config.add_cleanup(stream.close)
    heads = [f"{model.id}::tier" for model in run.models]
    config.pluginmanager.register(Progress(heads, stream), "transformer_validate_progress")


class Progress:
    """Tells, of checks that have run for longer than ``patience`` seconds, how long it has been.

    How much is left nobody knows, and it does not say. The line is drawn behind what pytest has
    written, and is gone before pytest writes again.
    """

    def __init__(
        self,
        heads: Sequence[str],
        stream: TextIO,
        patience: float | None = None,
        every: float | None = None,
    ) -> None:
        self._heads = tuple(heads)
        self._stream = stream
        self._patience = PATIENCE if patience is None else patience
        self._every = EVERY if every is None else every
        self._running: dict[str, float] = {}
        self._shown = False
        self._over = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        with self._changed:
            self._erase()
            if self._over or not nodeid.startswith(self._heads):
                return
            self._running[nodeid] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._draw_often, daemon=True)
                self._thread.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        with self._changed:
            self._erase()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        with self._changed:
            self._running.pop(nodeid, None)
            self._erase()

    def pytest_enter_pdb(self) -> None:
        self._stop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._over = True
            self._running.clear()
            self._erase()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _draw_often(self) -> None:
        with self._changed:
            while not self._over:
                self._changed.wait(self._every)
                self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        long = [(n, now - t) for n, t in self._running.items() if now - t >= self._patience]
        if not long:
            return
        told = ", ".join(f"{printable(name)} {seconds:.0f} s" for name, seconds in long[:_MOST])
        more = f" and {len(long) - _MOST} more" if len(long) > _MOST else ""
        self._write(f"{_BEFORE}{_GONE}  running: {told}{more}{_AFTER}")
        self._shown = True

    def _erase(self) -> None:
        if self._shown:
            self._write(_GONE)
            self._shown = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal has gone away
            self._over = True


def _is_terminal(descriptor: int) -> bool:
    return os.isatty(descriptor) and os.environ.get("TERM", "dumb") != "dumb"
