"""Which names of files are written to this machine and may be imported from."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.scope import is_taken
from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,99}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_IMPORTABLE = frozenset({"py", "pyc", "pyd", "so", "zip", "egg"})
# What Python, pytest or the plugin would import of its own accord.
_READ_UNASKED = frozenset({"conftest", "sitecustomize", "usercustomize", "torch", "pytest"})


def require_plain_names(names: Iterable[str], *, entry: str) -> None:
    """Raise SourceError for the first name that may not be written.

    ``entry`` is the model file: it is imported under another name where its own is taken by an
    installed package.
    """
    seen: dict[str, str] = {}
    for name in names:
        why = _refusal(name, entry)
        twin = seen.setdefault(name.casefold(), name)
        if not why and twin != name:
            why = f"it differs from {twin!r} in case only"
        if why:
            raise SourceError(
                f"a file is called {clipped(ascii(name), 80)}, which is not written here: {why}\n"
                "  names have 1 to 100 letters, digits, dots, dashes and underscores, and hide "
                "no module; rename the file, or download the files and name their folder"
            )


def _refusal(name: str, entry: str) -> str:
    if not _PLAIN.fullmatch(name) or name.endswith("."):
        return "it is no plain name"
    if _DEVICES.fullmatch(name):
        return "it is a device on Windows"
    if name.strip(".") == "" or name.casefold() == ".git":
        return "it is a folder of the system"
    parts = name.split(".")
    if parts[-1].casefold() in _IMPORTABLE and len(parts) > 1:
        return _hides(parts[0], name == entry)
    return ""


def _hides(module: str, is_entry: bool) -> str:
    if module.startswith("__"):
        return "a Gist is no package"
    if module in sys.stdlib_module_names or module in _READ_UNASKED:
        return f"it would hide the module {module}"
    if not is_entry and is_taken(module):
        return f"it would hide the installed module {module}"
    return ""
