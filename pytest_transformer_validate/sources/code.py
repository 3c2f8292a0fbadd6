"""A model file's text: read, decoded and compiled, with an answer where that does not work."""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import tokenize
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import SourceWarning
from pytest_transformer_validate.sources.files import CODE, read_file
from pytest_transformer_validate.sources.jsonfile import position
from pytest_transformer_validate.sources.wording import clipped, shown

if TYPE_CHECKING:
    from pathlib import Path
    from types import CodeType

_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_CONFLICT = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
_PYTHON_2 = re.compile(
    r"Missing parentheses in call to|multiple exception types must be parenthesized"
)


@dataclass(frozen=True)
class Code:
    """A compiled model file."""

    path: Path
    tree: ast.Module
    compiled: CodeType


def read_code(path: Path) -> Code:
    """Read and compile a model file, running nothing. Raises SourceError."""
    text = _decode(path, _read(path))
    if _is_notebook(text):
        raise SourceError(
            f"{shown(path)} is not Python: looks like a notebook's JSON; export its model cells "
            "to a .py file"
        )
    _warn_of_bidi(path, text)
    try:
        return _compiled(path, text)
    except SyntaxError as error:
        raise SourceError(syntax_text(error, text)) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"{shown(path)} cannot be compiled: {clipped(error)}") from error


@functools.lru_cache(maxsize=1)  # a model is built twice: to be judged, and from another seed
def _compiled(path: Path, text: str) -> Code:
    tree = ast.parse(text, filename=str(path))
    return Code(path, tree, compile(text, str(path), "exec", dont_inherit=True))


def _read(path: Path) -> bytes:
    try:
        data = read_file(path, CODE)
    except OSError as error:
        raise SourceError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    if not data.strip():
        raise SourceError(f"{shown(path)} is empty; it has to define a torch.nn.Module")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{shown(path)}:1:1: looks like UTF-16; save it as UTF-8")
    if b"\0" in data:
        line, column = position(data, data.index(b"\0"))
        raise SourceError(
            f"{shown(path)}:{line}:{column}: a NUL byte; looks like {_binary(data)}, "
            "a model file is Python text"
        )
    return data


def _binary(data: bytes) -> str:
    if data.startswith(b"PK"):
        return "a zip archive or saved weights (weights go to --tb-weights)"
    even, odd = data[::2].count(0), data[1::2].count(0)
    return "UTF-16 without a mark" if max(even, odd) > len(data) / 4 else "a binary file"


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode(_encoding(data)).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line, column = position(data, error.start)
        raise SourceError(
            f"{shown(path)}:{line}:{column}: not {error.encoding} "
            f"(byte {data[error.start]:#04x} at offset {error.start}); save it as UTF-8"
        ) from error
    except SyntaxError as error:
        raise SourceError(f"{shown(path)}:1:1: {clipped(error)}; save it as UTF-8") from error


def _encoding(data: bytes) -> str:
    """The encoding that the file declares; UTF-8, if it is, where the declaration is broken."""
    try:
        return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
    except SyntaxError:
        data.decode()  # which byte it is says more than that there is one
        raise


def _is_notebook(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return isinstance(value, dict) and "cells" in value
    return False


def _warn_of_bidi(path: Path, text: str) -> None:
    found = _BIDI.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        warnings.warn(
            f"{shown(path)}:{line}: a character that reorders text on the screen "
            f"(U+{ord(found[0]):04X}); what is read there may not be what runs",
            SourceWarning,
            stacklevel=2,
        )


def syntax_text(error: SyntaxError, text: str) -> str:
    """What is wrong with a file that is no Python, and what it looks like."""
    from pathlib import Path

    place = f"{shown(Path(error.filename or '?'))}:{error.lineno or 1}:{error.offset or 1}"
    lines = [f"{place}: not valid Python: {clipped(error.msg)}"]
    if error.text and error.text.strip():
        lines.append(f"    {clipped(error.text, 100)}")
    looks = _looks_like(error, text)
    if looks:
        lines.append(f"  looks like {looks}")
    return "\n".join(lines)


def _looks_like(error: SyntaxError, text: str) -> str:
    head = text.lstrip()[:200].lower()
    if head.startswith("<") and re.match(r"<(!doctype|html|\?xml|!--|head|body)", head):
        return "HTML: a web page was saved; fetch the raw file"
    conflict = _CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        return f"git conflict marks (first in line {line}); resolve the conflict"
    if head.startswith("{") and '"cells"' in text:
        return "a notebook's JSON; export its model cells to a .py file"
    if _PYTHON_2.search(error.msg):
        return "Python 2; convert it to Python 3"
    return ""
