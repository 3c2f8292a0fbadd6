"""Numbers of the layers of a stack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.probe.layers import Layer


@dataclass(frozen=True, kw_only=True)
class LayerEffects(Measurement):
    """``value`` is the smallest of ``changes``, how far each of ``modules`` moves what it is
    given, as a part of it, and of ``follows``, how far its result moves with the numbers in its
    weights (0 where that was not measured). ``sizes`` are those of the results over that of what
    the first layer was given, ``growth`` the largest of them; ``ranks`` are effective ranks,
    ``capacity`` each over the most that it could be."""

    modules: list[str] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    follows: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    capacity: list[float] = field(default_factory=list)
    growth: float | None = None


@dataclass(frozen=True, kw_only=True)
class LogitLens(Measurement):
    """``value`` is the part of the layers after which the largest logit stays what it is in the
    end for nine in ten outputs; ``agreement`` and ``divergence`` (KL in nats) of every layer's
    prediction with the model's."""

    modules: list[str] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)


def effect(layer: Layer, follows: Mapping[str, float]) -> float:
    """What a layer does, by both measures of it."""
    return min(layer.change, follows.get(layer.module, layer.change))


def of_layers(layers: Sequence[Layer], follows: Mapping[str, float]) -> LayerEffects:
    """The numbers of at most 64 layers, side by side."""
    shown = layers[:64]
    return LayerEffects(
        value=min(effect(layer, follows) for layer in layers),
        modules=[layer.module for layer in shown],
        changes=[layer.change for layer in shown],
        follows=[follows.get(layer.module, 0.0) for layer in shown],
        sizes=[layer.size for layer in shown],
        ranks=[layer.rank for layer in shown],
        capacity=[layer.rank / max(layer.most, 1) for layer in shown],
        growth=max(layer.size for layer in layers),
    )


def settled(agreement: Sequence[float]) -> float:
    """The part of the layers after which nine in ten predictions stay."""
    late = next((n for n in range(len(agreement)) if min(agreement[n:]) >= 0.9), len(agreement))
    return (late + 1) / len(agreement)
