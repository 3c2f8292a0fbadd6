"""The model is there and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import Budget, check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.outputs import Size

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


@check(tier=1, budgets=[Budget("parameters")])
def load(probe: Probe) -> Size:
    """The model builds, has parameters, and a forward in eval mode gives logits.

    What stands in the way is said once, here, and blocks the other checks. The record holds the
    numbers of parameters and buffers, and in what the forward returns its logits.
    """
    subject = probe.subject
    if not subject.parameters:
        raise CheckFailed(
            "a model has parameters that training can change; this one has none\n"
            "likely: layers in a plain list or dict (use nn.ModuleList, nn.ModuleDict), or "
            "tensors that are no nn.Parameter"
        )
    facts = subject.facts
    lent = subject.lent_pad
    note = f"forward asks for a padding id and none is declared: pad_token_id {lent} is lent"
    return Size(
        value=float(subject.parameters),
        notes=() if lent is None else (note,),
        parameters=subject.parameters,
        buffers=sum(b.numel() for b in subject.model.buffers()),
        output=f"{facts.kind}, logits in {facts.output_field!r}",
    )
