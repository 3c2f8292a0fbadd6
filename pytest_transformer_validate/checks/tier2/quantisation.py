"""What 8 bits would change. Information: nobody promised a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.measures.agreement import QuantisedAgreement, said

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


@check(tier=2)
def quantisation_effect(probe: Probe) -> QuantisedAgreement:
    """How far predictions move when linear layers are quantised to 8 bits: information.

    torch's dynamic quantisation of a copy, on the CPU. The mean KL divergence and how often the
    largest logit stays the same; a quantised model of your own is judged by ``--tb-reference``.
    """
    found = probe.quantisation.outputs()
    numbers = said(found.logits, found.expected)
    return QuantisedAgreement(
        value=numbers.kl,
        top1=numbers.top1,
        layers=found.layers,
        linear=found.of,
        notes=(
            f"information: with {found.layers} of {found.of} linear layers in 8 bits the largest "
            f"logit is the same at {numbers.top1:.1%} of the outputs, KL {numbers.kl:.2g} nats",
        ),
    )
