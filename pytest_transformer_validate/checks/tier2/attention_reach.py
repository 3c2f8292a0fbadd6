"""Attention weights and the dependency of outputs on tokens agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier2.captured import (
    attention_sites,
    exactly_zero,
    over_own_text,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import attention as numbers
from pytest_transformer_validate.measures.attention import AttentionReach

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.sites import Site


@check(tier=2, tasks=("causal_lm", "masked_lm", "seq2seq"))
def attention_reach(probe: Probe) -> AttentionReach:
    """What attention weights connect is what outputs depend on.

    A key with a weight reaches the output, or its value is lost; and a token on which an output
    depends is reached through attention, unless another module carries it there. Held against the
    dependency matrix of tier 1 (by gradient), on a miss once more with all parameters moved.
    """
    sites = over_own_text(probe, attention_sites(probe))
    length = probe.subject.sizes[1]
    if not sites:
        raise NotApplicable(f"no attention over the {length} tokens of the text itself")
    measured = AttentionReach(value=0.0, limit=exactly_zero(), sites=len(sites), length=length)
    problem, where = "", None
    for condition in ("eval", "noised"):
        matrix = probe.attention_weights.dependency(condition)
        if matrix is None or matrix.shape != (length, length):
            raise NotApplicable("which output depends on which token cannot be read")
        if not bool((matrix.diagonal() > 0).all()):
            continue
        problem, where, pairs, known = _disagreement(probe, condition, matrix)
        measured = replace(measured, value=float(pairs), visible=known)
        if not problem:
            return measured
    if not problem:
        raise NotApplicable("outputs depend on other tokens than those at their own places")
    raise CheckFailed(
        "what attention weights connect must be what outputs depend on\n"
        f"{problem}\nmodule: {where or probe.root}",
        measured,
        where=where or probe.root,
    )


def _disagreement(
    probe: Probe, condition: str, matrix: torch.Tensor
) -> tuple[str, str | None, int, int]:
    """What disagrees, where, at how many pairs, and how many pairs attention connects."""
    sites = over_own_text(probe, probe.attention_weights.sites(condition))
    needed = matrix > 1e-12 * float(matrix.max())
    known = numbers.reachable(sites, len(needed))
    count = int(known.sum())
    lost = [(site, numbers.strong(site).cpu() & (matrix == 0)) for site in sites]
    for site, pairs in lost:
        if bool(pairs.any()):
            query, key = pairs.nonzero()[0].tolist()
            text = (
                f"query {query} gives key {key} a weight of "
                f"{float(numbers.seen(site)[:, query, key].max()):.2g}, and the output at {query} "
                f"does not depend on token {key} at all ({int(pairs.sum())} such pairs)\n"
                "likely: values are cut, masked or taken from other positions than the keys"
            )
            return text, site.module, int(pairs.sum()), count
    beyond = needed & ~known
    if bool(beyond.any()) and not _carried(probe, sites, condition):
        query, key = beyond.nonzero()[0].tolist()
        text = (
            f"the output at {query} depends on token {key}, which no attention connects with it "
            f"({int(beyond.sum())} such pairs)\n"
            "likely: a mean, a state or a shift over positions beside attention"
        )
        return text, None, int(beyond.sum()), count
    return "", None, 0, count


def _carried(probe: Probe, sites: list[Site], condition: str) -> bool:
    """Whether a module without attention in it carries anything from position to position, or
    may: where that cannot be read."""
    inside = {site.module for site in sites}
    found = probe.mixing.footprints(probe.subject.sizes[1], condition)
    if not found or probe.attention_weights.shifts():
        return True
    for each in found:
        holds = any(m == each.module or m.startswith(f"{each.module}.") for m in inside)
        if not holds and each.module != probe.root and numbers.mixes(each):
            return True
    return False
