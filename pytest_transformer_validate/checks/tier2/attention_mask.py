"""Keys that must not be seen have no weight."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier2.captured import (
    attention_sites,
    exactly_zero,
    few,
    over_own_text,
    tiny,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import attention as numbers
from pytest_transformer_validate.measures.attention import AttentionMask

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.sites import Site
    from pytest_transformer_validate.probe.weights_of_attention import Hidden


PLAIN = 1e-6  # a weight above this shows in the outputs, where it counts at all
WEAK = 1e-3  # a weight below this is what a mask of a small number leaves
FAR = 1e-2  # all padding so far below all real tokens: something was subtracted from its scores


@check(tier=2)
def attention_mask(probe: Probe) -> AttentionMask:
    """Keys that must not be seen have a weight of exactly 0: the future, padding, beyond a window.

    A weight that is small enough not to show in the outputs is one that training can make large.
    Padding is judged where some head hides it, or gives it far less than every real token.
    Where a larger one does not show, positions are not those of the text, and nothing is judged.
    Also judged, in a model that is not trained: cells that are below 1e-8 in every head where no
    other is below 1e-5, which is a mask that does not quite hide.
    """
    sites = attention_sites(probe)
    cells: dict[str, int] = {}
    notes: list[str] = []
    _judge_future(probe, sites, cells, notes)
    for hidden in probe.attention_weights.padded():
        _judge_padding(probe, hidden, cells, notes)
    _judge_window(probe, cells, notes)
    if probe.attention_weights.initial:
        _judge_faint(sites, cells)
    if not any(cells.values()):
        raise NotApplicable(
            "; ".join(few(notes)) or "nothing is hidden: no causal task, no padding, no window"
        )
    return AttentionMask(value=0.0, limit=exactly_zero(), cells=cells, notes=few(notes))


def _judge_future(
    probe: Probe, sites: list[Site], cells: dict[str, int], notes: list[str]
) -> None:
    if probe.subject.task.task_type not in {"causal_lm", "seq2seq"}:
        return
    if probe.subject.given.causal_mask is not None and probe.subject.dtype.itemsize < 4:
        notes.append("which mask the caller has to give cannot be told in half precision")
        return
    for site in over_own_text(probe, sites):
        weights = numbers.seen(site).triu(1)
        value = float(weights.max())
        cells["future"] = cells.get("future", 0) + weights[0].numel() // 2
        if value <= tiny(site):
            continue
        if value > PLAIN and not _leaks(probe):
            notes.append(f"{site.module}: its positions are not those of the text")
            continue
        raise _mask_failure(site, weights, "future", value, cells)


def _leaks(probe: Probe) -> bool:
    """Whether any output depends on a later token."""
    matrix = probe.attention_weights.dependency(probe.subject.sizes[1], "noised")
    return matrix is not None and float(matrix.triu(1).max()) > 0


def _judge_padding(probe: Probe, hidden: Hidden, cells: dict[str, int], notes: list[str]) -> None:
    """Judged in stacks of layers in which some head of some layer hides padding, or gives it far
    less than any real token."""
    judged = [
        (place, site, weights)
        for place, site in enumerate(hidden.sites)
        if (weights := _on_padding(probe, hidden, site)) is not None
    ]
    hiding = {_stack(s) for _, s, w in judged if _means_to_hide(s, w, hidden)}
    for place, site, given in judged:
        if _stack(site) not in hiding:
            notes.append(f"{site.module}: padding has a weight here, and in all layers beside it")
            continue
        cells["padding"] = cells.get("padding", 0) + int((~hidden.keep).sum()) * site.shape[0]
        weights = given
        if float(given.max()) > PLAIN:
            weights = given * probe.attention_weights.reaches(hidden, place)
        value = float(weights.max())
        if value > tiny(site):
            raise _mask_failure(site, weights, "padding", value, cells)


def _means_to_hide(site: Site, padding: torch.Tensor, hidden: Hidden) -> bool:
    if float(padding.amax((1, 2)).min()) <= PLAIN:
        return True
    real = numbers.seen(site)[..., hidden.keep.to(site.weights.device)]
    least = real.masked_fill(real == 0, float("inf")).amin((1, 2))
    return bool((padding.amax((1, 2)) < FAR * least).any())


def _stack(site: Site) -> str:
    """What the names of layers of one list have in common."""
    return re.sub(r"\d+", "#", site.module)


def _on_padding(probe: Probe, hidden: Hidden, site: Site) -> torch.Tensor | None:
    """The weights that queries of real tokens give to padding, 0 elsewhere; ``None`` where the
    keys are not the padded tokens."""
    queries, source = probe.subject.sizes[1], probe.attention_weights.source_length
    crossing = source is not None and source != queries and site.shape[0] == queries
    own = site.shape[0] == len(hidden.keep)
    if site.shape[1] != len(hidden.keep) or not (own or crossing):
        return None
    weights = numbers.seen(site).clone()
    weights[..., hidden.keep] = 0
    if own:
        weights[:, ~hidden.keep] = 0
    return weights


def _judge_window(probe: Probe, cells: dict[str, int], notes: list[str]) -> None:
    """In a layer in which most heads keep to the declared window, all do."""
    window = probe.window
    if window is None or probe.subject.vision:
        return
    for site in probe.attention_weights.long():
        length = site.shape[0]
        if site.shape[1] != length or length <= window + 2:
            continue
        weights = numbers.seen(site)
        beyond = weights.tril(-window - 1) + weights.triu(window + 1)
        free = (beyond > tiny(site)).any(-1).any(-1)
        cells["window"] = cells.get("window", 0) + (length - window) ** 2
        if bool(free.all()):
            notes.append(f"{site.module}: no head keeps to the declared window of {window}")
        if 0 < int(free.sum()) <= len(free) / 4:
            raise _mask_failure(site, beyond, "window", float(beyond.max()), cells)


def _judge_faint(sites: list[Site], cells: dict[str, int]) -> None:
    for site in sites:
        if site.normal != "softmax" or site.remade:
            continue
        found = numbers.faint(site)
        cells["any"] = cells.get("any", 0) + int((site.weights == 0).sum())
        if found is None:
            continue
        value, (head, query, key) = found
        raise CheckFailed(
            f"{_MASK}\n"
            f"the weight of head {head} at query {query} and key {key} is {value:.2g}: not 0, and "
            "far below all others of its row\n"
            f"module: {site.module}\n"
            f"likely: {_WEAK}",
            AttentionMask(value=value, limit=exactly_zero(), cells=cells),
            where=site.module,
        )


_MASK = "keys that must not be seen have a weight of exactly 0"
_WEAK = "the mask adds too small a number to the scores: float('-inf'), or torch.finfo(dtype).min"
_MISSING = {
    "future": "the causal mask is missing, shifted, or does not reach this layer or head",
    "padding": "the padding mask is missing, or does not reach this layer or head",
    "window": "one of the heads goes without the window",
}
_RULES = {
    "future": "later than the query",
    "padding": "padding for the query",
    "window": "beyond the declared window of the query",
}


def _mask_failure(
    site: Site, weights: object, rule: str, value: float, cells: dict[str, int]
) -> CheckFailed:
    place = int(weights.argmax())  # type: ignore[attr-defined]
    queries, keys = site.shape
    head, cell = divmod(place, queries * keys)
    query, key = divmod(cell, keys)
    return CheckFailed(
        f"{_MASK}\n"
        f"key {key} is {_RULES[rule]} {query} and has a weight of {value:.2g} in head {head}\n"
        f"module: {site.module}\n"
        f"likely: {_WEAK if value < WEAK else _MISSING[rule]}",
        AttentionMask(value=value, limit=exactly_zero(), cells=cells),
        where=site.module,
    )
