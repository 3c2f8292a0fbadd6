"""What a spec is parsed to, and what loading it gives."""

from __future__ import annotations

import contextlib
import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_transformer_validate.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from pytest_transformer_validate.sources.config import ModelConfig


_LONGEST_ID = 120
_ODD = re.compile(r"[^A-Za-z0-9._:/@=-]+")


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

    ``spec`` is what was typed, ``short`` its short form, and ``id``, which heads node ids, the
    short form fit for every report (see ``node_id``); ``fetched`` says whether its code comes
    from another machine: such a model runs in a worker, with recorded consent.
    ``needs`` are packages, and the extras that install them, without which it cannot be loaded.
    """

    spec: str
    id: str
    short: str
    fetched: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __post_init__(self) -> None:
        """Keep the id that was given as ``short``."""
        object.__setattr__(self, "short", self.id)
        object.__setattr__(self, "id", node_id(self.id))

    @abstractmethod
    def load(self, options: LoadOptions) -> Loaded:
        """Load the model. Raises SourceError where there is none to load; what the model's own
        code raises comes through unchanged."""

    def provenance(self) -> str:
        """Lines for the header of a run: which revision of a fetched model runs and who accepted
        it. Empty for a model of the user's own."""
        return ""

    def rebuild(self, options: LoadOptions, seed: int) -> torch.nn.Module | None:
        """The model once more, its random parts drawn from another seed; ``None`` where that
        does not work."""
        try:
            return self.load(replace(options, seed=seed)).model
        except Exception:  # noqa: BLE001 - it has been loaded once: nothing is wrong with it
            return None


def node_id(short: str) -> str:
    """``short`` where it is plain, of 1 to 120 letters, digits and ``._:/@=-``; else what is
    plain of its end, and a hash that tells it from others."""
    if 0 < len(short) <= _LONGEST_ID and not _ODD.search(short) and redact(short) == short:
        return short
    digest = hashlib.sha256(short.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    end = _ODD.sub("_", redact(short))[-_LONGEST_ID:].lstrip("-")
    return f"{end}-{digest}"
