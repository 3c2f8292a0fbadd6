"""Small pieces of text that the errors of this room share."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import MARGIN, text_of
from pytest_transformer_validate.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def near(name: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)``, or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def listed(names: Collection[str], limit: int = 10) -> str:
    """The first ``limit`` names, and how many more there are."""
    if not names:
        return "none"
    shown_names = ", ".join(list(names)[:limit])
    rest = len(names) - limit
    return f"{shown_names} and {rest} more" if rest > 0 else shown_names


def shown(path: Path) -> str:
    """A path as people type it: relative to the working directory where it lies below it."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except (ValueError, OSError):
        return str(path)


def clipped(text: object, limit: int = 200) -> str:
    """The first line of a foreign text, shortened and without control characters."""
    first = next(iter(redact(text_of(text)[: limit + MARGIN]).strip().splitlines()), "")
    clean = "".join(char if char.isprintable() else "?" for char in first)
    return clean if len(clean) <= limit else f"{clean[:limit]}..."


def in_gib(size: int) -> str:
    """Bytes as ``1.5 GiB``."""
    return f"{size / 2**30:.3g} GiB" if size < 2**40 else f"{size >> 30:,} GiB"


def reason(error: BaseException) -> str:
    """A foreign exception on one line."""
    return f"{type(error).__name__}: {clipped(error)}".rstrip(": ")
