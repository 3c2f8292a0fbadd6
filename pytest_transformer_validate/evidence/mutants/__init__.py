"""Every mutant, by name: those of every module here that has a tuple ``MUTANTS``."""

from __future__ import annotations

import importlib
import pkgutil

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

__all__ = ["MUTANTS", "Mutant"]

_names = (module.name for module in pkgutil.iter_modules(__path__))
_modules = [importlib.import_module(f"{__name__}.{name}") for name in _names]
MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant for module in _modules for mutant in getattr(module, "MUTANTS", ())
}
