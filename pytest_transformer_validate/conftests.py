"""Which conftests have a say in a model: those of its folder, of those above, and of the root.

pytest knows the conftests of a folder only once it has collected that folder, which it does not
do for a model's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

_KNOWN = pytest.StashKey["_Known"]()


def conftests(config: pytest.Config) -> Iterable[object]:
    """The plugins that are a conftest.py."""
    return _known(config).folders


def hooks_above(config: pytest.Config, path: Path) -> Any:
    """The hooks of all plugins but the conftests of folders that are not above ``path``."""
    made = _known(config).hooks
    if path not in made:
        made[path] = _Hooks(config, path)
    return made[path]


@dataclass(frozen=True)
class _Known:
    """Conftests and their folders, and hooks by path, while these plugins are registered."""

    plugins: set[object]
    folders: dict[object, Path]
    hooks: dict[Path, _Hooks] = field(default_factory=dict)


class _Hooks:
    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._foreign = [
            plugin
            for plugin, folder in _known(config).folders.items()
            if folder not in (config.rootpath, path, *path.parents)
        ]

    def __getattr__(self, name: str) -> Any:
        hook = self._config.pluginmanager.subset_hook_caller(name, self._foreign)
        self.__dict__[name] = hook
        return hook


def _known(config: pytest.Config) -> _Known:
    """Looked for again only when other plugins are registered, because every hook of every check
    comes here."""
    plugins = config.pluginmanager.get_plugins()
    known = config.stash.get(_KNOWN, None)
    if known is None or known.plugins != plugins:
        files = ((p, getattr(p, "__file__", None)) for p in plugins)
        paths = ((p, Path(file)) for p, file in files if isinstance(file, str))
        folders = {p: path.parent for p, path in paths if path.name == "conftest.py"}
        known = config.stash[_KNOWN] = _Known(plugins, folders)
    return known
