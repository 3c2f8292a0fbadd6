"""A run that is interrupted says so, writes its reports, and leaves no process behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEPS = """
import os, pathlib, time
pathlib.Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))
time.sleep(600)
"""
PATIENCE = 60.0


@contextlib.contextmanager
def running(folder: Path, *args: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run that is at a model's import, and the process that imports it."""
    (folder / "model.py").write_text(SLEEPS)
    command = [sys.executable, "-m", "pytest", "--tb-model=model.py", "-k", "load", *args]
    noted = folder / "model.pid"
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert soon(lambda: noted.exists() and noted.read_text() != "")
            yield process, int(noted.read_text())
        finally:
            process.kill()


def soon(is_so: Callable[[], bool], within: float = PATIENCE) -> bool:
    end = time.monotonic() + within
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    """Whether a process is no more, or waits for nothing but its parent's look at it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "args"),
    [(signal.SIGTERM, ()), (signal.SIGINT, ("-n1",)), (signal.SIGKILL, ("-n1",))],
    ids=["terminated", "interrupted_with_workers", "killed_with_workers"],
)
def test_nothing_is_left(
    healthy: pytest.Pytester, number: signal.Signals, args: tuple[str, ...]
) -> None:
    with running(healthy.path, "--junitxml=out.xml", *args) as (process, worker):
        process.send_signal(number)
        assert soon(lambda: is_gone(worker), within=10)
        process.communicate(timeout=PATIENCE)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert (healthy.path / "out.xml").exists()
