"""What a person at a terminal sees while a check takes long."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW = """
from pytest_transformer_validate import progress
progress.PATIENCE, progress.EVERY = 0.1, 0.05

@check(tier=1)
def lengthy(probe):
    import time
    time.sleep(1.2)
    return Measurement()
"""
DRAWN = "\x1b[K  running: model.py::tier1::lengthy"


def on_terminal(project: pytest.Pytester, *args: str, **variables: str) -> str:
    """What pytest writes to a terminal of 60 columns."""
    ours, theirs = os.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "60", **variables}
    environ.pop("PY_COLORS", None)  # set by pytester
    command = [sys.executable, "-m", "pytest", "--tb-model=model.py", "-k", "lengthy", *args]
    with subprocess.Popen(
        command, cwd=project.path, stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    ) as process:
        os.close(theirs)
        chunks = []
        with contextlib.suppress(OSError):  # Linux says so where the other end is closed
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
    os.close(ours)
    assert process.returncode == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")


@pytest.fixture
def slow(healthy: pytest.Pytester) -> pytest.Pytester:
    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text() + SLOW)
    return healthy


@pytest.mark.skipif(sys.platform == "win32", reason="terminals as on Unix")
def test_it_is_shown_on_a_terminal_and_gone_after(slow: pytest.Pytester) -> None:
    shown = on_terminal(slow)
    assert f"{DRAWN} 0 s" in shown
    assert f"{DRAWN} 1 s" in shown
    assert shown.rindex("running: ") < shown.rindex("\x1b[K") < shown.index("1 passed")
    assert re.search("\x1b\\[32m  tier 1   1 passed +\\d\\.\\d s\x1b\\[0m", shown), "in green"
    summary = re.sub("\x1b\\[[0-9;]*m", "", shown.partition("transformer validation")[2])
    assert max(map(len, summary.splitlines())) <= 60
    assert "\n    " in summary, "the line about the model was wrapped"


@pytest.mark.skipif(sys.platform == "win32", reason="terminals as on Unix")
def test_it_is_shown_with_workers_and_without_colour(slow: pytest.Pytester) -> None:
    shown = on_terminal(slow, "-n1", NO_COLOR="1")
    assert DRAWN in shown
    assert not re.search("\x1b\\[[0-9;]*m", shown)
    assert "  tier 1   1 passed" in shown


@pytest.mark.parametrize("args", [(), ("-v",)])
def test_nothing_is_drawn_elsewhere(slow: pytest.Pytester, args: tuple[str, ...]) -> None:
    result = slow.runpytest_subprocess("--tb-model=model.py", "-k", "lengthy", *args)
    assert result.ret == pytest.ExitCode.OK
    assert "running:" not in result.stdout.str() + result.stderr.str()


@pytest.fixture
def drawn() -> Iterator[tuple[Progress, io.StringIO]]:
    stream = io.StringIO()
    progress = Progress(["m.py::tier"], stream, patience=0.05, every=0.01)
    yield progress, stream
    progress.pytest_sessionfinish()


def until(stream: io.StringIO, words: str) -> None:
    end = time.monotonic() + 20
    while words not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.01)


def test_several_are_told_and_others_left_out(drawn: tuple[Progress, io.StringIO]) -> None:
    progress, stream = drawn
    for name in ("m.py::tier1::a", "test_own.py::test_b", "m.py::tier1::c", "m.py::tier2::d"):
        progress.pytest_runtest_logstart(name)
    until(stream, "running: m.py::tier1::a 0 s, m.py::tier1::c 0 s and 1 more")
    progress.pytest_runtest_logfinish("m.py::tier1::a")
    until(stream, "running: m.py::tier1::c 0 s, m.py::tier2::d 0 s\x1b")
    assert "test_b" not in stream.getvalue()


def test_a_debugger_has_the_terminal_to_itself(drawn: tuple[Progress, io.StringIO]) -> None:
    progress, stream = drawn
    progress.pytest_runtest_logstart("m.py::tier1::a")
    until(stream, "running: ")
    progress.pytest_enter_pdb()
    assert stream.getvalue().endswith("\x1b[K")
    before = stream.getvalue()
    progress.pytest_runtest_logstart("m.py::tier1::b")
    time.sleep(0.15)
    assert stream.getvalue() == before


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    stream = io.StringIO()
    progress = Progress(["m.py::tier"], stream, patience=0.0, every=0.01)
    stream.close()
    progress.pytest_runtest_logstart("m.py::tier1::a")
    time.sleep(0.1)
    progress.pytest_runtest_logreport()
    progress.pytest_runtest_logfinish("m.py::tier1::a")
    progress.pytest_sessionfinish()
