"""The loss is the mean cross entropy of the outputs and the labels that belong to them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.cache import looks_ahead
from pytest_transformer_validate.errors import CheckFailed, NotApplicable, error_line
from pytest_transformer_validate.measures.losses import (
    ROUNDING,
    WEIGHTS,
    LossAlignment,
    Pull,
    cross_entropy,
    linear,
    of_probabilities,
    others_shift,
    pull,
    shift_of,
    smoothing,
    softmaxed,
)
from pytest_transformer_validate.measures.tolerance import two_shapes_limit

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.losses import Answer
    from pytest_transformer_validate.probe.probe import Probe

RULE = "the loss must be the mean cross entropy of outputs and the labels that belong to them"
_OTHER_PROBLEMS = ("regression", "multi_label_classification")
WAY_OUT = 'meant so? declare it: "expect_fail" in config.json, or ini tb_expect_fail'


@check(tier=1)
def loss_alignment(probe: Probe, *, factor: float = 64.0) -> LossAlignment:
    """The loss is the mean cross entropy of outputs and the labels that belong to them.

    Read from the gradient of the loss at the logits, which names the label of every output and
    its weight: the shift (one ahead inside a causal model that takes ``labels`` and returns
    ``loss`` and ``logits``; ``targets`` may come shifted), labels that are ignored and do not
    count in the mean, softmax applied once. By value where the logits are not on the path of the
    loss. Logits must not depend on the labels (``factor`` u, two paths).
    """
    _require_labels(probe)
    full = _usable(probe, _answer(probe))
    notes: list[str] = []
    _judge_logits(probe, full, factor, notes)
    if full.gradient is not None and bool(full.gradient.any()):
        measured = _by_gradient(probe, full, notes)
    else:
        measured = _by_value(probe, full, notes)
    _judge_made_input(probe)
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
        _fail(probe, f"the loss is {answer.loss}", "a division by the number of labels, log of 0")
    if not answer.differentiable:
        if not answer.named and probe.losses.answer("again").loss == answer.loss:
            raise NotApplicable("the number that forward returns does not depend on labels")
        likely = "detach(), item(), argmax or no_grad between logits and loss"
        _fail(probe, "the loss has no gradient: nothing can be trained with it", likely)
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
        _fail(
            probe,
            f"logits move by {moved:.2g} (limit {limit}) when labels are given",
            "labels enter the forward, or another path (mask, dropout) is taken with labels",
        )


def _by_gradient(probe: Probe, full: Answer, notes: list[str]) -> LossAlignment:
    found = pull(full)
    shift = shift_of(full, found, full.labels)
    if shift is None:
        shift = _by_difference(probe, full)
        if shift is None:
            _not_aligned(probe, full, found)
        assert shift is not None
        _judge_shift(probe, full, shift, notes)
        notes.append("the loss holds a term of the logits alone: only the shift is judged")
        return LossAlignment(shift=shift, value=float(shift))
    _judge_shift(probe, full, shift, notes)
    measured = LossAlignment(shift=shift, value=float(shift))
    plain = _judge_form(probe, full, found, notes)
    kind = "unknown"
    if plain:
        values = cross_entropy(full, full.labels, shift)
        kind, scale = _scale(probe, full, found, int(values.isfinite().sum()), notes)
        loss = (values.nan_to_num(0.0) * found.weight).sum()
        rest = full.loss - float(loss)
        measured = dataclasses.replace(measured, factor=scale)
        if abs(rest) > ROUNDING * full.eps * max(1.0, abs(full.loss)):
            notes.append(f"the loss holds {rest:.2g} besides the cross entropy")
            measured = dataclasses.replace(measured, auxiliary=rest)
    ignored = _judge_ignored(probe, full, found, kind, shift, notes)
    return dataclasses.replace(measured, ignored=ignored)


def _by_difference(probe: Probe, full: Answer) -> int | None:
    """The shift in what other labels change of the gradient: terms of the logits alone cancel."""
    again = probe.losses.answer("again")
    if full.gradient is None or again.gradient is None:
        return None
    moved = dataclasses.replace(full, gradient=full.gradient - again.gradient)
    return shift_of(moved, pull(moved), full.labels)


def _not_aligned(probe: Probe, full: Answer, found: Pull) -> None:
    """No shift explains the gradient: say what does, or raise NotApplicable."""
    if full.labels.dim() == 1:
        if found.misfit > WEIGHTS:
            raise NotApplicable("the loss is no cross entropy of the logits")
        _fail(probe, "outputs are drawn to other classes than their labels", _MIXED)
    role = "decoder_input_ids" if probe.subject.decodes else "input_ids"
    inputs = probe.losses.batch().inputs.get(role)
    if inputs is not None and shift_of(full, found, inputs.cpu()) is not None:
        _fail(probe, "outputs are drawn to the input ids; the labels are not looked at", _INPUTS)
    elsewhere = others_shift(found.towards, found.active, full.labels)
    if elsewhere is None:
        _fail(probe, "the gradient of the loss at most outputs points to no label", _SCRAMBLED)
    assert elsewhere is not None
    rows, positions = elsewhere
    if rows:
        _fail(probe, f"outputs are drawn to labels of the row {rows} further on", _MIXED)
    count, total = int(found.active.sum()), found.active.numel()
    _fail(
        probe,
        f"most outputs are drawn to the label {positions} ahead in their row, but not all that "
        f"have one ({count} of {total} outputs count at all)",
        "logits and labels are cut differently",
    )


def _expected(probe: Probe, full: Answer) -> tuple[int, ...]:
    """The shifts that are right."""
    contract = full.named and probe.losses.role == "labels"
    task = probe.subject.task
    if task.task_type == "causal_lm":
        if contract and not probe.losses.is_half:
            return (1,)
        return (1, 0)
    if task.task_type == "seq2seq" and not contract:
        return (0, 1)
    if task.task_type == "masked_lm" and task.origin.startswith("config"):
        return (0, 1)
    return (0,)


def _judge_shift(probe: Probe, full: Answer, shift: int, notes: list[str]) -> None:
    expected = _expected(probe, full)
    if shift in expected:
        if len(expected) > 1 and probe.subject.task.task_type == "causal_lm":
            where = "inside the model" if shift else "by the caller"
            notes.append(f"labels are shifted {where}")
        return
    if shift == 0 and probe.losses.per_token and looks_ahead(probe):
        notes.append("labels are not shifted, and outputs know later tokens (see causality)")
        return
    name = probe.losses.role
    places = {0: "at its own position", -1: "one position back", -2: "two positions back"}
    text = places.get(shift, f"{shift} positions ahead")
    _fail(
        probe,
        f"the output at position t is drawn to the label {text}: {name}[:, t{shift:+d}]; "
        f"expected is {' or '.join(f't+{s}' if s else 't' for s in expected)}",
        _SHIFTS.get((probe.subject.task.task_type, shift), "logits and labels are cut wrongly"),
    )


_SHIFTS = {
    ("causal_lm", 0): "labels are not shifted: the model learns to copy its input",
    ("causal_lm", 2): "labels are shifted twice, by the data and by the model",
    ("causal_lm", -1): "logits[:, 1:] with labels[:, :-1]: the wrong way round",
    ("masked_lm", 1): "the shift of a causal model in a model that fills in what is masked",
    ("seq2seq", 1): "labels are shifted although the decoder's input is",
}
_MIXED = "a reshape that exchanges rows or axes before the cross entropy, or a roll over axis 0"
_INPUTS = "input_ids given to the loss in place of labels"
_SCRAMBLED = (
    "a view or reshape where classes, rows or positions are exchanged (view(B, V, T) for "
    "transpose), or a loss of something else than the returned logits"
)


def _judge_form(probe: Probe, full: Answer, found: Pull, notes: list[str]) -> bool:
    """Whether it is a plain cross entropy of the logits."""
    probabilities = softmaxed(full)
    fits = found.misfit <= max(ROUNDING * full.eps, 1e-6)
    sparse = found.misfit == 0.0
    doubled = probabilities and not sparse and found.misfit < WEIGHTS
    if doubled or (not probabilities and of_probabilities(full, found)):
        _fail(
            probe,
            "the cross entropy takes probabilities for logits: softmax is applied twice, and the "
            "gradient all but vanishes",
            "softmax before cross_entropy, which holds one",
        )
    if linear(full):
        _fail(
            probe,
            "the loss is linear in the logit of each label: it is unbounded, and no other class "
            "has a gradient",
            "nll_loss, which takes logarithms of probabilities, given logits; use cross_entropy",
        )
    if fits:
        return True
    amount = smoothing(full, found)
    if amount is not None:
        notes.append(f"labels are smoothed by {amount:.2g}")
        return False
    notes.append("no plain cross entropy of the returned logits: only the labels are judged")
    return False


def _scale(
    probe: Probe, full: Answer, found: Pull, count: int, notes: list[str]
) -> tuple[str, float]:
    """What the ``count`` outputs are summed to, by their weights when all labels count: its kind,
    and the loss over the mean."""
    weights = found.weight[found.clear]
    if not weights.numel():
        notes.append("outputs are too sure of their labels for their weights to be read")
        return "unknown", 1.0
    rows = full.labels.shape[0]
    mean = float(weights.mean())
    if float((weights - mean).abs().max()) > _tolerance(full) * abs(mean):
        notes.append("outputs count differently, with no label ignored")
        return "unknown", mean * count
    scale, total = mean * count, full.labels.numel()
    length = total // rows
    near = _tolerance(full)
    if _near(scale, 1.0, near):
        return "mean", scale
    if _near(mean, 1.0, near) or _near(mean, 1 / rows, near):
        over = "" if _near(mean, 1.0, near) else " over tokens, with a mean over rows"
        notes.append(f"the loss is a sum{over}, not a mean")
        return "sum", scale
    wrong = {
        "all positions, also those without a label": 1 / total,
        "the number of labels, and then by the rows": 1 / (count * rows),
        "the number of labels, and then by the length": 1 / (count * length),
    }
    for what, weight in wrong.items():
        if _near(mean, weight, near):
            _fail(
                probe,
                f"every output has the weight {mean:.3g} where 1/{count} is a mean: the sum is "
                f"divided by {what}",
                "the denominator of the mean",
            )
    notes.append(f"the loss is {scale:.3g} times the mean cross entropy")
    return "mean", scale


def _judge_ignored(
    probe: Probe, full: Answer, found: Pull, kind: str, shift: int, notes: list[str]
) -> int | None:
    """Ignored labels have no gradient and no part in the mean; which label is ignored."""
    if full.labels.dim() == 1:
        return None
    some, ignored = _with_ignored(probe, full, notes)
    if some is None or ignored is None:
        return None
    counted = cross_entropy(
        some, some.labels.masked_fill(some.labels == ignored, -1), shift
    ).isfinite()
    pulled = pull(some)
    wrong = pulled.active & ~counted
    if bool(wrong.any()):
        _fail(
            probe,
            f"{int(wrong.sum())} outputs whose label is {ignored} have a gradient",
            "ignore_index is missing or another one, or the label is clamped to a real id",
        )
    if kind == "unknown":
        return ignored
    if bool((pulled.clear == counted).all()):
        all_of_them = cross_entropy(full, full.labels, shift).isfinite()
        before = found.weight[found.clear].mean().expand(int(all_of_them.sum()))
        _judge_mean(probe, before, pulled.weight, counted, kind, ignored, _tolerance(full))
    return ignored


def _judge_mean(
    probe: Probe,
    before: torch.Tensor,
    weight: torch.Tensor,
    counted: torch.Tensor,
    kind: str,
    ignored: int,
    near: float,
) -> None:
    """The weights when some labels are ignored, against those when none was."""
    count = int(counted.sum())
    wanted = float(before.mean())
    if kind == "mean":
        wanted *= before.numel() / count
    found = weight[counted]
    if float((found - wanted).abs().max()) <= near * wanted:
        return
    rows = counted.sum(1, keepdim=True).clamp(min=1) * counted.shape[0]
    by_rows = (weight * rows)[counted]
    if kind == "mean" and float((by_rows - by_rows.mean()).abs().max()) <= near:
        _fail(
            probe,
            "every row has the same weight, however many of its labels count: a mean of means",
            "a mean for each row, and a mean of these",
        )
    mean = float(found.mean())
    if kind == "mean" and _near(mean, float(before.mean()), near):
        _fail(
            probe,
            f"with {before.numel() - count} labels ignored ({ignored}) the sum is still divided "
            f"by {round(1 / mean)}, not by the {count} that count",
            "reduction='none' and a plain mean(), or a division by batch times length",
        )
    _fail(
        probe,
        f"with {before.numel() - count} labels ignored ({ignored}) an output weighs {mean:.3g} "
        f"where {wanted:.3g} is expected",
        "the denominator of the mean",
    )


def _with_ignored(
    probe: Probe, full: Answer, notes: list[str]
) -> tuple[Answer | None, int | None]:
    """An answer where some labels are ignored, and the label that the model ignores."""
    losses, subject = probe.losses, probe.subject
    if subject.device.type != "cpu":
        notes.append("ignored labels are judged on the CPU only")
        return None, None
    raised = None
    for ignored in dict.fromkeys((-100, -1, subject.pad_id)):
        if ignored is None:
            continue
        try:
            some = losses.answer("some", ignored)
        except Exception as error:  # noqa: BLE001 - which label is ignored is found by trying
            raised = raised or error_line(error, 100)
            continue
        if ignored == subject.pad_id and not _ignores(full, some):
            continue
        if ignored != -100:
            notes.append(f"the label {ignored} is ignored, -100 is not taken")
        return some, ignored
    if full.named and losses.role == "labels":
        _fail(
            probe,
            f"labels of -100 must be ignored, and are not taken ({raised})",
            "ignore_index is missing, or the label is used as an index",
        )
    notes.append("no label is ignored (-100, -1 and the padding id were tried)")
    return None, None


def _ignores(full: Answer, some: Answer) -> bool:
    """Whether labels that are ignored change which outputs have a gradient."""
    if some.gradient is None or full.gradient is None:
        return False
    before, after = (a.gradient.abs().amax(-1) > 0 for a in (full, some) if a.gradient is not None)
    return bool(before.sum() > after.sum())


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
    _judge_shift(probe, full, shift, notes)
    measured = LossAlignment(shift=shift, value=float(shift), by="value", factor=1.0)
    if full.labels.dim() == 1:
        return measured
    some, ignored = _with_ignored(probe, full, notes)
    if some is None or ignored is None:
        return measured
    if some.logits is None:
        some = dataclasses.replace(some, logits=full.logits)
    labels = some.labels.masked_fill(some.labels == ignored, -1)
    if not _is_mean(some, labels, shift):
        _fail(
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


def _judge_made_input(probe: Probe) -> None:
    """A decoder input that is made from labels holds none that it has to predict."""
    subject = probe.subject
    if not subject.decodes or "decoder_input_ids" in subject.signature.required:
        return
    if subject.sizes[1] < 4:
        return
    try:
        before, after, logits = probe.losses.leak()
    except Exception:  # noqa: BLE001 - a model need not make its own decoder input
        return
    limit = two_shapes_limit(logits, probe.noise())
    if before > limit.value and after > limit.value:
        _fail(
            probe,
            f"without decoder_input_ids, outputs up to a label move by {before:.2g} (limit "
            f"{limit}) when that label changes: the decoder reads what it has to predict",
            "labels are given to the decoder without being shifted to the right",
        )


def _tolerance(answer: Answer) -> float:
    """How far weights may be apart, relative to each other."""
    return max(WEIGHTS, 8 * answer.eps)


def _near(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * abs(b)


def _fail(probe: Probe, what: str, likely: str) -> None:
    where = probe.losses.where()
    raise CheckFailed(
        f"{RULE}\n{what}\nthe loss comes from: {where}\nlikely: {likely}\n{WAY_OUT}",
        LossAlignment(),
        where=where,
    )
