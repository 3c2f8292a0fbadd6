"""Deferred imports of optional packages, with the line that installs them."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import MissingDependency

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` installs.

    Raises MissingDependency with the install line where the package is not there. An import
    error from inside an installed package is not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingDependency(
            f"{top} is not installed; install it with: "
            f'pip install "pytest-transformer-validate[{extra}]"'
        ) from error


def find(module: str) -> ModuleType | None:
    """``module``, or ``None`` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def import_torch() -> ModuleType:
    """Import torch without its warning that NumPy is not there, which nobody here needs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        return importlib.import_module("torch")
