"""Which labels a loss draws the outputs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.tier1.cache import looks_ahead
from pytest_transformer_validate.checks.tier1.loss_rule import fail
from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.measures.losses import WEIGHTS, Pull, others_shift, shift_of

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.losses import Answer
    from pytest_transformer_validate.probe.probe import Probe


def fail_alignment(probe: Probe, full: Answer, found: Pull) -> None:
    """No shift explains the gradient: say what does, or raise NotApplicable."""
    if full.labels.dim() == 1:
        if found.misfit > WEIGHTS:
            raise NotApplicable("the loss is no cross entropy of the logits")
        fail(probe, "outputs are drawn to other classes than their labels", _MIXED)
    role = "decoder_input_ids" if probe.subject.decodes else "input_ids"
    inputs = probe.losses.batch().inputs.get(role)
    if inputs is not None and shift_of(full, found, inputs.cpu()) is not None:
        fail(probe, "outputs are drawn to the input ids; the labels are not looked at", _INPUTS)
    elsewhere = others_shift(found.towards, found.active, full.labels)
    if elsewhere is None:
        fail(probe, "the gradient of the loss at most outputs points to no label", _SCRAMBLED)
    assert elsewhere is not None
    rows, positions = elsewhere
    if rows:
        fail(probe, f"outputs are drawn to labels of the row {rows} further on", _MIXED)
    count, total = int(found.active.sum()), found.active.numel()
    fail(
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


def judge_shift(probe: Probe, full: Answer, shift: int, notes: list[str]) -> None:
    """Raise CheckFailed where the labels are ``shift`` positions ahead and should not be."""
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
    fail(
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
