"""A text decoded token by token is the text at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.cache_mistakes import (
    RESTARTS,
    SEVERAL,
    likely_mistake,
)
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from pytest_transformer_validate.measures.caches import KvCache
from pytest_transformer_validate.measures.dependency import worst_leak
from pytest_transformer_validate.measures.tolerance import (
    ARBITRATED,
    doubtful,
    same_shape_limit,
    settle,
    two_shapes_limit,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.caches import Decoded
    from pytest_transformer_validate.probe.decoding import Plan
    from pytest_transformer_validate.probe.probe import Probe

RULE = "decoding with the cache must give the logits of the whole text"
CASES = ("steps", "chunks", "long", "padded")
_REFUSALS = ("ValueError", "NotImplementedError", "AssertionError")  # what says no on purpose


@check(tier=1, tasks=("causal_lm", "seq2seq"), cases=CASES)
def kv_cache(probe: Probe, case: str, *, factor: float = 64.0) -> KvCache:
    """Decoding with the cache gives the logits of the whole text.

    ``steps``: one token after the other, after another text was decoded, and the whole text with
    ``use_cache``; ``chunks``: pieces of several tokens, and a continuation after the same prefix
    went on otherwise (all parameters moved at random in small models); ``long``: past a declared
    window and far into a long text, one row; ``padded``: rows padded differently on the left,
    with their mask and positions; behind an encoder, sources padded on the right. Two paths:
    ``factor`` u are allowed, or 16 times the noise.
    """
    caches = probe.caches
    protocol = caches.protocol()
    signature = probe.subject.signature
    decodes = probe.subject.decodes
    if case == "padded" and decodes and probe.padding.tells(probe.padding.sequences[0]) is None:
        raise NotApplicable("nothing tells of padding in the source, and texts begin behind it")
    if case == "padded" and not decodes and not signature.takes("attention_mask"):
        raise NotApplicable("forward takes no attention_mask for what it decodes")
    plans = caches.plan(case)
    if not plans:
        raise NotApplicable(f"no text of {probe.subject.max_length} tokens is long enough for it")
    notes: list[str] = []
    results = [_judge(probe, plan, factor, notes) for plan in plans]
    if case == "steps" and protocol.made is not None:
        _judge_without(probe, results[0])
    worst = max(results, key=lambda r: (r.value or 0.0) / (r.limit.value or 1.0) if r.limit else 0)
    return dataclasses.replace(worst, protocol=protocol.text, notes=tuple(notes))


def _judge(probe: Probe, plan: Plan, factor: float, notes: list[str]) -> KvCache:
    found = probe.caches.decoded(plan)
    limit = _limit(probe, plan, found, factor)
    measured = KvCache(
        value=found.worst,
        limit=limit,
        protocol=probe.caches.protocol().text,
        rows=plan.rows,
        pieces=plan.pieces,
    )
    if found.raised is None and found.misshapen is None and found.worst <= limit.value:
        return measured
    _require_causal(probe, plan)
    if not plan.whole and not plan.padded and probe.caches.takes_last():
        notes.append("every call is given the whole text: the model takes its last token itself")
        steps = (1,) * (plan.length - plan.pieces[0])
        whole = dataclasses.replace(plan, pieces=(plan.pieces[0], *steps), whole=True)
        return _judge(probe, whole, factor, notes)
    refused = found.raised is not None and found.raised.startswith(_REFUSALS)
    if plan.source and found.raised is not None and (refused or not found.at):
        raise NotApplicable(f"with a padded source and a cache, forward raises {found.raised}")
    if found.raised is not None or found.misshapen is not None:
        return _without_logits(probe, plan, found, measured, factor, notes)
    verdict = settle(
        found.worst,
        limit,
        lambda: probe.repeated(lambda other: _repeat(other, plan)),
        sure=doubtful(probe.subject.dtype),
    )
    notes.extend(verdict.notes)
    if not verdict.exceeded:
        return measured
    if plan.condition and found.worst <= ARBITRATED * limit.value:
        notes.append("with parameters moved at random it is rounding or little more: as loaded")
        return _judge(probe, dataclasses.replace(plan, condition=""), factor, notes)
    if plan.positions and not plan.padded and _counts_past_padding(probe, plan.condition):
        return _judge(probe, dataclasses.replace(plan, positions=False), factor, notes)
    position = found.first_over(limit.value)
    _require_comparable(probe, plan, position, limit)
    cached, index = plan.piece_at(position)
    size = plan.pieces[index]
    several = size > 1 and cached and not probe.caches.grows()
    if several and position == cached:
        notes.append("the cache is a state: several tokens after it at once do not go on from it")
        return dataclasses.replace(measured, value=0.0)
    likely = SEVERAL if several else likely_mistake(probe, plan, limit, position)
    if likely == RESTARTS and probe.caches.self_positioned:
        notes.append(f"{likely}, which prepare_inputs_for_generation does")
        return dataclasses.replace(measured, value=0.0)
    where = probe.caches.locate(plan, position)
    measured = dataclasses.replace(measured, position=position, cached=cached)
    raise CheckFailed(_text(plan, measured, where, likely, verdict.notes), measured, where=where)


def _judge_without(probe: Probe, measured: KvCache) -> None:
    """Fail where a forward without a cache goes on from a text that was decoded with one."""
    if probe.subject.sizes[1] < 2:
        return
    moved, reference, where = probe.caches.plain_after()
    limit = same_shape_limit(reference)
    if moved > limit.value:
        measured = dataclasses.replace(measured, value=moved, limit=limit)
        raise CheckFailed(
            f"{RULE}\n"
            f"without a cache, the logits of a text move by up to {moved:.2g} (limit {limit}) "
            f"once a text was decoded with one; cache: {measured.protocol}\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: a position that is counted for the cache is used without one, too",
            measured,
            where=where,
        )


def _limit(probe: Probe, plan: Plan, found: Decoded, factor: float) -> Limit:
    if not bool(found.reference.isfinite().any()):
        raise Blocked("logits hold no finite number: see output_stability")
    return two_shapes_limit(found.reference, probe.caches.noise(plan.condition), factor)


def _repeat(other: Probe, plan: Plan) -> float:
    found = other.caches.decoded(plan)
    if found.raised is not None:
        raise Blocked(found.raised)
    return found.worst


def _require_causal(probe: Probe, plan: Plan) -> None:
    """Raise NotApplicable where earlier outputs know later tokens: nothing can be cached then."""
    if looks_ahead(probe, plan.condition):
        raise NotApplicable("outputs depend on later tokens (see causality): nothing to cache")


def looks_ahead(probe: Probe, condition: str = "") -> bool:
    """Whether an output depends on a later token."""
    if probe.subject.sizes[1] < 2:
        return False
    for plan in probe.swap_plans():
        if plan.name in {"every", condition}:
            swaps = probe.position_swaps(plan)
            limit = same_shape_limit(swaps.reference)
            if not worst_leak(swaps, limit.value).value <= limit.value:
                return True
    return False


def _counts_past_padding(probe: Probe, condition: str) -> bool:
    """Whether the model's own positions begin behind the padding id: then none are given."""
    found = probe.caches.past_padding(condition)
    return found is not None and found[0] <= same_shape_limit(found[1]).value


def _require_comparable(probe: Probe, plan: Plan, position: int, limit: Limit) -> None:
    """Raise NotApplicable where the same happens without a cache."""
    if plan.padded and not probe.caches.grows():
        raise NotApplicable("the cache is a state: whether a mask goes with it is not known")
    if probe.caches.without(plan, position) > limit.value:
        what = "padding on the left, or the length of the text," if plan.padded else "the length"
        raise NotApplicable(f"{what} changes the logits of earlier tokens without a cache too")


def _without_logits(
    probe: Probe, plan: Plan, found: Decoded, measured: KvCache, factor: float, notes: list[str]
) -> KvCache:
    """A piece that raised or gave something else than its logits."""
    cached, size = sum(plan.pieces[: found.at]), plan.pieces[found.at]
    several = size > 1 and cached > 0
    if size > 1 and not cached and found.raised and found.raised.startswith(_REFUSALS):
        notes.append(f"{size} tokens at once are refused, and given one by one: {found.raised}")
        steps = dataclasses.replace(plan, pieces=(1,) * plan.length, after="clean")
        return _judge(probe, steps, factor, notes)
    if several and (found.raised is not None or not probe.caches.grows()):
        what = found.raised or f"logits of shape {found.misshapen}"
        notes.append(f"{size} tokens at once after {cached} cached ones are not taken: {what}")
        return dataclasses.replace(measured, value=0.0)
    likely = "a mask, a table or a view made for the new tokens alone, or for one row"
    if plan.padded and found.raised is not None:
        if not cached or not _takes_a_shorter_text(probe, plan):
            raise NotApplicable(f"with a mask and a cache, forward raises {found.raised}")
        likely = "the mask covers the whole text, the cache its end: cut the mask as the cache is"
        notes.append("with the same mask and cache, a text of 5 tokens is decoded")
    where = found.where if found.raised else probe.root
    says = found.raised or f"gave logits of shape {found.misshapen}"
    verb = "raised " if found.raised else ""
    padded = ", with a mask" if plan.padded else ", sources padded" if plan.source else ""
    raise CheckFailed(
        f"{RULE}\n"
        f"{_pieces(size)} after {cached} cached ones ({plan.rows} rows{padded}) {verb}{says}\n"
        f"in: {where or probe.root}\n"
        + "".join(f"{note}\n" for note in notes if plan.padded)
        + f"likely: {likely}",
        dataclasses.replace(measured, value=None, position=cached, cached=cached),
        where=where,
    )


def _takes_a_shorter_text(probe: Probe, plan: Plan) -> bool:
    """Whether five tokens with a mask are decoded: then it is the length that is not taken."""
    short = dataclasses.replace(plan, pieces=(4, 1))
    return plan.length > short.length and probe.caches.decoded(short).raised is None


def _pieces(size: int) -> str:
    return "1 token" if size == 1 else f"{size} tokens"


def _text(
    plan: Plan, measured: KvCache, where: str | None, likely: str, notes: tuple[str, ...]
) -> str:
    assert measured.position is not None
    _, index = plan.piece_at(measured.position)
    size = plan.pieces[index]
    how = {"another": ", after another text", "prefix": ", after the prefix went on otherwise"}
    extra = how.get(plan.after, "")
    extra += ", rows padded on the left" if plan.padded else ""
    extra += ", sources padded on the right" if plan.source else ""
    if plan.condition == "noised":
        extra += ", all parameters moved at random"
    what = (
        f"{_pieces(size)} after {measured.cached} cached ones"
        if measured.cached
        else "the first tokens"
    )
    return "\n".join(
        [
            RULE,
            f"position {measured.position} of {plan.length} is off by up to {measured.value:.2g} "
            f"(limit {measured.limit}): {what}{extra}; cache: {measured.protocol}",
            f"first module to differ: {where or 'none stands out'}",
            f"likely: {likely}",
            *notes,
        ]
    )
