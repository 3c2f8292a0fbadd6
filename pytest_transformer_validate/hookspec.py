"""Hooks that a conftest.py or another plugin may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pytest_transformer_validate.report.record import Record


@pytest.hookspec
def pytest_tb_models(
    config: pytest.Config,
) -> Iterable[str | tuple[str, Callable[[], Any]]] | None:
    """Models to validate: specs as after ``--tb-model=``, or ``(id, factory)``.

    They are treated like those of the ini key ``tb_model``: their checks run when no positional
    argument was given, and they always feed the fixtures. ``--tb-model`` replaces both. A factory
    is called without arguments when the model's first test starts. Only an initial conftest.py
    or a plugin can implement this hook.
    """


@pytest.hookspec
def pytest_tb_record(record: Record) -> None:
    """Called once for every check that was judged, where the run is controlled.

    With pytest-xdist this is the controlling process, not the worker that ran the check.
    """
