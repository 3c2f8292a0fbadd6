"""What a worker of pytest-xdist does before it runs a model."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.containment.limits import of_a_worker
from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.isolation.lost import Lost

if TYPE_CHECKING:
    from pytest_transformer_validate.models import Run

INPUT = "tb_folder"
_PR_SET_PDEATHSIG = 1
_FIRST_TO_GO = "800"  # of 1000: where memory ends, workers do, and not what the user has open


class Worker:
    """A worker leads a process group, so that what a model leaves running is found; it ends when
    pytest does; it writes its stack down when it crashes; it has limits; and it knows which models
    ended others.
    """

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._run = run
        given: dict[str, Any] = vars(config)["workerinput"]
        self._name = given["workerid"]
        folder = Path(given.get(INPUT, ""))
        self._lost = Lost(folder) if INPUT in given and folder.is_dir() else None
        self._stack: Any = None
        self._test: str | None = None

    def pytest_sessionstart(self) -> None:
        if hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
        if self._run.settings.device == "cpu":  # CUDA takes room in its own ways
            self._run.house.limits = of_a_worker()
        if self._lost is None:
            return
        for index, model in enumerate(self._run.models):
            model.lost = functools.partial(self._lost.why, index)
        self._stack = self._lost.crash_file(self._name).open("w", encoding="utf-8")
        faulthandler.enable(file=self._stack)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_runtest_logfinish(self) -> None:
        self._test = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """What breaks pytest in the midst of a test, where a model's code has run, is a failure of
        that test. pytest-xdist would end the whole run for it with exit 3."""
        if self._test is None or self._stack is None or not self._run.house.entered:
            return
        self._stack.write(f"pytest itself broke: {error_line(excinfo.value)}\n")
        self._stack.flush()
        self._run.house.exits.end(pytest.ExitCode.INTERNAL_ERROR)

    def pytest_unconfigure(self) -> None:
        if self._stack is not None:
            faulthandler.disable()
            self._stack.close()
