"""What all tests share."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate import redaction

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester", "gisthost"]


@pytest.fixture(scope="session", autouse=True)
def _as_at_a_desk() -> Iterator[None]:
    """Runs within tests tell GitHub nothing where the tests themselves run there, are as wide as
    without a terminal, and hear Ctrl-C where whoever started the tests ignores it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "COLUMNS"):
            patch.delenv(name, raising=False)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


@pytest.fixture(autouse=True)
def _nothing_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that a run within a test has seen are none in the next test."""
    monkeypatch.setattr(redaction, "_remembered", set())
