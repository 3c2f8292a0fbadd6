"""A model that is already an object, or a function that makes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.sources.assemble import assemble
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.entrypoint import Entry, describe
from pytest_transformer_validate.sources.settings import given_settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, eq=False)
class LiveSource(Source):
    """A model object, its class, or a factory that takes a config or nothing.

    An object is used as it is; only where ``--tb-weights`` names weights, a copy is.
    """

    id: str
    model: torch.nn.Module | Callable[..., torch.nn.Module]
    config: Any = None

    @property
    def spec(self) -> str:  # type: ignore[override]
        """The name: nothing was typed."""
        return self.short

    def load(self, options: LoadOptions) -> Loaded:
        """The object, or what the class or the factory gives."""
        if options.config is not None:
            settings = read_settings(options.config)
        else:
            settings = given_settings(self.config)
        entry = self._entry()
        return assemble(entry, settings, options, origin=f"{self.id}, {entry.words}")

    def rebuild(self, options: LoadOptions, seed: int) -> torch.nn.Module | None:
        """See ``Source.rebuild``; there is only one of an object."""
        import torch

        return None if isinstance(self.model, torch.nn.Module) else super().rebuild(options, seed)

    def _entry(self) -> Entry:
        kind = self.model if callable(self.model) and hasattr(self.model, "__name__") else None
        name = type(self.model).__name__ if kind is None else str(kind.__name__)
        return describe(self.model, name)
