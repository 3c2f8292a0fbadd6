"""A model file as a module: its name, its scope, and running it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.code import syntax_text
from pytest_transformer_validate.sources.scope import is_taken
from pytest_transformer_validate.sources.wording import clipped, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, ModuleType

    from pytest_transformer_validate.sources.code import Code


def module_name(path: Path) -> tuple[str, Path]:
    """The name that a file is imported by, and the folder that it is imported from.

    In a package (an ``__init__.py`` beside it) that is the dotted name and the package's root;
    else the file's stem, unless that means another module, and its folder.
    """
    parts: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    if not parts:
        return _lone_name(path), path.parent
    if path.name != "__init__.py":
        parts.append(_plain(path.stem))
    return ".".join(parts), folder


def _lone_name(path: Path) -> str:
    stem = _plain(path.stem)
    return f"{stem}_model" if is_taken(stem) else stem


def _plain(stem: str) -> str:
    return stem.replace(".", "_")


def run_file(code: Code, name: str) -> ModuleType:
    """Import a compiled file as ``name``; to be called inside a ModuleScope of its folder.

    What the file raises comes through, apart from imports that cannot be met.
    """
    with explained_imports(code.path, code.tree):
        parent = name.rpartition(".")[0]
        if parent:
            _import_package(parent, code.path)
            if _is_from(sys.modules.get(name), code.path):
                return sys.modules[name]
        module = _execute(code, name)
        if parent:
            setattr(sys.modules[parent], name.rpartition(".")[2], module)
    return module


def _import_package(parent: str, path: Path) -> None:
    package = importlib.import_module(parent)
    folders = list(getattr(package, "__path__", ()))
    if path.parent.resolve() not in {Path(folder).resolve() for folder in folders}:
        raise SourceError(
            f"{shown(path)} belongs to a package {parent!r}, but that name is taken by "
            f"{folders[0] if folders else package!r}\n"
            "  rename the package, or uninstall the other one"
        )


def _is_from(module: ModuleType | None, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve() == path.resolve()


class _CompiledLoader(SourceFileLoader):
    """Runs code that is already compiled, so that no stale bytecode is read."""

    def __init__(self, name: str, code: Code) -> None:
        super().__init__(name, str(code.path))
        self._code = code.compiled

    def get_code(self, fullname: str) -> CodeType:
        return self._code


def _execute(code: Code, name: str) -> ModuleType:
    folders = [str(code.path.parent)] if code.path.name == "__init__.py" else None
    loader = _CompiledLoader(name, code)
    spec = importlib.util.spec_from_file_location(
        name, code.path, loader=loader, submodule_search_locations=folders
    )
    if spec is None:
        raise SourceError(f"{shown(code.path)} cannot be imported as {name!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return sys.modules.get(name, module)


@contextlib.contextmanager
def explained_imports(path: Path | None, tree: ast.Module | None = None) -> Iterator[None]:
    """Turn imports that cannot be met into a SourceError with the place that asks for them."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        raise SourceError(_missing(error, path)) from error
    except ImportError as error:
        line = _line_in(error, path)
        if path is None or tree is None or line not in _relative_lines(tree):
            raise
        if (path.parent / "__init__.py").is_file():
            raise
        raise SourceError(_lone_relative(path, line)) from error
    except SyntaxError as error:
        if error.filename is None or not Path(error.filename).is_file():
            raise
        text = Path(error.filename).read_text(encoding="utf-8", errors="replace")
        raise SourceError(syntax_text(error, text)) from error


def _missing(error: ModuleNotFoundError, path: Path | None) -> str:
    place = _import_place(error, path)
    return (
        f"{place} imports {clipped(error.name)!r}, which cannot be found ({clipped(error)})\n"
        "  nothing is installed automatically: install the package that holds it into "
        f"{Path(sys.prefix)}\n"
        "  or put the module beside the model file"
    )


def _import_place(error: BaseException, path: Path | None) -> str:
    """``file:line`` of the import: in the model's file, else the last frame outside importlib."""
    line = _line_in(error, path)
    if path is not None and line:
        return f"{shown(path)}:{line}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
    if not frames:
        return "the model"
    return f"{shown(Path(frames[-1].filename))}:{frames[-1].lineno}"


def _line_in(error: BaseException, path: Path | None) -> int:
    lines = [
        frame.lineno or 0
        for frame in traceback.extract_tb(error.__traceback__)
        if path is not None and frame.filename == str(path)
    ]
    return lines[-1] if lines else 0


def _relative_lines(tree: ast.Module) -> set[int]:
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def _lone_relative(path: Path, line: int) -> str:
    return (
        f"{shown(path)}:{line}: a relative import in a file that is in no package\n"
        f"  put an __init__.py into {shown(path.parent)}, or import without the dot: modules "
        "beside the model file are importable"
    )
