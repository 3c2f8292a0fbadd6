"""Deferred imports of optional packages, with the line that installs them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import warnings
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import MissingDependency

if TYPE_CHECKING:
    from types import ModuleType


OLDEST_TORCH = "2.10"
_INSTALL = "install it with: pip install"


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
        raise _missing(top, extra) from error


def expect(module: str, *, extra: str) -> None:
    """Raise MissingDependency where ``require`` would; nothing is imported."""
    if not _is_there(module):
        raise _missing(module, extra)


def expect_torch() -> None:
    """Raise MissingDependency where there is no torch or too old a one; nothing is imported."""
    wanted = f'{_INSTALL} "torch>={OLDEST_TORCH}"'
    if not _is_there("torch"):
        raise MissingDependency(f"torch is not installed, which models need; {wanted}")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    if _numbers(version) < _numbers(OLDEST_TORCH):
        raise MissingDependency(f"torch {version} is too old to judge models with; {wanted}")


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


def _missing(package: str, extra: str) -> MissingDependency:
    return MissingDependency(
        f'{package} is not installed; {_INSTALL} "pytest-transformer-validate[{extra}]"'
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
