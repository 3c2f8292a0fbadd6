"""Backward passes: of the logits, and of what is computed and not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.probe.probe import Probe

_PARTS = 3  # positions 0, 3, 6 ... of those that are not read, 1, 4, 7 ..., 2, 5, 8 ...


def differentiate(probe: Probe, model: torch.nn.Module, outputs: Sequence[torch.Tensor]) -> None:
    """Put the gradient of a random projection of ``outputs`` into ``.grad``.

    By ``backward()``, since ``autograd.grad`` does not see through reversible layers and
    reentrant checkpoints.
    """
    for parameter in model.parameters():
        parameter.grad = None
    generator = torch.Generator().manual_seed(probe.seed_for("gradient projection"))
    parts = [
        (torch.where(t.isfinite(), t, 0) * torch.randn(t.shape, generator=generator).to(t))
        .sum()
        .double()
        for t in outputs
        if t.requires_grad
    ]
    if parts:
        torch.stack(parts).sum().backward(retain_graph=True)


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, a complex one with its two parts along a last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def gradient_norms(tensors: list[torch.Tensor]) -> list[float | None]:
    """The norm of each tensor's gradient, in float64; ``None`` where it has none."""
    grads = [t.grad for t in tensors]
    dense = [
        as_real(g.coalesce().values() if g.is_sparse else g).detach()
        for g in grads
        if g is not None
    ]
    if not dense:
        return [None] * len(grads)
    # one after the other: together, copies of all of them in float64 would be there at a time
    found = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in dense]
    norms = iter(torch.stack([norm.cpu() for norm in found]).tolist())
    return [None if g is None else next(norms) for g in grads]


def reached_beside(
    probe: Probe,
    wanted: Mapping[str, torch.nn.Parameter],
    others: Sequence[torch.Tensor],
    results: Sequence[list[torch.Tensor]],
) -> tuple[set[str], set[str]]:
    """Which of these parameters get a gradient from what stands beside the logits, and which from
    any position that nothing reads.

    ``others`` are what the model returns beside them; ``results`` those of modules, after a
    backward pass of the logits. Positions that nothing reads stand beside where a parameter
    reaches them all over the text (the queries of a last layer of which one position is pooled),
    and not where it reaches one or two only: a token made to be read, and then not read.
    """
    model = probe.subject.model
    unread, parts = _unread_results(results), _unread_positions(results)
    kept = [(p, p.grad) for p in model.parameters()]

    def reached(outputs: Sequence[torch.Tensor]) -> set[str]:
        differentiate(probe, model, outputs)
        norms = gradient_norms(list(wanted.values()))
        return {name for name, norm in zip(wanted, norms, strict=True) if norm}

    beside = reached([*others, *unread]) if others or unread else set()
    at_positions = [reached(part) for part in parts] or [set()]
    for parameter, grad in kept:
        parameter.grad = grad
    return beside | set.intersection(*at_positions), set.union(*at_positions)


def _unread_results(results: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Results without a gradient of modules another result of which has one."""
    unread = []
    for group in results:
        reached = list(map(bool, gradient_norms(group)))
        if any(reached):
            unread += [t for t, has in zip(group, reached, strict=True) if not has]
    return unread


def _unread_positions(results: Sequence[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Positions without a gradient in results (B, T, D) other positions of which have one, dealt
    out in turn to up to three lists."""
    parts: list[list[torch.Tensor]] = [[] for _ in range(_PARTS)]
    for tensor in (t for group in results for t in group if t.dim() == 3 and t.grad is not None):
        assert tensor.grad is not None
        unread = (tensor.grad == 0).all(-1, keepdim=True)
        if bool(unread.all()) or not bool(unread.any()):
            continue
        turn = unread.cumsum(1) % _PARTS
        for number, part in enumerate(parts):
            mine = unread & (turn == number)
            if bool(mine.any()):
                part.append(tensor * mine)
    return [part for part in parts if part]
