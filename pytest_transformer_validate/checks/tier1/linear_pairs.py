"""Whether something stands between two linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import Blocked, CheckFailed

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.structure import Structure
    from pytest_transformer_validate.probe.probe import Probe

_NONE = {"linear", "identity"}


def judge_linear_pairs(probe: Probe, measured: Structure) -> None:
    """Raise CheckFailed where a linear layer reads just what another one gives, and what stands
    between them is wider than what goes in and what comes out: two that act as one. Narrower, the
    pair is a factorisation, as where the configuration calls that width a rank; a configuration
    may ask for no activation."""
    try:
        pairs = sorted(probe.gradients().as_one)
    except (Blocked, RuntimeError):  # gradient_flow judges models without a backward
        return
    if not pairs or _asked_for(probe):
        return
    shapes = {name: list(p.shape) for name, p in probe.subject.model.named_parameters()}
    ranks = _ranks(probe)
    pairs = [pair for pair in pairs if not ranks.intersection(shapes[pair[0]])]
    if not pairs:
        return
    first, second = pairs[0]
    where = ".".join(second.split(".")[:-2]) or probe.root
    raise CheckFailed(
        "between two linear layers stands what is not linear\n"
        f"{second} {shapes[second]} reads just what {first} {shapes[first]} gives: together they "
        "can do no more than one layer\n"
        f"module: {where}\n"
        "likely: the activation between them is missing\n"
        'on purpose? declare it: "expect_fail" in config.json, or tb_expect_fail',
        measured,
        where=where,
    )


def _asked_for(probe: Probe) -> bool:
    """Whether the configuration names an activation that is none."""
    return any(str(value).lower() in _NONE for value in _declared(probe, "act"))


def _ranks(probe: Probe) -> set[int]:
    """The widths that the configuration calls ranks."""
    return {rank for rank in _declared(probe, "rank") if isinstance(rank, int)}


def _declared(probe: Probe, word: str) -> list[Any]:
    """The values of all keys of the configuration in which a word is."""
    from pytest_transformer_validate.subject.declared import levels  # which imports torch

    return [
        level.get(key)
        for level in levels(probe.subject.config)
        for key in level
        if word in str(key)
    ]
