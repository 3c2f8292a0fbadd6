"""What a spec is parsed to, and what loading it gives."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from pytest_transformer_validate.sources.config import ModelConfig


class SourceWarning(UserWarning):
    """Something beside a model could not be used; the model itself was loaded."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What the options say about loading one model.

    ``config``, ``tokenizer`` and ``weights`` are paths that replace what lies beside the model;
    ``seed`` seeds the weights of a model that is built without any.
    """

    config: Path | None = None
    tokenizer: Path | None = None
    weights: Path | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model as its source gives it.

    ``origin`` is one line for people (kind, path, class); ``weights`` says ``random (seed 0)`` or
    which file was loaded; ``location`` is the file and 1-based line of the model's class;
    ``expect_fail`` the deviations that a local config.json declares; ``scope`` a re-enterable
    context manager, to be held while the model's code runs: it makes the modules beside a model
    file importable, and takes them out of ``sys.modules`` again.
    """

    model: torch.nn.Module
    config: ModelConfig
    tokenizer: Any = None
    origin: str = ""
    weights: str = "as given"
    location: tuple[str, int] | None = None
    expect_fail: Mapping[str, str] = field(default_factory=dict)
    scope: AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)


class Source(ABC):
    """A model that can be loaded, named by a spec.

    ``spec`` is what was typed and ``id`` the short form that heads node ids; ``fetched`` whether
    its code comes from another machine: such a model runs in a worker, with recorded consent.
    """

    spec: str
    id: str
    fetched: ClassVar[bool] = False

    @abstractmethod
    def load(self, options: LoadOptions) -> Loaded:
        """Load the model. Raises SourceError where there is none to load; what the model's own
        code raises comes through unchanged."""

    def rebuild(self, options: LoadOptions, seed: int) -> torch.nn.Module | None:
        """The model once more, its random parts drawn from another seed; ``None`` where that
        does not work."""
        try:
            return self.load(replace(options, seed=seed)).model
        except Exception:  # noqa: BLE001 - it has been loaded once: nothing is wrong with it
            return None
