"""The output is made of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable, TaskError
from pytest_transformer_validate.measures.output_kind import OutputKind

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.answers import Answer
    from pytest_transformer_validate.probe.probe import Probe

RULE = "the output must be logits: one free number for each answer that the task allows"
_HIDDEN = ("last_hidden_state", "hidden_states", "hidden")
_LABELS = ("num_labels", "num_classes", "n_classes", "n_labels", "num_class", "nb_classes")
_NAMED = ("label", "class", "tag", "target", "out", "vocab")
_UNPREDICTED = 8  # special ids that a table may hold and a head need not predict
# Operations that squash or cut numbers, and what a loss on logits then does.
_SQUASHED = {
    "Softmax": "softmax",
    "Sigmoid": "a sigmoid",
    "Tanh": "tanh",
    "Relu": "ReLU",
    "Gelu": "GELU",
    "Silu": "SiLU",
    "Mish": "Mish",
    "LeakyRelu": "a leaky ReLU",
    "Elu": "ELU",
    "Hardtanh": "a clipped ReLU (ReLU6, hardtanh)",
    "Hardsigmoid": "a hard sigmoid",
    "Hardswish": "hardswish",
}


@check(tier=1)
def output_kind(probe: Probe) -> OutputKind:
    """The output is logits of the right width: not squashed, not chosen from, no hidden states.

    The values of a forward and the last operation of its graph are read, in eval and in training
    mode, and for a single row. Log-probabilities do no harm (a softmax gives them back as they
    are), and a sigmoid on a single output is how a yes-or-no classifier may end.
    """
    problem = probe.answers.unreadable()
    if problem is not None:
        raise CheckFailed(
            f"{RULE}\n{problem}\n"
            "likely: argmax, or another choice, at the end of forward: it has no gradient, and no "
            "loss can be made of it; return the logits and choose outside",
            where=probe.root,
        )
    given = probe.answers.answer()
    notes: list[str] = []
    expected = _judge_width(probe, given, notes)
    _judge_values(probe, given, notes)
    _judge_single_row(probe, given)
    return _measure(given, expected, notes)


def _measure(
    given: Answer, expected: int | None = None, notes: list[str] | None = None
) -> OutputKind:
    return OutputKind(
        value=float(given.shape[-1]),
        operation=given.operation,
        field=given.field,
        kind=given.kind,
        width=given.shape[-1],
        expected=expected,
        notes=tuple(notes or ()),
    )


# Values...


def _judge_values(probe: Probe, given: Answer, notes: list[str]) -> None:
    """Fail where the output is squashed in training mode, where the loss is made."""
    if given.whole:
        where = probe.answers.origin().where
        raise CheckFailed(
            f"{RULE}\nevery number of the output is a whole one: a choice is returned\n"
            f"first module that gives it: {where}\n"
            "likely: argmax, one_hot or round at the end of forward",
            _measure(given),
            where=where,
        )
    words = _squashed(given)
    try:
        training = probe.answers.answer("training")
    except Exception:  # noqa: BLE001 - a model need not run in training mode without labels
        training = given
    trained = _squashed(training)
    if not trained:
        if words:
            notes.append(f"{words} in eval mode only")
        return
    single = given.shape[-1] == 1
    if single or _means_it(probe, given, training):
        notes.append(f"{trained} is the last operation: take a loss that expects it")
        return
    where = probe.answers.origin("training").where
    raise CheckFailed(
        f"{RULE}\nthe last operation is {trained}\n"
        f"first module that gives it: {where}\n"
        f"likely: {_consequence(training.sums_to_one)}",
        _measure(given),
        where=where,
    )


def _squashed(given: Answer) -> str:
    """The operation that squashes the output, in words; empty where nothing does."""
    if given.sums_to_one:
        return "softmax (all rows are positive and sum to 1)"
    if given.operation == "Relu" and given.negative:
        return ""
    return _SQUASHED.get(given.operation, "")


def _consequence(sums_to_one: bool) -> str:
    if sums_to_one:
        return (
            "cross entropy applies softmax itself: on probabilities it cannot go to zero and "
            "hardly learns. Return what the softmax is given"
        )
    return (
        "an activation behind the head, where the losses expect free numbers (cross entropy, "
        "BCEWithLogitsLoss); return what it is given"
    )


def _means_it(probe: Probe, given: Answer, training: Answer) -> bool:
    """Whether the model says that it returns probabilities: by the name of its result, by what
    the configuration declares, or by the loss that it makes of them itself."""
    if "prob" in given.field.lower():
        return True
    problem = probe.subject.config.get("problem_type")
    several = isinstance(problem, str) and ("multi_label" in problem or "regression" in problem)
    if several and not training.sums_to_one:
        return True
    losses = probe.answers.own_loss() if training.sums_to_one else None
    if losses is None:
        return False
    own, as_logits, as_probabilities = losses
    return abs(own - as_probabilities) < 1e-3 < abs(own - as_logits)


# ... width...


def _judge_width(probe: Probe, given: Answer, notes: list[str]) -> int | None:
    """Fail where the output is too narrow for the task; the width that was expected."""
    if given.log_sums_to_zero:
        notes.append("log-probabilities: a softmax gives them back as they are")
    task = probe.subject.task
    if task.per_token:
        return _judge_vocabulary(probe, given, notes) if len(given.shape) == 3 else None
    return _judge_labels(probe, given, notes)


def _judge_labels(probe: Probe, given: Answer, notes: list[str]) -> int | None:
    config = probe.subject.config
    found: int | None = next((n for n in map(config.get, _LABELS) if _size(n)), None)
    width = given.shape[-1]
    if found is None or len(given.shape) != 2 or width == found:
        return found
    if width == 1:
        notes.append(f"one output for {found} classes: a yes-or-no classifier")
        return found
    if width == found - 1 and probe.answers.ordinal():
        notes.append(f"one score and {width} thresholds for {found} classes: they are ordered")
        return found
    unused = _unused_heads(probe, given, found)
    if not unused and given.field in _HIDDEN:
        raise NotApplicable("hidden states, as the name of the result says", _measure(given))
    cause = _cause(probe, width, unused)
    raise CheckFailed(
        f"{RULE}\n{width} outputs, {found} classes declared\nlikely: {cause}",
        _measure(given, found),
        where=_place(unused, probe),
    )


def _judge_vocabulary(probe: Probe, given: Answer, notes: list[str]) -> int | None:
    subject, width = probe.subject, given.shape[-1]
    try:
        wanted = subject.target_vocab_size if subject.decodes else subject.vocab_size
    except (TaskError, Blocked):
        notes.append("the vocabulary is not known, so neither is the right width")
        return None
    if width >= wanted:
        return wanted
    hidden = width in probe.answers.widths()
    unused = _unused_heads(probe, given, wanted) if hidden else []
    if unused or not (_labels_tokens(probe, width) and not hidden):
        _judge_narrow(probe, given, wanted, unused, hidden, notes)
    return wanted


def _judge_narrow(
    probe: Probe, given: Answer, wanted: int, unused: list[str], hidden: bool, notes: list[str]
) -> None:
    width = given.shape[-1]
    task = probe.subject.task
    declared = task.origin.startswith(("declared", "config", "architectures"))
    if not unused and hidden:
        if given.field in _HIDDEN:
            raise NotApplicable("hidden states, as the name of the result says", _measure(given))
        if not declared or task.task_type == "masked_lm":
            raise NotApplicable(
                "hidden states: no module is as wide as the vocabulary", _measure(given)
            )
    if not unused and not hidden:
        missing = wanted - width
        if missing <= _UNPREDICTED and probe.answers.may_miss(width, wanted):
            notes.append(f"the last {missing} ids cannot be predicted")
            return
        if 2 * width <= wanted and (not declared or task.task_type == "masked_lm"):
            notes.append(f"{width} outputs a token, fewer than ids: tags, not words")
            return
    raise CheckFailed(
        f"{RULE}\n{width} outputs a token, {wanted} ids in the vocabulary\n"
        f"likely: {_cause(probe, width, unused)}\n"
        'other outputs on purpose? declare them: "num_labels" in config.json',
        _measure(given, wanted),
        where=_place(unused, probe),
    )


def _labels_tokens(probe: Probe, width: int) -> bool:
    """Whether the configuration names this width as a number of outputs."""
    config = probe.subject.config
    for key in config:
        if any(word in key.lower() for word in _NAMED) and config.get(key) == width:
            return True
    return any(config.get(key) == width for key in _LABELS)


def _unused_heads(probe: Probe, given: Answer, wanted: int) -> list[str]:
    """Modules as wide as the answers that did not run and whose weight nothing read."""
    wide = probe.answers.heads(wanted)
    ran = probe.answers.origin().ran
    idle = [name for name in wide if name not in ran]
    if any(name in ran for name in wide) and given.shape[-1] >= wanted:
        return []
    return idle


def _cause(probe: Probe, width: int, unused: list[str]) -> str:
    if unused:
        return f"hidden states are returned: {unused[-1]} is there and does not run"
    if width in probe.answers.widths():
        return "hidden states are returned: no head maps them to the answers"
    return "the head is built for another number of answers (a vocabulary without its special ids)"


def _place(unused: list[str], probe: Probe) -> str:
    if not unused:
        return probe.answers.origin().where
    return unused[-1].rpartition(".")[0] or probe.root


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# ... and the same for one row.


def _judge_single_row(probe: Probe, given: Answer) -> None:
    """Fail where a batch of one gives a result of another type."""
    try:
        alone = probe.answers.answer("eval", 1)
    except Exception:  # noqa: BLE001 - shape_robustness judges models that raise here
        return
    if (alone.kind, alone.field) != (given.kind, given.field):
        raise CheckFailed(
            "the output must be of one type\n"
            f"{given.kind} with logits in {given.field!r} for a batch, {alone.kind} with logits "
            f"in {alone.field!r} for a single row\n"
            "likely: a result is unpacked or squeezed when there is only one",
            _measure(given),
            where=probe.root,
        )
