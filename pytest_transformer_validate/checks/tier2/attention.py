"""Attention weights: rows that sum to 1, heads that differ, and what can be reported."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier2.captured import (
    attention_sites,
    eps,
    few,
    over_tokens,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import attention as numbers
from pytest_transformer_validate.measures.attention import (
    AttentionHeads,
    AttentionPatterns,
    AttentionRows,
)
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.sites import Site


_SINGLE = 2.0**-23
_HAND = 1e-3  # a sum that is added to, so that nothing is divided by zero


@check(tier=2)
def attention_rows(probe: Probe, *, factor: float = 64.0) -> AttentionRows:
    """Attention weights are one softmax: not negative, and 1 in sum over the keys, as they meet
    the values.

    ``factor`` u are allowed. A softmax with columns beside the keys (sinks) may sum to less;
    weights that a gate, a mixture of heads or another function makes promise no sum.
    """
    sites = attention_sites(probe)
    worst, judged, notes = 0.0, 0, []
    for site in sites:
        if site.normal in {"none", "unknown"} or site.remade:
            notes.append(f"{site.module}: weights are made by more than a softmax")
            continue
        if site.twice:
            raise _twice(site, len(sites))
        off = numbers.off_one(site)
        if site.normal == "exponential":
            axis = numbers.sums_to_one_along(site) if off > _HAND else ""
            if off > _HAND and not axis:
                notes.append(f"{site.module}: exponentials that are not divided by their sum")
                continue
        limit = Limit(value=factor * eps(site), rule=f"{factor:g} u")
        if site.normal == "exponential":
            limit = Limit(value=_HAND, rule="a sum by hand")
        judged += 1
        worst = max(worst, off)
        least = float(site.weights.min())
        if off > limit.value or least < 0:
            measured = AttentionRows(value=off, limit=limit, sites=len(sites), judged=judged)
            raise _rows_failure(site, measured, off, least)
    if not judged:
        raise NotApplicable(f"no weights promise a sum: {'; '.join(few(notes))}")
    limit = Limit(value=factor * probe.eps, rule=f"{factor:g} u")
    return AttentionRows(
        value=worst, limit=limit, sites=len(sites), judged=judged, notes=few(notes)
    )


def _twice(site: Site, sites: int) -> CheckFailed:
    scores = site.scores
    low, high = (0.0, 1.0) if scores is None else map(float, scores.aminmax())
    return CheckFailed(
        "attention weights must be one softmax of the scores\n"
        f"the softmax of a softmax: what is scores to the second lies between {low:.2g} and "
        f"{high:.2g}, so that no key can have much more weight than another\n"
        f"module: {site.module}\n"
        "likely: a softmax beside scores that were normalised before, or two in one function",
        AttentionRows(value=None, sites=sites),
        where=site.module,
    )


def _rows_failure(site: Site, measured: AttentionRows, off: float, least: float) -> CheckFailed:
    axis = numbers.sums_to_one_along(site)
    times = next((w for w in site.changed if w.startswith("times ")), "")
    if axis:
        likely = f"the softmax runs over the {axis}: dim=-1, over the keys, is meant"
    elif times:
        likely = f"weights are multiplied behind the softmax ({times}): scale the scores"
    elif "masked" in site.changed:
        likely = "weights are masked behind the softmax: mask the scores with -inf before it"
    else:
        likely = "weights are changed behind the softmax"
    return CheckFailed(
        "attention weights must be non-negative and sum to 1 over the keys\n"
        f"a row of weights {tuple(site.weights.shape)} is {off:.2g} away from 1 (limit "
        f"{measured.limit}), the smallest weight is {least:.2g}\n"
        f"module: {site.module}\n"
        f"likely: {likely}",
        measured,
        where=site.module,
    )


@check(tier=2)
def attention_heads(probe: Probe, *, factor: float = 16.0) -> AttentionHeads:
    """No two heads of a layer have the same weights.

    Heads that look at all keys alike, as they do where queries start at zero, do not count. A copy
    is equal to ``factor`` u of float32 in any dtype, as the model is and with all parameters moved
    at random.
    """
    sites = attention_sites(probe)
    several = [s for s in sites if len(s.weights) > 1]
    if not several:
        raise NotApplicable("every layer has one head")
    closest = math.inf
    limit = Limit(value=factor * _SINGLE, rule=f"{factor:g} u of float32")
    for place, site in enumerate(several):
        distance, one, other = numbers.copies(site)
        closest = min(closest, distance)
        if distance > limit.value or not _copied_noised(probe, place, limit.value):
            continue
        raise CheckFailed(
            "heads of a layer must differ\n"
            f"heads {one} and {other} of {len(site.weights)} have the same weights, to "
            f"{distance:.2g} (limit {limit})\n"
            f"module: {site.module}\n"
            "likely: heads are given the same slice of the projection, or start as copies",
            AttentionHeads(value=distance, limit=limit, sites=len(several)),
            where=site.module,
        )
    return AttentionHeads(
        value=None if math.isinf(closest) else closest,
        limit=limit,
        sites=len(several),
        heads=sum(len(s.weights) for s in several),
    )


def _copied_noised(probe: Probe, place: int, limit: float) -> bool:
    again = [s for s in over_tokens(probe, "noised") if len(s.weights) > 1]
    return place < len(again) and numbers.copies(again[place])[0] <= limit


@check(tier=2)
def attention_patterns(probe: Probe, *, uniform: float = 0.5) -> AttentionPatterns:
    """Entropy, mass on the first token, distance and diversity of every head: information.

    Judged is one thing, and only in a model whose weights are trained: that in no more than the
    part ``uniform`` of all layers every head looks at all keys alike.
    """
    sites = [s for s in over_tokens(probe, "long") if s.normal != "none"] or attention_sites(probe)
    layers = tuple(numbers.layer(site) for site in sites[:64])
    ends = {site.module: numbers.picture(site) for site in (sites[0], sites[-1])}
    collapsed = tuple(each.module for each in layers if each.uniform)
    measured = AttentionPatterns(
        value=numbers.mean_entropy(layers), layers=layers, collapsed=collapsed, pictures=ends
    )
    if not probe.attention_weights.trained:
        note = "information: the weights show no training, so nothing is judged"
        return replace(measured, notes=(note,))
    if len(collapsed) > uniform * len(layers):
        raise CheckFailed(
            "attention of a trained model must tell keys apart\n"
            f"in {len(collapsed)} of {len(layers)} layers every head looks at all keys alike "
            "(entropy over 0.9999 of its maximum)\n"
            f"module: {collapsed[0]}\n"
            "likely: scores are scaled to nothing, or queries and keys were not loaded",
            replace(measured, limit=Limit(value=uniform, rule="of all layers")),
            where=collapsed[0],
        )
    return replace(measured, notes=("information: only a collapse is judged",))
