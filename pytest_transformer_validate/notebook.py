"""``%load_ext pytest_transformer_validate``: the magics ``%pytest`` and ``%%pytest``; and what a
notebook asks before it runs a model."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.interactive.preview import (
    Preview,
    choose_model,
    environment,
    example,
    open_model,
    show_curves,
)
from pytest_transformer_validate.interactive.result import RunResult
from pytest_transformer_validate.interactive.run_plugin import Notebook
from pytest_transformer_validate.interactive.state import Modules, kept

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Preview",
    "RunResult",
    "choose_model",
    "environment",
    "example",
    "load_ipython_extension",
    "open_model",
    "run",
    "show_curves",
    "unload_ipython_extension",
]

# What is so in every kernel, and nobody's mistake: packages that came before pytest (anyio, this
# one), and tqdm's word about widgets, whoever imports it.
_USUAL = ("Module already imported so cannot be rewritten", "IProgress not found")
_QUIET = [word for text in _USUAL for word in ("-W", f"ignore:{text}")]
_AFTER_CELL = "post_run_cell"


class Magic:
    """The magics of one IPython shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.modules = Modules()

    def pytest(self, line: str, cell: str | None = None) -> RunResult:
        """Run pytest in this process.

        ``%pytest -m tier1 --tb-model=net`` takes what pytest takes; a model may be a variable of
        the notebook: a module, a class, a function that makes one. ``%%pytest`` runs the tests
        of its cell, which may use the fixtures of the models that the line names.
        """
        from IPython.core.error import UsageError

        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"%pytest {line}: {error}") from error
        if cell is not None:
            cell = self.shell.transform_cell(cell)
        return run(words, Notebook(self.shell.user_ns, cell), self.modules)


def run(words: Sequence[str], notebook: Notebook, modules: Modules) -> RunResult:
    """Run pytest, and leave the process as it was."""
    with kept(modules):
        code = pytest.main([*_QUIET, *words], plugins=[notebook])
    return RunResult(notebook.records, notebook.tests.values(), code)


def load_ipython_extension(shell: Any) -> None:
    """Make the magics known to an IPython shell."""
    magic = Magic(shell)
    shell.register_magic_function(magic.pytest, "line_cell", "pytest")
    shell.events.register(_AFTER_CELL, magic.modules.look)


def unload_ipython_extension(shell: Any) -> None:
    """Forget the magics."""
    manager = shell.magics_manager
    known = manager.magics["line"].pop("pytest")
    manager.magics["cell"].pop("pytest", None)
    shell.events.unregister(_AFTER_CELL, known.__self__.modules.look)
