"""Packages that some tests need for real: skipped without them, unless the run must have them."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any

import pytest


def needed(module: str) -> Any:
    """``module``, imported. Where it is missing the test is skipped, or fails where
    TB_REQUIRE_REAL says that all packages are there (``packages``, as in CI), or all else too
    (``1``)."""
    if os.environ.get("TB_REQUIRE_REAL") in {"packages", "1"}:
        return importlib.import_module(module)
    return pytest.importorskip(module, reason="requirements-training.txt installs it")


def program(*names: str) -> str:
    """The path of the first of some names of a program that is there; else as ``needed``."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is not None:
        return found
    text = f"no {names[0]} here: apt-get install chromium chromium-driver"
    if os.environ.get("TB_REQUIRE_REAL") == "1":
        pytest.fail(text)
    pytest.skip(text)
