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
    length = probe.subject.sizes[1]
    sites = over_own_text(probe, attention_sites(probe))
    if not sites:
        raise NotApplicable(f"no attention over the {length} tokens of the text itself")
    measured = _judge(probe, length, len(sites))
    longer = probe.attention_weights.long_length
    if probe.subject.small and longer > length and _limited(probe, longer):
        return _judge(probe, longer, len(sites))
    return measured


def _limited(probe: Probe, length: int) -> bool:
    """Whether attention of a longer text leaves out cells that the task allows."""
    sites = over_own_text(probe, probe.attention_weights.long(), length)
    encodes = probe.subject.task.task_type == "masked_lm"
    allowed = length**2 if encodes else length * (length + 1) // 2
    return bool(sites) and int(numbers.reachable(sites, length).sum()) < allowed


def _judge(probe: Probe, length: int, count: int) -> AttentionReach:
    measured = AttentionReach(value=0.0, limit=exactly_zero(), sites=count, length=length)
    problem, where = "", None
    for condition in ("eval", "noised"):
        matrix = probe.attention_weights.dependency(length, condition)
        if matrix is None:
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
    length = len(matrix)
    found = probe.attention_weights.of_length(length, condition)
    sites = over_own_text(probe, found, length)
    known = numbers.reachable(sites, length)
    count = int(known.sum())
    for site in sites:
        pairs = numbers.strong(site).cpu() & (matrix == 0)
        if bool(pairs.any()):
            query, key = pairs.nonzero()[0].tolist()
            text = (
                f"query {query} gives key {key} a weight of "
                f"{float(site.weights[:, query, key].max()):.2g}, and the output at {query} "
                f"does not depend on token {key} at all ({int(pairs.sum())} such pairs)\n"
                "likely: the result of this attention is lost, or values are cut off"
            )
            return text, site.module, int(pairs.sum()), count
    beyond = (matrix > 1e-12 * float(matrix.max())) & ~known
    if not bool(beyond.any()):
        return "", None, 0, count
    carried, where = _carried(probe, sites, length, condition)
    if carried:
        return "", None, 0, count
    query, key = beyond.nonzero()[0].tolist()
    text = (
        f"the output at {query} depends on token {key}, which no attention connects with it "
        f"({int(beyond.sum())} such pairs)\n"
        "likely: a mean, a state or a shift over positions beside attention"
    )
    return text, where, int(beyond.sum()), count


def _carried(
    probe: Probe, sites: list[Site], length: int, condition: str
) -> tuple[bool, str | None]:
    """Whether a module without attention in it carries anything from position to position, or
    may, where that cannot be read; and the first module that carries more than its attention."""
    found = probe.mixing.footprints(length, condition)
    if not found or probe.attention_weights.shifts():
        return True, None
    where = None
    for each in found:
        own = [s for s in sites if _holds(each.module, s.module, probe.root)]
        if not own and numbers.mixes(each):
            return True, None
        if where is None and numbers.beyond(each, numbers.reachable(own, length)):
            where = each.module
    return False, where


def _holds(module: str, inner: str, root: str) -> bool:
    return module in (root, inner) or inner.startswith(f"{module}.")
