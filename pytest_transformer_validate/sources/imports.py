"""What the files of a model import, read off them without running anything."""

from __future__ import annotations

import ast
import importlib.util
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_transformer_validate.sources.code import read_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Packages that are installed under another name than they are imported by.
_INSTALLED_AS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "flash_attn": "flash-attn",
    "mamba_ssm": "mamba-ssm",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
_FALLBACKS = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def missing(files: Iterable[Path]) -> list[str]:
    """Top-level modules that ``files`` import and that are neither installed nor beside them, in
    their order. An import that may fail (``try``), or is there for annotations, is left out.

    Raises SourceError for a file that is no Python.
    """
    files = list(files)
    beside = {path.stem for path in files} | {path.parent.name for path in files}
    names = dict.fromkeys(name for path in files for name in _imported([read_code(path).tree]))
    return [name for name in names if name not in beside and not _is_there(name)]


def package_of(name: str) -> str:
    """What pip is told to install for a module."""
    return _INSTALLED_AS.get(name, name)


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Top-level names of absolute imports that have to work."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module:
                yield node.module.partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imported(node.orelse)
        elif not (isinstance(node, ast.Try) and any(map(_is_fallback, node.handlers))):
            yield from _imported(ast.iter_child_nodes(node))


def _is_fallback(handler: ast.ExceptHandler) -> bool:
    """Whether a handler goes on without what could not be imported."""
    if handler.type is None:
        return True
    named = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return not named.isdisjoint(_FALLBACKS)


def _is_there(name: str) -> bool:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(name) is not None
    return False
