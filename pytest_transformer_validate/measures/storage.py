"""Numbers about where the weights live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Limit, Measurement

if TYPE_CHECKING:
    import torch

# What loading a checkpoint may change: some models fold or recompute a constant (6e-8 measured).
ABSOLUTE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Tying(Measurement):
    """Whether the table that the ids index and the head share storage.

    ``table`` and ``head`` are names of the two, ``declared`` the key of the configuration and its
    value, ``shared`` what was found, ``copied`` that they hold the same numbers apart.
    """

    table: str = ""
    head: str = ""
    declared: str | None = None
    shared: bool = False
    copied: bool = False


@dataclass(frozen=True, kw_only=True)
class RoundTrip(Measurement):
    """How far logits move over a checkpoint: ``value`` the largest difference over all ``ways``,
    ``fresh`` what the checkpoint was loaded into."""

    fresh: str = ""
    ways: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Registered(Measurement):
    """Tensors outside of the model's parameters and buffers.

    ``held`` are the names of those that modules hold as plain attributes; ``stays`` the operation
    at which one stays behind on another device.
    """

    held: tuple[str, ...] = ()
    stays: str | None = None


def trip_limit(reference: torch.Tensor) -> Limit:
    """The limit for the logits after a checkpoint, at outputs like ``reference``."""
    finite = reference[reference.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return Limit(value=ABSOLUTE * max(1.0, largest), rule="1e-6 of the largest logit, at least 1")
