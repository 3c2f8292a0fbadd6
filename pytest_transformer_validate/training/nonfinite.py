"""Where in a step the first number that is not finite arose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.training.precision import Precision
    from pytest_transformer_validate.training.steps import Stepper


def first_bad_tensor(
    model: torch.nn.Module,
    stepper: Stepper,
    precision: Precision,
    batches: Sequence[Mapping[str, Any]],
) -> str:
    """In words: a parameter, an input, the output of a module in order of execution, the loss, or
    the gradient of a parameter, the one nearest to the loss first."""
    for name, parameter in model.named_parameters():
        if not parameter.detach().isfinite().all():
            return f"parameter {name}"
    for batch in batches:
        found = _in_batch(batch) or _in_pass(model, stepper, precision, batch)
        if found is not None:
            return found
    return "a gradient that a second pass does not show again"


def _in_batch(batch: Mapping[str, Any]) -> str | None:
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            return f"input {name}"
    return None


def _in_pass(
    model: torch.nn.Module, stepper: Stepper, precision: Precision, batch: Mapping[str, Any]
) -> str | None:
    bad: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if not bad and any(not t.detach().isfinite().all() for t in floating(output)):
                bad.append(name)

        return hook

    handles = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n]
    try:
        with precision.forward():
            loss = stepper(batch).loss
    finally:
        for handle in handles:
            handle.remove()
    if bad:
        return f"the output of {bad[0]}"
    if not loss.detach().isfinite():
        return "the loss"
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    for (name, _), grad in zip(reversed(named), reversed(grads), strict=True):
        if grad is not None and not grad.isfinite().all():
            return f"the gradient of {name}"
    return None
