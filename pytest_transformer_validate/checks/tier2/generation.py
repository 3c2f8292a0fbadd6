"""What a model generates is what its logits say."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.equivalence import Generation
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.tolerance import settle, two_shapes_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.generation import Generated, Plan
    from pytest_transformer_validate.probe.probe import Probe

COARSE = 16
RULE = "greedy generation must give what a loop over forwards and argmax gives"


@check(tier=2, tasks=("causal_lm", "seq2seq"))
def generate_equivalence(probe: Probe, *, factor: float = 64.0) -> Generation:
    """Greedy ``generate`` gives the tokens that a loop over forwards and argmax gives.

    For transformers' generate, and for one whose parameters say what they are (max_new_tokens,
    temperature, top_k...). Every generated token must have the largest logit of the text before
    it, within ``factor`` u or 16 times the model's own noise: near ties are no failure. The logits
    inside of generate must be those of that text too; 16 times as much is allowed there, as how
    exact a cache is belongs to kv_cache. Several lengths, one row and many,
    padding on the left where generate takes a mask, and all parameters moved at random. Of a text
    longer than the maximum, where generate takes one, the last tokens must count.

    A generate that refuses what it is given (a ValueError, an assertion) is skipped; one that
    crashes behind an answer of forward, with one text and no more than it asks for, is broken.
    """
    measured = Generation(value=0.0)
    for plan in probe.generation.plans():
        measured = _judge(probe, plan, measured, factor)
    if not measured.texts:
        error = probe.generation.crash()
        if error is not None:
            raise error
        raise NotApplicable("; ".join(dict.fromkeys(measured.notes)))
    if probe.generation.reads_the_end() is False:
        raise CheckFailed(f"{RULE}\n{_CROPPED}", measured, where=probe.root)
    return measured


def _judge(probe: Probe, plan: Plan, measured: Generation, factor: float) -> Generation:
    if plan.padded and not probe.generation.supports_padding(plan):
        note = "no text padded on the left: a forward gives it something else than the text alone"
        return _noted(measured, note)
    found = probe.generation.generated(plan)
    if found.raised:
        return _noted(measured, f"{_words(plan)}: {found.raised}")
    if found.unexpected:
        text = f"{RULE}\n{_words(plan)}: {found.unexpected}"
        raise CheckFailed(text, measured, where=probe.root)
    noise = probe.caches.noise("" if plan.condition == "plain" else plan.condition)
    limit = two_shapes_limit(found.expected, noise, factor)
    behind, moved = worst_token(found), worst_logits(found)
    before = measured
    measured = dataclasses.replace(
        measured,
        value=max(measured.value or 0.0, behind),
        limit=limit,
        logits=moved if measured.logits is None else max(measured.logits, moved or 0.0),
        texts=measured.texts + len(found.tokens),
        tokens=measured.tokens + found.tokens.numel(),
    )
    if behind > limit.value and probe.generation.draws(plan):
        measured = _noted(measured, "it draws its tokens: only the logits are compared")
        behind = 0.0
    if behind > limit.value:
        verdict = settle(
            behind,
            limit,
            lambda: probe.repeated(lambda p: worst_token(p.generation.generated(plan))),
        )
        measured = _noted(measured, *verdict.notes)
        if verdict.exceeded:
            _fail(probe, plan, found, measured, limit, tokens=True)
            return _noted(dataclasses.replace(measured, value=before.value), _LATER)
    limit = Limit(value=COARSE * limit.value, rule=f"{COARSE} x {limit.rule}")
    if (moved or 0.0) > limit.value:
        _fail(probe, plan, found, measured, limit, tokens=False)
        return _noted(dataclasses.replace(measured, logits=before.logits), _LATER)
    return measured


def worst_token(found: Generated) -> float:
    """How far the worst chosen token's logit is behind the largest one."""
    return float(found.behind.masked_fill(~found.counted, 0).max())


def worst_logits(found: Generated) -> float | None:
    """How far the logits inside are off, ``None`` where they cannot be seen."""
    seen = found.moved[~found.moved.isnan()]
    return float(seen.max()) if seen.numel() else None


def _fail(
    probe: Probe,
    plan: Plan,
    found: Generated,
    measured: Generation,
    limit: Limit,
    *,
    tokens: bool,
) -> None:
    """Raise, unless the text cut at the step agrees with generate: then it is the model whose
    logits depend on what comes later."""
    if tokens:
        over = (found.behind > limit.value) & found.counted
        step = int(over.any(0).nonzero()[0])
        row = int(over[:, step].nonzero()[0])
    else:
        step = int((found.moved > limit.value).nonzero()[0])
        row = int(found.distance[:, step].argmax())
    alone = probe.generation.alone(plan, row, step)
    chosen = int(found.tokens[row, step])
    inside = found.inside(row, step)
    if tokens and float(alone.max() - alone[chosen]) <= limit.value:
        return
    if not tokens and inside is not None and float((alone - inside).abs().max()) <= limit.value:
        return
    measured = dataclasses.replace(measured, step=step, row=row)
    off = found.moved[step]
    inside_right = not math.isnan(off) and float(off) <= limit.value
    first = f"new token {step + 1} of {plan.new} (row {row}) is the first to differ"
    lines = [RULE, f"{_words(plan)}: {first}"]
    if tokens:
        lines.append(
            f"generate gave id {chosen}, whose logit is {float(found.behind[row, step]):.2g} "
            f"behind that of id {int(alone.argmax())} (limit {limit})"
        )
    else:
        lines.append(f"the logits inside of generate are off by {float(off):.2g} (limit {limit})")
    lines.append(f"likely: {_likely(plan, step, inside_right=inside_right)}")
    raise CheckFailed("\n".join([*lines, *measured.notes]), measured, where=probe.root)


def _likely(plan: Plan, step: int, *, inside_right: bool) -> str:
    if inside_right:
        return "the logits are right and the choice is not: another position, another axis, noise"
    if plan.padded:
        return "the mask or the positions of padded texts are not handed on, or do not grow"
    if step == 0:
        return "the prompt is cut, read at other positions, or an earlier text left something"
    return (
        "after the first token: positions that do not go on, a cache that is stale, cut or handed "
        "on without its mask, or a token that is not appended"
    )


_CROPPED = (
    "of a text longer than the maximum the last tokens change nothing that it computes\n"
    "likely: the text is cut at its end, ids[:, :block_size], where ids[:, -block_size:] is meant"
)
_LATER = "the logits of a text depend on what comes behind it (see prefix_consistency)"


def _noted(measured: Generation, *notes: str) -> Generation:
    return dataclasses.replace(measured, notes=(*measured.notes, *notes))


def _words(plan: Plan) -> str:
    rows = "1 text" if plan.rows == 1 else f"{plan.rows} texts"
    words = f"{rows} of {plan.length} tokens"
    words += ", padded on the left" if plan.padded else ""
    return words + (" (all parameters moved at random)" if plan.condition == "noised" else "")
