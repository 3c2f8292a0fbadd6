"""Keeps what lies beside a model importable while its code runs, and out of the way otherwise."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pytest_transformer_validate.identity import Writes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_OWN_PACKAGE = __name__.partition(".")[0]
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class PathScope:
    """Puts a folder first on ``sys.path`` while entered; can be entered again, also nested.

    ``sys.path`` is as before afterwards. What the code that ran inside added to it comes back
    with the next entry. Different scopes are left in the reverse order of entering.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._depth = 0
        self._outside: list[str] = []
        self._added: list[str] = []

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1:
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._close()

    def _open(self) -> None:
        self._outside = list(sys.path)
        sys.path[:] = [str(self.folder), *self._added, *self._outside]

    def _close(self) -> None:
        known = {str(self.folder), *self._outside}
        self._added = [entry for entry in sys.path if entry not in known]
        sys.path[:] = self._outside


class ModuleScope(PathScope):
    """A PathScope whose modules leave ``sys.modules`` with it and come back with it.

    A module belongs to the scope if it was imported inside and its top-level module lies
    directly in the folder (or in one that the code inside put on ``sys.path``). So a virtual
    environment below the folder is not touched, nor what was imported from the folder before.

    A module beside the model wins over one of the same name that was imported from elsewhere,
    except over the standard library and installed packages: those stay where they are, because
    everything else in the process counts on them. No bytecode is read late or written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._own: dict[str, ModuleType] = {}
        self._before: dict[str, ModuleType] = {}
        self._aside: dict[str, ModuleType] = {}
        self._put: dict[str, ModuleType] = {}
        self._imports = Writes([sys.modules])
        self._write_bytecode = True
        self._is_new = True

    def _open(self) -> None:
        neighbours = self._neighbours()
        _load_standard_modules(neighbours)
        super()._open()
        self._write_bytecode = not sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        if self._is_new:  # what is written into a folder later shows in its time
            importlib.invalidate_caches()
            self._is_new = False
        self._before = sys.modules.copy()
        own = {_top(name) for name in self._own}
        self._aside = _take_out(
            {
                top
                for top in own | neighbours
                if top in sys.modules
                and not _stays(top)
                and (top in own or not self._holds(sys.modules[top]))
            }
        )
        present = own & sys.modules.keys()
        self._put = {n: own for n, own in self._own.items() if _top(n) not in present}
        sys.modules.update(self._put)
        self._imports.note()

    def _close(self) -> None:
        super()._close()
        if self._imports.none():
            for name in self._put:
                del sys.modules[name]
            sys.modules.update(self._aside)
        else:
            self._take_own_out()
        self._before = {}
        sys.dont_write_bytecode = not self._write_bytecode

    def _take_own_out(self) -> None:
        """Find what is the scope's own by now, and give the place to what was there before."""
        before = self._before.get
        changed = {_top(n) for n, module in sys.modules.copy().items() if before(n) is not module}
        tops = {top for top in changed if self._belongs(top)}
        kept_out = {name: own for name, own in self._own.items() if _top(name) not in tops}
        self._own = {**kept_out, **_take_out(tops)}
        gone = tops | {_top(name) for name in self._aside}
        _take_out(gone)
        for name in _inside(self._before, gone):
            sys.modules[name] = self._before[name]

    def _belongs(self, top: str) -> bool:
        module = sys.modules.get(top)
        if module is None or module is self._before.get(top) or _stays(top):
            return False
        return self._holds(module)

    def _holds(self, module: ModuleType) -> bool:
        folders = {Path(entry).resolve() for entry in (str(self.folder), *self._added)}
        return any(folder.resolve() in folders for folder in _homes(module))

    def _neighbours(self) -> set[str]:
        """The top-level names that the folder itself gives."""
        found: set[str] = set()
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                name, dot, _ = entry.name.partition(".")
                is_module = entry.name.endswith((".py", ".so", ".pyd"))
                if is_module or (not dot and Path(entry, "__init__.py").is_file()):
                    found.add(name)
        return {name for name in found if not name.startswith("__")}


def _load_standard_modules(neighbours: set[str]) -> None:
    """Import the standard modules that a neighbour has the name of, so that a ``random.py`` in
    the folder is not what the rest of the process gets for ``import random``."""
    for name in neighbours & sys.stdlib_module_names:
        with suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


def is_taken(name: str) -> bool:
    """Whether a top-level name means a standard or an installed module."""
    if name in sys.stdlib_module_names or name == _OWN_PACKAGE or name.startswith("__"):
        return True
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        return spec is not None and any(_is_installed(place) for place in _places(spec))
    return False


def is_of_user(module: ModuleType) -> bool:
    """Whether a module is a file of the user's own: not of Python, not installed, not this
    package."""
    file, name = getattr(module, "__file__", None), getattr(module, "__name__", None)
    if not (isinstance(file, str) and file.endswith(".py") and isinstance(name, str)):
        return False
    top = _top(name)
    kept = top in sys.stdlib_module_names or top == _OWN_PACKAGE or top.startswith("__")
    return not kept and not _is_installed(Path(file))


def _stays(top: str) -> bool:
    if top in sys.stdlib_module_names or top in {_OWN_PACKAGE, "__main__"}:
        return True
    return any(_is_installed(home) for home in _homes(sys.modules[top]))


def _homes(module: ModuleType) -> list[Path]:
    """The folders in which a top-level module or package lies."""
    names: dict[str, Any] = getattr(module, "__dict__", {})
    if "__path__" in names:
        return [Path(entry).parent for entry in _texts(names["__path__"])]
    return [Path(file).parent for file in _texts([names.get("__file__")])]


def _places(spec: ModuleSpec) -> list[Path]:
    return [
        Path(place) for place in _texts([spec.origin, *(spec.submodule_search_locations or ())])
    ]


def _texts(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _is_installed(path: Path) -> bool:
    return not _INSTALLED.isdisjoint(path.parts)


def _take_out(tops: set[str]) -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in _inside(sys.modules, tops)}


def _inside(names: Iterable[str], tops: set[str]) -> list[str]:
    """Those of all names of modules that are one of ``tops``, or inside of one."""
    return [name for name in names if name.partition(".")[0] in tops] if tops else []


def _top(name: str) -> str:
    return name.partition(".")[0]
