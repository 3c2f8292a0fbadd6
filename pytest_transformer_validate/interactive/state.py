"""What a run leaves in a process that goes on: nothing."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.checks import registry
from pytest_transformer_validate.containment import process
from pytest_transformer_validate.interactive import cell
from pytest_transformer_validate.sources.scope import is_of_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


class Modules:
    """Modules of the user's own code: each run reads from disk what it imports, and what the
    notebook itself imported where its file has changed since."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[ModuleType, int]] = {}
        self.look()

    def look(self, *_: Any) -> None:
        """Note when the files of new modules were written; called after each cell."""
        for name, module in sys.modules.copy().items():
            known = self._read.get(name)
            if (known is None or known[0] is not module) and is_of_user(module):
                self._read[name] = module, _written(module)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Without packages of which a file has changed; afterwards every module is as before."""
        self.look()
        before = dict(sys.modules)
        changed = {
            name.partition(".")[0]
            for name, (module, written) in self._read.items()
            if before.get(name) is module and _written(module) != written
        }
        for name in [name for name in before if name.partition(".")[0] in changed]:
            del sys.modules[name]
        importlib.invalidate_caches()
        try:
            yield
        finally:
            for name, module in sys.modules.copy().items():
                if name not in before and is_of_user(module):
                    del sys.modules[name]
            for name in [name for name in before if name.partition(".")[0] in changed]:
                sys.modules[name] = before[name]


@contextlib.contextmanager
def kept(modules: Modules) -> Iterator[None]:
    """A run of pytest: the process is as before afterwards, what its packages imported aside."""
    path, environment, folder = list(sys.path), dict(os.environ), Path.cwd()
    try:
        with process.kept(), registry.kept(), modules.fresh():
            yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        cell.forget()


def _written(module: ModuleType) -> int:
    try:
        return os.stat(module.__file__ or "").st_mtime_ns  # noqa: PTH116 - called for every module
    except OSError:
        return 0
