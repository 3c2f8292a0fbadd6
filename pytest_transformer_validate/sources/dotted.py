"""A model that is imported: ``pkg.module:attr``."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.assemble import assemble
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.entrypoint import describe
from pytest_transformer_validate.sources.modulefile import explained_imports
from pytest_transformer_validate.sources.scope import PathScope
from pytest_transformer_validate.sources.seeding import seeded
from pytest_transformer_validate.sources.settings import Settings, read_settings
from pytest_transformer_validate.sources.wording import near

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@dataclass(frozen=True)
class DottedSource(Source):
    """An nn.Module class, object or factory in an importable module.

    ``cwd`` is first on ``sys.path`` while the model's code runs, as with ``python -m``; the
    module stays imported, as any other.
    """

    spec: str
    id: str
    module: str
    attribute: str
    cwd: Path

    def load(self, options: LoadOptions) -> Loaded:
        """Import the module and build its model."""
        place = "no configuration (an import path has none unless --tb-config names one)"
        settings = Settings(place=place)
        if options.config is not None:
            settings = read_settings(options.config)
        scope = PathScope(self.cwd)
        with scope:
            with seeded(options.seed):
                module = self._import()
            entry = describe(self._find(module), self.attribute)
            origin = f"import {self.spec}, {entry.words}"
            return assemble(entry, settings, options, origin=origin, scope=scope)

    def _import(self) -> ModuleType:
        try:
            with explained_imports(None):
                return importlib.import_module(self.module)
        except SourceError as error:
            cause = error.__cause__
            name = cause.name if isinstance(cause, ModuleNotFoundError) else None
            if name is None or not f"{self.module}.".startswith(f"{name}."):
                raise
            raise SourceError(self._not_found(name)) from cause

    def _not_found(self, name: str) -> str:
        parent, _, child = name.rpartition(".")
        fix = f"searched: {self.cwd} and sys.path; install it, or start pytest where it lies"
        if not parent:
            return f"{self.spec}: no module {name!r} can be found\n  {fix}"
        package = sys.modules.get(parent)
        if not hasattr(package, "__path__"):
            return f"{self.spec}: {parent!r} is a module, no package; it has no {child!r}"
        modules = _submodules(package)
        return f"{self.spec}: the package {parent!r} has no module {child!r}{near(child, modules)}"

    def _find(self, module: ModuleType) -> Any:
        value: Any = module
        done = self.module
        for name in self.attribute.split("."):
            if not hasattr(value, name):
                known = [known for known in dir(value) if not known.startswith("__")]
                raise SourceError(f"{self.spec}: {done} has no {name!r}{near(name, known)}")
            value = getattr(value, name)
            done = f"{done}.{name}"
        return value


def _submodules(package: Any) -> list[str]:
    import pkgutil

    return [info.name for info in pkgutil.iter_modules(package.__path__)]
