"""Python files of a repository as a package: importable while its model's code runs."""

from __future__ import annotations

import importlib
import itertools
import sys
import traceback
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.files import CODE, read_file
from pytest_transformer_validate.sources.modulefile import explained_imports
from pytest_transformer_validate.sources.wording import clipped, listed, near, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

_serial = itertools.count(1)


class Text(NamedTuple):
    """A Python file: where it lies, for people and tracebacks, and what it holds."""

    path: Path
    data: bytes


class Package(MetaPathFinder):
    """Files by their path below a root (``a/b.py``), as a package with a name of its own, so that
    relative imports work and no two models meet.

    To be entered while code of it runs, again and nested: its modules are in ``sys.modules`` only
    then. Exactly the bytes that were given are run, so what was checked is what runs: no bytecode
    is read or written, no extension module loaded, and no ``__init__.py`` of the root is run,
    which transformers does not run either.
    """

    def __init__(self, files: Mapping[str, Text]) -> None:
        self.name = f"tb_code_{next(_serial)}"
        self._files = {path: text for path, text in files.items() if path != "__init__.py"}
        self._own: dict[str, ModuleType] = {}
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1:
            sys.meta_path.insert(0, self)
            sys.modules.update(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            mine = [name for name in sys.modules if self._is_mine(name)]
            self._own = {name: sys.modules.pop(name) for name in mine}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``MetaPathFinder``: a folder without ``__init__.py`` is a package too."""
        if not self._is_mine(fullname):
            return None
        place = self._place(fullname)
        package = f"{place}/__init__.py"
        for file in (package, f"{place}.py"):
            if file in self._files:
                return self._spec(fullname, self._files[file], is_package=file == package)
        if not place or any(file.startswith(f"{place}/") for file in self._files):
            return ModuleSpec(fullname, None, is_package=True)
        return None

    def load(self, module: str, name: str) -> Any:
        """The class ``name`` of a module; to be called while entered. Raises SourceError where
        there is none, or where an import cannot be met; what the code raises comes through."""
        file = self._files.get(f"{module.replace('.', '/')}.py")
        if file is None:
            names = sorted(self._files)
            raise SourceError(
                f"there is no {clipped(module, 80)}.py beside the config"
                f"{near(f'{module}.py', names)}; found: {listed(names, 5)}"
            )
        try:
            with explained_imports(None):
                found = importlib.import_module(f"{self.name}.{module}")
        except SourceError as error:
            missing = error.__cause__
            if isinstance(missing, ModuleNotFoundError) and self._is_mine(missing.name or ""):
                raise SourceError(self._absent(missing)) from missing
            raise
        if not hasattr(found, name):
            names = [key for key, value in vars(found).items() if isinstance(value, type)]
            raise SourceError(
                f"{shown(file.path)} has no class {clipped(name, 80)}{near(name, names)}"
            )
        return getattr(found, name)

    def raised(self, error: BaseException) -> bool:
        """Whether code of this package had a part in raising ``error``."""
        frames = traceback.walk_tb(error.__traceback__)
        return any(self._is_mine(str(frame.f_globals.get("__name__"))) for frame, _ in frames)

    def _is_mine(self, name: str) -> bool:
        return name == self.name or name.startswith(f"{self.name}.")

    def _place(self, fullname: str) -> str:
        return fullname[len(self.name) + 1 :].replace(".", "/")

    def _spec(self, fullname: str, text: Text, *, is_package: bool) -> ModuleSpec:
        spec = ModuleSpec(
            fullname,
            _Loader(fullname, text),
            origin=str(text.path),
            is_package=is_package,
        )
        spec.has_location = True
        return spec

    def _absent(self, missing: ModuleNotFoundError) -> str:
        place = self._place(missing.name or "")
        frames = traceback.extract_tb(missing.__traceback__)
        mine = {str(text.path): text.path for text in self._files.values()}
        lines = [f"{shown(mine[f.filename])}:{f.lineno}" for f in frames if f.filename in mine]
        return (
            f"{lines[-1] if lines else 'the code'} imports {clipped(place, 80)}.py, which is not "
            f"there; found: {listed(sorted(self._files), 5)}"
        )


class _Loader(SourceFileLoader):
    """Compiles the bytes that it was made with."""

    def __init__(self, fullname: str, text: Text) -> None:
        super().__init__(fullname, str(text.path))
        self._data = text.data

    def get_data(self, path: str) -> bytes:
        return self._data

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError("bytecode is not used")

    def is_package(self, fullname: str) -> bool:
        return self.get_filename(fullname).endswith("__init__.py")


def read_package(folder: Path) -> dict[str, Text]:
    """The Python files of a local folder that can be imported from it. Virtual environments are
    left out. Raises SourceError."""
    files: dict[str, Text] = {}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = sorted(here.iterdir())
            for entry in entries:
                if entry.suffix == ".py" and entry.stem.isidentifier() and entry.is_file():
                    name = entry.relative_to(folder).as_posix()
                    files[name] = Text(entry, read_file(entry, CODE))
                elif entry.name.isidentifier() and entry.is_dir() and not _is_apart(entry):
                    waiting.append(entry)
        except OSError as error:
            raise SourceError(f"cannot read {shown(here)}: {error.strerror or error}") from error
    return files


def _is_apart(folder: Path) -> bool:
    return folder.is_symlink() or folder.name == "__pycache__" or (folder / "pyvenv.cfg").exists()
