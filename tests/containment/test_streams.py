"""Closed in a room, open outside."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from pytest_transformer_validate.containment.streams import kept_open


def test_streams_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", given)
    with kept_open(), kept_open():
        with sys.stdout:
            sys.stdout.write("said\n")
        sys.stdout.detach()
        sys.stdout.buffer.close()
        sys.stdout.write("then\n")
    assert not vars(given)
    given.write("after\n")
    given.flush()
    assert given.buffer.getvalue() == b"said\nthen\nafter\n"  # type: ignore[attr-defined]
    given.close()
    assert given.closed


@pytest.mark.parametrize("stream", [None, object()])
def test_what_is_no_stream_does_no_harm(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", stream)
    with kept_open():
        assert sys.stdin is stream


def opened() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_come_back(tmp_path: Path) -> None:
    before, count = os.fstat(2).st_ino, opened()
    with kept_open(), (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), 2)
        os.close(1)
    assert os.fstat(2).st_ino == before
    os.fstat(1)
    assert opened() == count
