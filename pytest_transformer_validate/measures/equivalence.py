"""Numbers about one model computed in two ways."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.checkpointing import Trained


@dataclass(frozen=True, kw_only=True)
class Backends(Measurement):
    """``value`` is how far the outputs of the worst pair of ways are apart; ``moved`` the same by
    way, ``worst`` the way that it is about."""

    moved: dict[str, float] = field(default_factory=dict)
    worst: str | None = None


@dataclass(frozen=True, kw_only=True)
class Generation(Measurement):
    """``value`` is how far the worst chosen token's logit is behind the largest one; ``logits``
    how far the logits inside of generate are from those of the text at once (``None`` where they
    cannot be seen); ``step`` and ``row`` the first token that differs; ``texts`` how many texts
    were generated, ``tokens`` how many tokens."""

    logits: float | None = None
    step: int | None = None
    row: int | None = None
    texts: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpointed(Measurement):
    """``value`` is by how many times its limit the worst gradient is off, or the loss; ``way`` how
    checkpoints were turned on, ``parts`` the modules that ran again for the backward; ``loss``
    without and with checkpoints; ``worst`` the parameter whose gradient is farthest off."""

    way: str
    parts: tuple[str, ...] = ()
    loss: tuple[float, float] = (0.0, 0.0)
    worst: str | None = None


def far_gradients(
    plain: Trained, again: Trained, other: Trained, factor: float
) -> dict[str, float]:
    """By parameter: how far its gradient in ``other`` is from the one in ``plain``, in limits.

    The limit of a parameter is ``factor`` u of its own gradient, 16 times what a repetition
    (``again``) moves, and what rounding moves beside the largest gradient of all. A gradient that
    is there in one run only is infinitely far.
    """
    import torch

    found: dict[str, float] = {}
    largest = max((float(g.abs().max()) for g in plain.gradients.values() if g.numel()), default=0)
    for name in plain.gradients.keys() | other.gradients.keys():
        first, second = plain.gradients.get(name), other.gradients.get(name)
        if first is None or second is None:
            there = first if second is None else second
            found[name] = float("inf") if there is not None and bool(there.any()) else 0.0
            continue
        eps = torch.finfo(first.dtype).eps
        repeated = float((first - again.gradients.get(name, first)).abs().max())
        limit = eps * (factor * float(first.abs().max()) + largest) + 16 * repeated
        moved = float((first - second).abs().nan_to_num(float("inf")).max())
        found[name] = moved / limit if limit else float(moved > 0)
    return found


@dataclass(frozen=True, kw_only=True)
class Programs(Measurement):
    """``value`` is how far a program that torch made is from the model at the worst shape;
    ``shapes`` the same by shape (``"5x11"``, rows x length); ``refused`` what it said at shapes
    that it does not take, ``static`` the axes that it fixed; ``breaks`` counts graph breaks."""

    shapes: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    static: tuple[str, ...] = ()
    breaks: int | None = None
