"""Text that came from a model as Markdown that says the same and does nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PUNCTUATION = re.compile(r"([!-,./:-@\[-`{-~])")
_BACKTICKS = re.compile("`+")


def inline(text: str) -> str:
    """``text`` on one line, every sign that Markdown or HTML might read written as itself."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(printable(text).split()))


def block(text: str) -> str:
    """``text`` as a block of code, which it cannot end."""
    shown = printable(text)
    longest = max((len(run) for run in _BACKTICKS.findall(shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; its cells are Markdown already."""
    ruler = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]
