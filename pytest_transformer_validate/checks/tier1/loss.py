"""The loss is the mean cross entropy of the outputs and the labels that belong to them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.loss_labels import fail_alignment, judge_shift
from pytest_transformer_validate.checks.tier1.loss_rule import fail
from pytest_transformer_validate.checks.tier1.loss_weights import (
    judge_form,
    judge_ignored,
    judge_ignored_beside,
    scale_of,
    with_ignored,
)
from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.measures.losses import (
    ROUNDING,
    LossAlignment,
    cross_entropy,
    pull,
    shift_of,
    unsmoothed,
)
from pytest_transformer_validate.measures.tolerance import two_shapes_limit

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.losses import Answer
    from pytest_transformer_validate.probe.probe import Probe

_IGNORED = -100
_OTHER_PROBLEMS = ("regression", "multi_label_classification")


@check(tier=1)
def loss_alignment(probe: Probe, *, factor: float = 64.0) -> LossAlignment:
    """The loss is the mean cross entropy of outputs and the labels that belong to them.

    Read from the gradient of the loss at the logits, which names the label of every output and
    its weight: the shift (one ahead inside a causal model that takes ``labels`` and returns
    ``loss`` and ``logits``; ``targets`` may come shifted), labels that are ignored and do not
    count in the mean, softmax applied once. By value where the logits are not on the path of the
    loss. Logits must not depend on the labels (``factor`` u, two paths).
    """
    signature = probe.subject.signature
    if signature.takes("return_loss") and not signature.takes("labels"):
        return _of_text(probe)
    _require_labels(probe)
    full = _usable(probe, _answer(probe))
    notes: list[str] = []
    _judge_logits(probe, full, factor, notes)
    if full.gradient is not None and bool(full.gradient.any()):
        measured = _by_gradient(probe, full, notes)
    else:
        measured = _by_value(probe, full, notes)
    _judge_made_input(probe, measured)
    return dataclasses.replace(measured, notes=tuple(notes))


def _require_labels(probe: Probe) -> None:
    subject = probe.subject
    if not subject.signature.takes("labels"):
        raise NotApplicable("forward takes no labels")
    if not probe.losses.per_token:
        problem = subject.config.get("problem_type")
        if problem in _OTHER_PROBLEMS:
            raise NotApplicable(f"problem_type is {problem}: no cross entropy")
    if subject.facts.fixed_length is not None:
        raise NotApplicable("outputs have a fixed length, whatever that of the labels")
    if subject.facts.width < 2:
        raise NotApplicable("one number is given: no cross entropy")


def _answer(probe: Probe) -> Answer:
    try:
        return probe.losses.answer("full")
    except NotApplicable:
        raise
    except Exception as error:
        line = error_line(error)
        raise NotApplicable(f"given labels, forward raises {line}") from error


def _usable(probe: Probe, answer: Answer) -> Answer:
    """The answer with logits beside its loss. Raises CheckFailed for a loss that is no use."""
    if not math.isfinite(answer.loss):
        fail(probe, f"the loss is {answer.loss}", "a division by the number of labels, log of 0")
    if not answer.differentiable:
        if not answer.named and probe.losses.answer("again").loss == answer.loss:
            raise NotApplicable("the number that forward returns does not depend on labels")
        if not any(p.requires_grad for p in probe.subject.model.parameters()):
            raise NotApplicable("no parameter asks for a gradient: see gradient_flow")
        likely = "detach(), item(), argmax or no_grad between logits and loss"
        fail(probe, "the loss has no gradient: nothing can be trained with it", likely)
    if answer.logits is None:
        answer = dataclasses.replace(answer, logits=probe.losses.plain())
    logits, labels = answer.logits, answer.labels
    if logits is None or logits.dim() != labels.dim() + 1 or logits.shape[0] != labels.shape[0]:
        shape = None if logits is None else tuple(logits.shape)
        raise NotApplicable(f"logits {shape} do not stand beside labels {tuple(labels.shape)}")
    if labels.dim() > 1 and logits.shape[1] > labels.shape[1]:
        raise NotApplicable(f"{logits.shape[1]} outputs for {labels.shape[1]} labels")
    return answer


def _judge_logits(probe: Probe, full: Answer, factor: float, notes: list[str]) -> None:
    """Logits with labels are those without, unless inputs are corrupted at random to train."""
    plain = probe.losses.plain()
    assert full.logits is not None
    if plain is None or plain.shape != full.logits.shape:
        return
    unit = full.logits.float() if full.eps < 1e-6 else full.logits.bfloat16()
    limit = two_shapes_limit(unit, probe.noise(), factor)
    moved = float((plain - full.logits).nan_to_num(0.0).abs().max())
    if moved > 16 * limit.value:
        if probe.losses.draws():
            notes.append("with labels, the forward draws random numbers")
            return
        fail(
            probe,
            f"logits move by {moved:.2g} (limit {limit}) when labels are given",
            "labels enter the forward, or another path (mask, dropout) is taken with labels",
        )


def _of_text(probe: Probe) -> LossAlignment:
    """A loss that forward makes of its own text: each output is compared with the next token, or
    with its own where it does not see that one."""
    if probe.subject.task.task_type != "causal_lm":
        raise NotApplicable("forward takes no labels")
    answer = probe.losses.of_text()
    if answer.logits is None or answer.logits.shape[:2] != answer.labels.shape:
        raise NotApplicable("the loss of a text is no cross entropy of outputs one a token")
    shifts = (1, 0, -1, 2)
    shift = next((s for s in shifts if _is_mean(answer, answer.labels, s)), None)
    if shift is None:
        raise NotApplicable("the loss of a text is no mean cross entropy of the logits")
    measured = LossAlignment(shift=shift, value=float(shift), by="value", factor=1.0)
    own = probe.mixing.tokens("eval").diagonal()
    if shift != 1 and (shift or bool(own.any())):
        fail(
            probe,
            f"the loss of a text, {answer.loss:.4g}, is the mean cross entropy of the outputs and "
            f"the tokens {shift} further on; expected is 1",
            "logits[:, :-1] with text[:, 1:] is meant",
        )
    return measured


def _by_gradient(probe: Probe, full: Answer, notes: list[str]) -> LossAlignment:
    found = pull(full)
    shift = shift_of(full, found, full.labels)
    if shift is None:
        shift = _by_difference(probe, full)
        if shift is None:
            fail_alignment(probe, full, found)
        assert shift is not None
        judge_shift(probe, full, shift, notes)
        if found.misfit <= max(ROUNDING * full.eps, 1e-6):
            notes.append("outputs without a label of their own are drawn to one, too")
            ignored = judge_ignored_beside(probe, full, shift, notes)
            return LossAlignment(shift=shift, value=float(shift), ignored=ignored)
        notes.append("the loss holds a term of the logits alone: only the shift is judged")
        return LossAlignment(shift=shift, value=float(shift))
    judge_shift(probe, full, shift, notes)
    measured = LossAlignment(shift=shift, value=float(shift))
    smooth = judge_form(probe, full, found, notes)
    kind = "unknown"
    if smooth is not None:
        found = pull(unsmoothed(full, smooth))
        values = cross_entropy(full, full.labels, shift)
        kind, scale = scale_of(probe, full, found, int(values.isfinite().sum()), notes)
        loss = (values.nan_to_num(0.0) * found.weight).sum()
        rest = full.loss - float(loss)
        measured = dataclasses.replace(measured, factor=scale)
        if not smooth and abs(rest) > ROUNDING * full.eps * max(1.0, abs(full.loss)):
            notes.append(f"the loss holds {rest:.2g} besides the cross entropy")
            measured = dataclasses.replace(measured, auxiliary=rest)
    ignored = judge_ignored(probe, full, found, kind, shift, notes, smooth or 0.0)
    return dataclasses.replace(measured, ignored=ignored)


def _by_difference(probe: Probe, full: Answer) -> int | None:
    """The shift in what other labels change of the gradient: terms of the logits alone cancel."""
    again = probe.losses.answer("again")
    if full.gradient is None or again.gradient is None:
        return None
    moved = dataclasses.replace(full, gradient=full.gradient - again.gradient)
    return shift_of(moved, pull(moved), full.labels)


def _by_value(probe: Probe, full: Answer, notes: list[str]) -> LossAlignment:
    """The same from the value of the loss, where the returned logits are not on its path."""
    notes.append("the returned logits are not on the path of the loss: judged by its value")
    again = probe.losses.answer("again")
    if again.logits is None:
        again = dataclasses.replace(again, logits=full.logits)
    twice = (full, again)
    shifts = (1, 0, -1, 2, -2)
    shift = next((s for s in shifts if all(_is_mean(a, a.labels, s) for a in twice)), None)
    if shift is None:
        raise NotApplicable(
            "the loss is no mean cross entropy of the returned logits, and they are not on its "
            "path"
        )
    judge_shift(probe, full, shift, notes)
    measured = LossAlignment(shift=shift, value=float(shift), by="value", factor=1.0)
    if full.labels.dim() == 1:
        return measured
    some, ignored = with_ignored(probe, full, notes)
    if some is None or ignored is None:
        return measured
    if some.logits is None:
        some = dataclasses.replace(some, logits=full.logits)
    labels = some.labels.masked_fill(some.labels == ignored, -1)
    if not _is_mean(some, labels, shift):
        fail(
            probe,
            f"with labels of {ignored} the loss is {some.loss:.4g}; the mean over those that "
            f"count is {_mean(some, labels, shift):.4g}",
            "ignored labels count in the mean, or are not ignored",
        )
    return dataclasses.replace(measured, ignored=ignored)


def _mean(answer: Answer, labels: torch.Tensor, shift: int) -> float:
    values = cross_entropy(answer, labels, shift)
    return float(values[values.isfinite()].mean())


def _is_mean(answer: Answer, labels: torch.Tensor, shift: int) -> bool:
    if labels.dim() == 1 and shift:
        return False
    off = abs(answer.loss - _mean(answer, labels, shift))
    return off <= ROUNDING * answer.eps * max(1.0, abs(answer.loss))


def _judge_made_input(probe: Probe, measured: LossAlignment) -> None:
    """A decoder input that is made from labels holds none that it has to predict, nor labels that
    are ignored, and the labels stay as they were."""
    subject = probe.subject
    if not subject.decodes or "decoder_input_ids" in subject.signature.required:
        return
    if subject.sizes[1] < 4:
        return
    try:
        made = probe.losses.made()
    except Exception:  # noqa: BLE001 - a model need not make its own decoder input
        return
    if made.rewritten:
        fail(
            probe,
            "without decoder_input_ids, the labels of the caller are other ones after the call: "
            "the loss compares with what the decoder was given",
            "labels are shifted in place: clone() them first",
        )
    refused = None
    if measured.ignored == _IGNORED and probe.subject.device.type == "cpu":
        refused = probe.losses.refused()
    if refused is not None:
        fail(
            probe,
            f"without decoder_input_ids, labels of {_IGNORED} are not taken ({refused})",
            f"the decoder's input is made from labels and keeps {_IGNORED} as an id: replace it "
            "by the padding id",
        )
    limit = two_shapes_limit(made.logits, probe.noise())
    before = made.before
    if before > limit.value and made.after > limit.value:
        fail(
            probe,
            f"without decoder_input_ids, outputs up to a label move by {before:.2g} (limit "
            f"{limit}) when that label changes: the decoder reads what it has to predict",
            "labels are given to the decoder without being shifted to the right",
        )
