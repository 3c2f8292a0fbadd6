"""Deferred imports of optional packages, with the line that installs them."""

from __future__ import annotations

import importlib
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
