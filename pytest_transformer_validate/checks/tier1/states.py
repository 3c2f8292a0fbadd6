"""A forward in evaluation is a function of its input; in training its dropout is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import (
    Blocked,
    CheckFailed,
    NotApplicable,
    error_line,
    first_line,
)
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.states import Determinism, DropoutUse, Statelessness
from pytest_transformer_validate.measures.tolerance import same_shape_limit, settle, unit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_transformer_validate.probe.draws import Twice
    from pytest_transformer_validate.probe.dropouts import Declared, Trained
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.remains import Left
    from pytest_transformer_validate.probe.states import Step

REPEATABLE = "in evaluation the same input must give the same logits"
ALONE = "in evaluation a call must not depend on earlier ones, and must leave nothing behind"
DROPS = "dropout must be at work in training"


@check(tier=1)
def determinism(probe: Probe, *, accelerator: float = 64.0) -> Determinism:
    """In evaluation the output depends on no random number.

    The same batch is given under two random states after ``train()`` and ``eval()``: plainly,
    with gradients recorded and with an explicit mask. The logits have to be equal bit by bit
    where the first state repeats them so; else, and on an accelerator, 16 and ``accelerator`` u
    are allowed for kernels that add in no fixed order.
    """
    notes: list[str] = []
    ways, worst = probe.draws.ways(), 0.0
    limit = Limit(value=0.0, rule="equal bit by bit")
    for way in ways:
        try:
            twice = probe.draws.drawn_twice(way)
        except Exception as error:
            if way == "plain":
                raise
            notes.append(f"not judged {_WAYS[way]}: {first_line(error)}")
            continue
        worst = max(worst, twice.moved)
        if twice.moved:
            limit = _random_limit(probe, twice, accelerator)
            measured = Determinism(value=twice.moved, limit=limit, ways=tuple(ways))
            _judge_random(probe, twice, measured, notes)
    return Determinism(value=worst, limit=limit, ways=tuple(ways), notes=tuple(notes))


_WAYS = {
    "plain": "",
    "gradients": " with gradients recorded",
    "masked": " with an attention mask",
}


def _random_limit(probe: Probe, twice: Twice, accelerator: float) -> Limit:
    if probe.subject.device.type != "cpu":
        return Limit(value=accelerator * unit(twice.reference), rule=f"{accelerator:g} u")
    if twice.repeated:
        return same_shape_limit(twice.reference)
    return Limit(value=0.0, rule="equal bit by bit")


def _judge_random(probe: Probe, twice: Twice, measured: Determinism, notes: list[str]) -> None:
    limit = measured.limit
    assert limit is not None
    if probe.states.settled_history().left.parameters:
        raise Blocked("a forward writes to the weights: see statelessness")
    if limit.value:

        def again(other: Probe) -> float:
            return other.draws.drawn_twice(twice.way).moved

        verdict = settle(twice.moved, limit, lambda: probe.repeated(again))
        notes.extend(verdict.notes)
        if not verdict.exceeded:
            return
    where = probe.draws.first_drawing(twice)
    raise CheckFailed(
        "\n".join(
            [
                REPEATABLE,
                f"the same batch{_WAYS[twice.way]} under two random states: logits moved by "
                f"{twice.moved:.2g} (limit {limit})",
                f"first module to differ: {where or 'none stands out'}",
                "likely: F.dropout without training=self.training, a dropout_p that is handed to "
                "attention in evaluation too, noise or a random mask that is not for training "
                "only, or modules that eval() does not reach (kept in a plain list, or behind a "
                "train() of their own)",
                *notes,
            ]
        ),
        measured,
        where=where,
    )


@check(tier=1)
def statelessness(probe: Probe, *, factor: float = 16.0) -> Statelessness:
    """In evaluation a call depends on no earlier call and changes nothing but its own output.

    Inputs of several shapes are given one after the other, and each has to give what the model
    as loaded gives for it alone; shapes and random states are the same, so the expected movement
    is exactly 0 and ``factor`` u are allowed. Weights, the caller's inputs, modes and torch's
    settings have to be as before.
    """
    history = probe.states.settled_history()
    _judge_left(probe, history.left)
    counted = history.left.counters
    notes = [f"counted in evaluation too: {', '.join(counted[:5])}"] if counted else []
    steps = [*history.steps]
    steps += [s for s in (probe.states.after_training(), probe.states.after_too_long()) if s]
    worst = 0.0
    for step in steps:
        limit = same_shape_limit(step.reference, factor) if not step.raised else None
        measured = Statelessness(value=step.moved, limit=limit, calls=len(step.before))
        if limit is None or not step.moved <= limit.value:
            _judge_step(probe, step, measured, notes)
        worst = max(worst, step.moved)
    limit = same_shape_limit(history.steps[0].reference, factor)
    return Statelessness(value=worst, limit=limit, calls=len(history.steps), notes=tuple(notes))


def _judge_step(probe: Probe, step: Step, measured: Statelessness, notes: list[str]) -> None:
    if measured.limit is not None:

        def again(other: Probe) -> float:
            return max(s.moved for s in _all_steps(other) if s.given == step.given)

        verdict = settle(step.moved, measured.limit, lambda: probe.repeated(again))
        notes.extend(verdict.notes)
        if not verdict.exceeded:
            return
    where = probe.states.first_moved(step)
    after = ", ".join(_counted(step.before))
    what = (
        f"{step.given} raised {step.raised}"
        if step.raised
        else f"the logits of {step.given} moved by {step.moved:.2g} (limit {measured.limit})"
    )
    raise CheckFailed(
        "\n".join(
            [
                ALONE,
                f"{what} after: {after}",
                f"first module to differ: {where or 'none stands out'}",
                f"likely: {_memory(step)}",
            ]
        ),
        measured,
        where=where,
    )


def _memory(step: Step) -> str:
    """The usual mistake, by what was given last before."""
    *_, last = step.before
    if last == step.given:
        return (
            "a hidden state, keys and values, or a running average that one call leaves for the "
            "next, or a counter"
        )
    if last == "a forward and backward in training mode":
        return "a table or mask that training leaves in an attribute, and evaluation finds there"
    if last == "a text longer than the maximum":
        return "rotary frequencies that are rescaled for a long text and not set back"
    return (
        "a cache (mask, table of positions, encoder output, keys and values) that is kept from "
        "the first or longest call and read wrongly later, or a buffer that is written to"
    )


def _all_steps(probe: Probe) -> list[Step]:
    states = probe.states
    extra = (states.after_training(), states.after_too_long())
    return [*states.settled_history().steps, *(step for step in extra if step)]


def _counted(names: Iterable[str]) -> list[str]:
    """Names of inputs in order, each once."""
    return list(dict.fromkeys(names))


_LEFT = {
    "parameters": (
        "a forward wrote to {}",
        "an in-place operation on a weight, or on a view of one (x = self.weight[:n]; x += ...), "
        "or a weight that is normalised or quantised in place at each call",
    ),
    "buffers": (
        "buffers of the state dict go on changing in evaluation: {}",
        "statistics without `if self.training`",
    ),
    "inputs": (
        "a forward wrote to the caller's {}, or left it asking for a gradient",
        "an in-place operation (masked_fill_, *=, an assignment to a slice) on an argument; "
        "clone it first",
    ),
    "modes": (
        "a forward in evaluation flipped the mode of {}",
        "self.train() or self.eval() inside of forward",
    ),
    "rates": (
        "a forward in evaluation changed {}",
        "self.dropout = 0 if not self.training: training goes on without it; choose at each call",
    ),
    "settings": (
        "a forward changed {} of torch",
        "torch.set_grad_enabled, set_default_dtype or the like as a call where a `with` is meant",
    ),
}


def _judge_left(probe: Probe, left: Left) -> None:
    found = {kind: getattr(left, kind) for kind in _LEFT}
    found["inputs"] = found["inputs"] or probe.states.written_inputs()
    found["settings"] = found["settings"] or _settings_with_gradients(probe)
    for kind, names in found.items():
        if names:
            where = probe.states.first_writing(kind, names[0])
            text, likely = _LEFT[kind]
            listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            raise _leaves(text.format(listed), where, likely, len(names))
    if left.overwritten:
        likely = "the output is a buffer that every call writes into"
        raise _leaves("a later call wrote into logits already returned", probe.root, likely, 1)
    reseeded = probe.draws.drawn_twice("plain").reseeded
    if reseeded:
        where = probe.draws.first_reseeding() if "torch" in reseeded else None
        likely = "a manual_seed inside of forward; draw from a torch.Generator of its own instead"
        text = f"a forward seeded the generator of: {', '.join(reseeded)}"
        raise _leaves(text, where, likely, len(reseeded))


def _settings_with_gradients(probe: Probe) -> tuple[str, ...]:
    """What a forward changes in torch where gradients are recorded."""
    try:
        return probe.draws.drawn_twice("gradients").settings
    except Exception:  # noqa: BLE001 - a model need not run in evaluation with gradients
        return ()


def _leaves(what: str, where: str | None, likely: str, count: int) -> CheckFailed:
    lines = [ALONE, what, f"first module to do so: {where or 'none stands out'}"]
    measured = Statelessness(value=float(count), limit=Limit(value=0.0, rule="nothing changes"))
    return CheckFailed("\n".join([*lines, f"likely: {likely}"]), measured, where=where)


@check(tier=1)
def dropout(probe: Probe, *, most: float = 0.9) -> DropoutUse:
    """Dropout that is declared is at work in training, in every layer, and before the head.

    A forward in training has to depend on the random state. A dropout module drops less than
    ``most``, other numbers each time, is called in every layer alike, its result is used, and it
    is not put on the logits. One written by hand turns ones into ones on average.
    """
    declared = probe.dropouts.declared()
    probe.draws.drawn_twice("plain")  # what raises in evaluation too is no fault of training
    try:
        trained = probe.dropouts.trained()
    except Exception as error:
        line = error_line(error)
        raise NotApplicable(f"a forward in training mode raises: {line}") from error
    if not declared and not trained.drawing:
        raise NotApplicable("no dropout is declared")
    functional = [name for name in trained.drawing if name not in trained.active]
    notes = []
    if trained.uncalled:
        notes.append(f"dropout modules that are not called: {', '.join(trained.uncalled[:5])}")
    measured = DropoutUse(
        value=trained.moved,
        modules=len(trained.active),
        functional=len(functional),
        uncalled=trained.uncalled,
        notes=tuple(notes),
    )
    found = _misuse(probe, declared, trained, most)
    if found is not None:
        what, where, likely = found
        text = "\n".join(
            [DROPS, what, f"module: {where or 'none stands out'}", f"likely: {likely}"]
        )
        raise CheckFailed(text, measured, where=where)
    return measured


Misuse = tuple[str, str | None, str]


def _misuse(probe: Probe, declared: Declared, trained: Trained, most: float) -> Misuse | None:
    """What is wrong, the module and the likely cause; ``None`` where nothing is."""
    for name, p in trained.active.items():
        if p >= most:
            return (
                f"{name} drops {p:g} of its input (limit: less than {most:g})",
                name,
                "the probability to keep was given; p is the probability to drop",
            )
    if trained.on_logits is not None:
        return (
            "the logits themselves are dropped out in training",
            trained.on_logits,
            "a dropout behind the head; it belongs before it",
        )
    for name in trained.discarded:
        return (
            f"the output of {name} is used by nothing",
            _above(name),
            "self.dropout(x) without x = : dropout does not work in place",
        )
    if trained.reseeded:
        return (
            "torch's generator is in the same state after two forwards in training that began in "
            "different ones: what is dropped is the same in every step",
            probe.draws.first_reseeding(training=True),
            "torch.manual_seed inside of forward",
        )
    for name in trained.alike:
        return (
            f"{name} drops the same numbers in two forwards in training, under two random states",
            name,
            "a mask that is drawn once and kept",
        )
    for name, like in probe.dropouts.lacking():
        return (
            f"{name} draws nothing in training, {like} does",
            _above(name) if name in (*declared.modules, *trained.uncalled) else name,
            "one layer does not call its dropout, or keeps it in evaluation mode",
        )
    for name, like in probe.dropouts.undropped():
        return (
            f"{name} drops nothing, {like} of the same role does",
            _above(name),
            "the dropout of one layer was switched off and not put back, or is made elsewhere",
        )
    return _unscaled(probe) or _idle(probe, declared, trained)


def _unscaled(probe: Probe) -> Misuse | None:
    for found in probe.dropouts.hand_written():
        spread = (found.zeros * (1 - found.zeros) / found.entries) ** 0.5
        missing = abs(found.mean - 1)
        if missing > max(0.02, 10 * spread):
            return (
                f"{found.name} turns ones into {found.mean:.3g} on average, dropping "
                f"{found.zeros:.2g}",
                found.name,
                "what is kept has to be divided by 1 - p in training",
            )
    return None


def _idle(probe: Probe, declared: Declared, trained: Trained) -> Misuse | None:
    """Called, or declared twice, and without effect in training, also with moved parameters.

    A dropout module that is made and never called is a mistake where the configuration asks for
    dropout too; else it may be a leftover.
    """
    names = [*trained.active, *trained.inside]
    if not names and declared.keys and not trained.drawing:
        names = [*trained.uncalled]
    if trained.moved or not names or probe.dropouts.trained_noised():
        return None
    if probe.dropouts.moves_others():
        return None
    return (
        "two random states give the same logits in training, and dropout is declared: "
        + ", ".join(names[:4]),
        probe.dropouts.keeps_idle(trained),
        "the dropout is made and never called, train() does not reach it, or the generator is "
        "seeded inside of forward",
    )


def _above(name: str) -> str:
    return name.rpartition(".")[0] or "(model)"
