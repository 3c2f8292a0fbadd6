"""Numbers about two models that are meant to say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pytest_transformer_validate.measures.measurement import Limit, Measurement
from pytest_transformer_validate.measures.tolerance import two_shapes_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pytest_transformer_validate.probe.align import Pair

LISTED = 64


@dataclass(frozen=True, kw_only=True)
class Agreement(Measurement):
    """A model against its reference.

    ``value`` is how far the worst logits are apart over all texts (with quantised weights the mean
    KL divergence); ``top1`` the share of outputs with the same largest logit and ``kl`` the mean
    of KL(reference || model) in nats, both of the plain text; ``moved`` the distance by text;
    ``weights`` says which were compared; ``aligned`` how modules were paired (``names``,
    ``order``, ``blocks``), and ``layers`` how far the result of each is apart, of its largest
    number; ``first`` the first of them that differs.
    """

    reference: str
    weights: str
    top1: float | None = None
    kl: float | None = None
    moved: dict[str, float] = field(default_factory=dict)
    aligned: str | None = None
    layers: dict[str, float] = field(default_factory=dict)
    first: str | None = None


class Said(NamedTuple):
    """The share of outputs with the same largest logit, and the mean KL divergence in nats."""

    top1: float
    kl: float


def said(logits: torch.Tensor, expected: torch.Tensor) -> Said:
    """How alike two sets of logits (n, V) are as predictions. Rows with NaN are left out."""
    logits, expected = logits.double(), expected.double().to(logits.device)
    good = ~(logits.isnan().any(-1) | expected.isnan().any(-1))
    logits, expected = logits[good], expected[good]
    if not len(logits):
        return Said(0.0, float("inf"))
    own, theirs = logits.log_softmax(-1), expected.log_softmax(-1)
    kl = (theirs.exp() * (theirs - own)).nan_to_num(0).sum(-1).clamp(min=0)
    same = logits.argmax(-1) == expected.argmax(-1)
    return Said(float(same.double().mean()), float(kl.mean()))


def agreement_limit(
    logits: torch.Tensor, expected: torch.Tensor, noise: float, factor: float, blocks: int
) -> Limit:
    """``factor`` u or 16 times the noise where both have one dtype; else 8 u of the coarser one,
    with sqrt(blocks / 12) for more than 12 blocks, as for half precision."""
    import torch

    if logits.dtype == expected.dtype:
        return two_shapes_limit(expected, noise, factor)
    coarser = max((logits, expected), key=lambda t: torch.finfo(t.dtype).eps)
    factor = 8 * max(1.0, blocks / 12) ** 0.5
    units = two_shapes_limit(expected.to(coarser.dtype), 0.0, factor)
    dtype = str(coarser.dtype).removeprefix("torch.")
    return Limit(value=units.value, rule=f"{factor:g} u of {dtype}")


def by_layer(pairs: Sequence[Pair]) -> dict[str, float]:
    """How far the result of each pair is apart; of many, every second, third..."""
    step = -(-len(pairs) // LISTED) or 1
    return {pair.own.name: pair.apart for pair in pairs[::step]}


@dataclass(frozen=True, kw_only=True)
class QuantisedAgreement(Measurement):
    """A model against its dynamically quantised copy, as information.

    ``value`` is the mean of KL(model || copy) in nats, ``top1`` the share of outputs with the same
    largest logit; ``layers`` of ``linear`` linear layers were quantised.
    """

    top1: float
    layers: int
    linear: int
