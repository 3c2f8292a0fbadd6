"""Forwards that ask for results of their own submodules.

An export of a visual builder may be ``forward(input_0_tokens, mhsa_0_output, residual_0_output)``:
the parameters are what its own submodules compute. They are produced by running the model and
watching those submodules: ``mhsa_0_output`` is what the submodules named ``mhsa_0`` give, and
``residual_1_output`` the input plus the output of the second branch (attention or feed forward).
One run fills in what the next one reads, until nothing changes; the values stay attached to the
graph, so gradients are those of the whole computation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import SubjectError

if TYPE_CHECKING:
    from collections.abc import Callable

_BRANCH = re.compile(r"^(mhsa|attention|attn|ffn|mlp)_\d+")
Values = dict[str, torch.Tensor]


def run_with_intermediates(
    model: torch.nn.Module,
    names: tuple[str, ...],
    call: Callable[[Values], Any],
    blank: torch.Tensor,
) -> Any:
    """Call the model until the intermediates that it is given are those that it computes.

    ``call(values)`` runs it; ``blank`` (B, T, D) stands in for what is not computed yet. Raises
    SubjectError naming a parameter that no submodule produces.
    """
    values = dict.fromkeys(names, blank)
    for _ in range(len(names) + 2):
        groups: dict[str, list[torch.Tensor]] = {}
        handles = _watch(model, groups)
        try:
            raw = call(values)
        finally:
            for handle in handles:
                handle.remove()
        computed = {name: _produce(name, groups) for name in names}
        if all(_same(values[name], computed[name]) for name in names):
            return raw
        values = computed
    raise SubjectError(
        f"forward asks for {', '.join(names)}, and running it with what its submodules give "
        "does not settle: the values depend on each other in a circle"
    )


def _watch(model: torch.nn.Module, groups: dict[str, list[torch.Tensor]]) -> list[Any]:
    """Record, for each group ``mhsa_0``, its first input and its last output."""

    def hook(group: str) -> Callable[..., None]:
        def record(_module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            given = _first_tensor([*args, *kwargs.values()])
            gave = _first_tensor(output)
            if gave is not None:
                entry = groups.pop(group, None)
                start = entry[0] if entry else given if given is not None else gave
                groups[group] = [start, gave]

        return record

    handles = []
    for name, module in model.named_children():
        match = re.match(r"^[a-z]+_\d+", name)
        if match:
            handles.append(module.register_forward_hook(hook(match[0]), with_kwargs=True))
    return handles


def _produce(name: str, groups: dict[str, list[torch.Tensor]]) -> torch.Tensor:
    stem = name.removesuffix("_output")
    if stem in groups:
        return groups[stem][1]
    kind, _, index = stem.partition("_")
    branches = [group for group in groups if _BRANCH.match(group)]
    if kind == "residual" and index.isdigit() and int(index) < len(branches):
        start, gave = groups[branches[int(index)]]
        return start + gave
    raise SubjectError(
        f"forward asks for {name}, and no submodule produces it\n"
        f"  submodules that ran: {', '.join(groups) or 'none with a numbered name'}"
    )


def _first_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, tuple | list):
        return next((t for t in map(_first_tensor, value) if t is not None), None)
    return None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, a NaN being equal to a NaN."""
    if a is b:
        return True
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
