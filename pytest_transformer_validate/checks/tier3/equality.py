"""Trainings that have to be equal: micro-batches and one batch, and two of one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.equivalence import far_gradients
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.training import Accumulated, Seeded

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.checkpointing import Trained
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.training.trials import Training


@check(tier=3)
def accumulation_equivalence(probe: Probe, *, factor: float = 64.0) -> Accumulated:
    """Gradients of micro-batches add up to those of one batch.

    Rows of which different numbers of targets count, one by one and all at once, in training mode
    without dropout; every gradient within ``factor`` u.
    """
    from pytest_transformer_validate.training.trials import Trials

    trials = Trials(probe)
    parts = min(4, probe.subject.most_rows)
    if parts < 2:
        raise NotApplicable("it takes one row at a time")
    if probe.structure.has_batch_norms:
        raise NotApplicable("batch norms compute over the rows of a micro-batch")
    whole, again, micro = trials.one_step(1), trials.one_step(1, 1), trials.one_step(parts)
    for training in (whole, micro):
        if not training.losses:
            raise CheckFailed(f"a model must be trainable\n{training.stopped}")
    one, repeated, many = (_trained(training) for training in (whole, again, micro))
    far = far_gradients(one, repeated, many, factor)
    worst = max(far, key=lambda name: far[name], default=None)
    value = far.get(worst or "", 0.0)
    measured = Accumulated(
        value=value,
        limit=Limit(value=1.0, rule=f"{factor:g} u of each gradient"),
        losses=(one.loss, many.loss),
        worst=worst if value > 1 else None,
    )
    if value <= 1:
        return measured
    mixing = trials.mixing()
    differing = {name for name, distance in far.items() if distance > 1}
    where = mixing.forward or mixing.nearest(differing)
    likely = (
        "in training mode it computes something over the rows: a mean, statistics, a choice "
        "among all tokens"
        if mixing.forward
        else "no output in training mode moves with other rows: a backward by hand, in it or "
        "behind it, computes over the rows, or divides by their number"
    )
    raise CheckFailed(
        "micro-batches must add up to one batch\n"
        f"the gradient of {worst} is {value:.3g} limits away ({measured.limit}) with {parts} "
        f"micro-batches of one row; the loss is {many.loss:.6g}, in one batch {one.loss:.6g}; "
        f"{len(differing)} of {len(far)} gradients differ\n"
        f"first module to differ: {where or 'not found'}\n"
        f"likely: {likely}",
        measured,
        where=where,
    )


@check(tier=3)
def seeded_training(probe: Probe) -> Seeded:
    """Two trainings from one seed are equal, to the bit on a CPU.

    Five optimizer steps with dropout, twice; losses and weights are compared.
    """
    from pytest_transformer_validate.training.trials import Trials

    one, other = Trials(probe).twice()
    assert one.weights is not None
    assert other.weights is not None
    apart = {
        name: float((value.double() - other.weights[name].double()).abs().nan_to_num(1e9).max())
        for name, value in one.weights.items()
        if value.numel() and not value.equal(other.weights[name])
    }
    pairs = enumerate(zip(one.losses, other.losses, strict=False), start=1)
    step = next((at for at, (a, b) in pairs if a != b), None)
    measured = Seeded(
        value=max(apart.values(), default=0.0),
        limit=Limit(value=0.0, rule="equal to the bit"),
        step=step,
        differing=len(apart),
    )
    if step is None and not apart:
        return measured
    if probe.subject.device.type != "cpu":
        raise NotApplicable(
            f"weights differ by {measured.value:.2g} after 5 steps; operations of "
            f"{probe.subject.device.type} need not add in the same order",
            measured,
        )
    first = "the weights" if step is None else f"the losses from step {step} on"
    raise CheckFailed(
        "two trainings from one seed must be equal\n"
        f"{first} differ; {len(apart)} of {len(one.weights)} tensors do, by up to "
        f"{measured.value:.2g}\n"
        "likely: random numbers of a generator that no seed reaches, or state that one training "
        "leaves to the next",
        measured,
    )


def _trained(training: Training) -> Trained:
    from pytest_transformer_validate.probe.checkpointing import Trained

    return Trained(training.losses[0], training.gradients or {}, {})
