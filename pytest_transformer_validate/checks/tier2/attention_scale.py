"""Scores are scaled by 1/sqrt(d), once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier2.captured import (
    attention_sites,
    few,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import attention as numbers
from pytest_transformer_validate.measures.attention import AttentionScale
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.sites import Site

_WORDS = {
    "missing": (
        "not scaled",
        "the division by math.sqrt(d) is missing, or scale=1.0 is given",
    ),
    "doubled": (
        "scaled by {:.3g} = 1/d",
        "queries are scaled before scaled_dot_product_attention too",
    ),
    "whole": (
        "scaled by {:.3g} = 1/sqrt(heads x d)",
        "the width of the model is taken for that of a head",
    ),
}


@check(tier=2)
def attention_scale(probe: Probe) -> AttentionScale:
    """Scores of a model that is not trained are scaled by 1/sqrt(d), once.

    Read from what is multiplied on the way from the projections of queries and keys to the
    softmax. No scale at all (1), both (1/d), or that of all heads together, 1/sqrt(heads x d),
    fails, unless the configuration says so, the projections start small enough to make up for it,
    queries or keys are normalised, or the scale is learned. Other factors are left alone.
    """
    sites = [s for s in attention_sites(probe) if s.normal in {"softmax", "exponential"}]
    if not probe.attention_weights.initial:
        raise NotApplicable("the weights may be trained: what they make of the scale is theirs")
    known = [s for s in sites if s.scale is not None and s.projected]
    if not known:
        learned = any(s.learned for s in sites)
        raise NotApplicable(
            "the scale is learned, or queries and keys are normalised by what is learned"
            if learned
            else "the factor between query times key and the softmax cannot be told"
        )
    factors = {s.module: _ratio(s) for s in known}
    spread = {s.module: numbers.score_spread(s) for s in known}
    value = max(factors.values(), key=lambda r: abs(math.log(abs(r))) if r else math.inf)
    measured = AttentionScale(
        value=value,
        limit=Limit(value=1.0, rule="1/sqrt(d)"),
        factors=factors,
        spread=spread,
    )
    notes = []
    for site in known:
        excuse = _judge_scale(probe, site, measured)
        if excuse:
            notes.append(f"{site.module}: {excuse}")
    return replace(measured, notes=few(notes))


def _judge_scale(probe: Probe, site: Site, measured: AttentionScale) -> str:
    """Why an unusual scale is right, or nothing where it is the usual one."""
    scale, usual = site.scale, numbers.usual_scale(site)
    if scale is None or usual > 0.5 or numbers.near(scale, usual):
        return ""
    kind = _kind(site, scale, usual)
    if kind is None:
        return f"scores are scaled by {scale:.3g}, {scale / usual:.3g} times 1/sqrt(d)"
    told = probe.attention_weights.declared_scale(scale)
    if told:
        return f"scores are scaled by {scale:.3g}, as {told} says"
    one, other, even = numbers.norms(site)
    if even:
        return "queries or keys are normalised"
    if kind == "missing" and min(one, other) <= usual**0.5 * max(one, other):
        return "no scale: the projections start small enough to make up for it"
    width = round(usual**-2)
    what, likely = _WORDS[kind]
    spread = numbers.score_spread(site)
    raise CheckFailed(
        "scores must be scaled by 1/sqrt(d), once\n"
        f"query times key is {what.format(scale)} before the softmax, d is {width}: "
        f"{scale / usual:.3g} times "
        f"1/sqrt(d); the scores have a standard deviation of {spread:.2g}\n"
        f"module: {site.module}\n"
        f"likely: {likely}\n"
        'on purpose? declare it: "attention_multiplier" in config.json',
        measured,
        where=site.module,
    )


def _kind(site: Site, scale: float, usual: float) -> str | None:
    """Which mistake makes this scale; nothing where none does."""
    heads = len(site.weights)
    made = {"missing": 1.0, "doubled": usual**2, "whole": usual * heads**-0.5}
    return next((kind for kind, other in made.items() if numbers.near(scale, other)), None)


def _ratio(site: Site) -> float:
    return (site.scale or 0.0) / numbers.usual_scale(site)
