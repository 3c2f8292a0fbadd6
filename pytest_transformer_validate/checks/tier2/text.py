"""Texts that say the same in other letters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.texts import TextInvariance, of_pairs

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


@check(tier=2, tasks=("causal_lm", "masked_lm", "seq2seq", "classification"))
def text_invariance(probe: Probe, *, pass_rate: float = 0.0) -> TextInvariance:
    """The prediction for a text stays when case, punctuation or a typo change.

    Eight sentences, six changes of each. Judged where a ``pass_rate`` is declared, because random
    weights promise nothing, and what a model should overlook depends on what it is for:
    ``text_invariance.pass_rate = 0.95`` in ``tb_limits``. Otherwise information.
    """
    measured = of_pairs(probe.texts.pairs())
    said = f"{measured.value:.0%} of {measured.pairs} predictions stay"
    if not pass_rate:
        note = f"information: {said}; declare text_invariance.pass_rate to have it judged"
        return replace(measured, notes=(note,))
    measured = replace(measured, limit=Limit(value=pass_rate, rule="the declared pass rate"))
    if measured.value is not None and measured.value >= pass_rate:
        return measured
    worst = min(measured.rates, key=lambda kind: measured.rates[kind])
    text, changed = measured.changed[0]
    raise CheckFailed(
        "predictions must stay when a text is written in other letters\n"
        f"{said} (limit {pass_rate:.0%} = the declared pass rate); fewest with {worst}: "
        f"{measured.rates[worst]:.0%}\n"
        f"for example {text!r} and {changed!r}\n"
        "likely: the tokenizer keeps what the task should overlook, or training had no such texts",
        measured,
    )
