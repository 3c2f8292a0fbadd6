"""Where this process runs."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Whether the code runs in the cells of IPython: a notebook, or its shell."""
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


def somebody_there() -> bool:
    """Whether a question would be answered: in a notebook, or at a terminal."""
    return in_notebook() or (sys.stdin is not None and sys.stdin.isatty())
