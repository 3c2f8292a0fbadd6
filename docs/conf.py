"""Sphinx's settings: Markdown pages, in which generated.py fills in what the code knows best.

Nothing is fetched. ``python -m sphinx -W --keep-going -q docs build/docs``
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

import generated

from pytest_transformer_validate import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pytest-transformer-validate"
author = "the authors of pytest-transformer-validate"
copyright = author
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
html_copy_source = False
myst_heading_anchors = 3
smartquotes = False  # -- starts an option
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have them


def _fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = generated.fill(source[0])


def _plain_property(
    _app: Sphinx, what: str, _name: str, value: object, _options: object, lines: list[str]
) -> None:
    """As it is written: Napoleon takes what stands before a colon for a type."""
    if what == "property":
        lines[:] = [*inspect.cleandoc(value.__doc__ or "").splitlines(), ""]


def _points_elsewhere(
    _app: Sphinx, _what: str, _name: str, value: object, _skip: bool, _options: object
) -> bool | None:
    """Passes that the bundled checks share say where they are described: no interface."""
    return True if (getattr(value, "__doc__", None) or "").startswith("See ``") else None


def setup(app: Sphinx) -> None:
    """Fill in each page when it is read, and mend what autodoc reads."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _plain_property, priority=600)
    app.connect("autodoc-skip-member", _points_elsewhere)
