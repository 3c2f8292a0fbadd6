"""The model against another one that it is meant to be the same as."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.agreement import (
    Agreement,
    agreement_limit,
    by_layer,
    said,
)
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.tolerance import settle

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.comparison import Compared
    from pytest_transformer_validate.probe.probe import Probe

RULE = "the model must say what its reference says"


@check(tier=2, quantised=True)
def reference(probe: Probe, *, factor: float = 64.0, kl: float = 0.05) -> Agreement:
    """The logits are those of the model that ``--tb-reference`` names.

    For refactorings, ports, exports and quantised twins. Where the parameters of both have the
    same names and shapes, both run with the model's weights (neither is changed), unless both
    loaded weights of their own from files. One text as drawn, one with all parameters moved at
    random, a padded one, a long one: ``factor`` u or 16 times the noise of either are allowed, 8 u
    of the coarser dtype where they have two. Where one of them keeps its weights as whole numbers,
    the mean KL divergence may be ``kl`` nats.
    """
    comparison = probe.comparison
    weights = comparison.weights()
    measured = Agreement(reference=comparison.reference.id, weights=weights.words)
    if weights.untied:
        _fail_untied(measured, weights.untied)
    quantised = comparison.quantised
    for text in comparison.texts():
        found = comparison.compared(text)
        if found.shapes:
            _fail_shapes(measured, found.shapes)
        measured = _measured(measured, text, found)
        if quantised:
            measured = _judge_quantised(probe, measured, kl)
            continue
        measured = _judge(probe, text, found, measured, factor)
    _, pairs = comparison.layers("plain")
    return dataclasses.replace(measured, layers=by_layer(pairs))


def _measured(measured: Agreement, text: str, found: Compared) -> Agreement:
    moved = {**measured.moved, text: found.moved}
    notes = measured.notes
    if found.narrowed and not measured.moved:
        notes = (*notes, "one has more outputs than the other: compared are those that both have")
    measured = dataclasses.replace(measured, moved=moved, notes=notes)
    if text != "plain":
        return measured
    return dataclasses.replace(measured, **said(found.logits, found.expected)._asdict())


def _judge(
    probe: Probe, text: str, found: Compared, measured: Agreement, factor: float
) -> Agreement:
    noise, blocks = probe.comparison.noise(text), probe.comparison.blocks()
    limit = agreement_limit(found.logits, found.expected, noise, factor, blocks)
    if found.moved >= (measured.value or 0.0):
        measured = dataclasses.replace(measured, value=found.moved, limit=limit)
    if found.moved <= limit.value:
        return measured
    alike = found.logits.dtype == found.expected.dtype
    verdict = settle(
        found.moved, limit, lambda: probe.comparison.in_float64(text), sure=16.0 if alike else 1.0
    )
    measured = dataclasses.replace(measured, notes=(*measured.notes, *verdict.notes))
    if verdict.exceeded:
        _fail(probe, text, measured, limit)
    return measured


def _judge_quantised(probe: Probe, measured: Agreement, kl: float) -> Agreement:
    limit = Limit(value=kl, rule="nats, for quantised weights")
    measured = dataclasses.replace(measured, value=measured.kl, limit=limit)
    if not (measured.kl or 0.0) <= kl:
        _fail(probe, "plain", measured, limit)
    return measured


def _fail(probe: Probe, text: str, measured: Agreement, limit: Limit) -> None:
    how, pairs = probe.comparison.layers(text)
    own, other = probe.comparison.first_apart(text)
    measured = dataclasses.replace(
        measured, aligned=how or None, layers=by_layer(pairs), first=own
    )
    top1, kl = measured.top1 or 0.0, measured.kl or 0.0
    lines = [
        RULE,
        f"against {measured.reference} the logits differ by up to {measured.moved[text]:.2g} "
        f"(limit {limit}) for {_TEXTS[text]}",
        f"the same largest logit at {top1:.1%} of the outputs, KL {kl:.2g} nats (plain text)",
        f"weights: {measured.weights}",
        f"first layer to differ: {own or 'none stands out'}"
        + (f" (in the reference: {other})" if other and other != own else ""),
        f"modules were paired by {how}" if how else "modules could not be paired",
        f"likely: {_LIKELY}",
        *measured.notes,
    ]
    raise CheckFailed("\n".join(lines), measured, where=own)


def _fail_shapes(measured: Agreement, shapes: tuple[tuple[int, ...], ...]) -> None:
    raise CheckFailed(
        f"{RULE}\n"
        f"logits are {shapes[0]} here and {shapes[1]} in {measured.reference}\n"
        "likely: another head, or a model for another task",
        measured,
    )


def _fail_untied(measured: Agreement, names: tuple[str, ...]) -> None:
    where = names[-1].rpartition(".")[0]
    raise CheckFailed(
        f"{RULE}\n"
        f"{' and '.join(names)} are one tensor in {measured.reference} and hold different numbers "
        "in the model\n"
        "likely: weights that are tied there are not tied here",
        dataclasses.replace(measured, first=where),
        where=where,
    )


_TEXTS = {
    "plain": "a text",
    "noised": "a text (all parameters moved at random)",
    "padded": "texts with padding",
    "long": "a long text",
}
_LIKELY = (
    "another epsilon in a norm, gelu by tanh or exact, rotary halves or pairs, another scale or "
    "mask, another order of heads, or a weight that is transposed or in another place"
)
