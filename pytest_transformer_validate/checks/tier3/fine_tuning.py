"""The model learns the data of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable, TrainingError
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.training import FineTuned, mean, thinned

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.training.trials import Training

FRESH, LOADED = 1e-3, 5e-5


@check(tier=3)
def fine_tuning(probe: Probe, *, rate: float = 0.0) -> FineTuned:
    """Trained on the run's data, the model does better on a part of it that it has not seen.

    ``--tb-data`` is gone through ``--tb-epochs`` times (3) with a tenth set aside; the validation
    loss at the end is below the loss at the start. ``rate`` is the learning rate; 0 takes 1e-3
    for random weights and 5e-5 for loaded ones.
    """
    from pytest_transformer_validate.training.trials import Trials

    if probe.fitting.data is None:
        raise NotApplicable("no data: give some with --tb-data=PATH")
    rate = rate or (FRESH if probe.weights.startswith("random") else LOADED)
    try:
        training = Trials(probe).fine_tuned(rate)
    except (TrainingError, ValueError) as error:
        raise CheckFailed(f"the data must be such that the model can learn it\n{error}") from error
    if not training.losses:
        raise CheckFailed(f"a model must be trainable\n{training.stopped}")
    start = mean(training.losses[: max(1, min(5, len(training.losses) // 10))])
    end = training.val[-1] if training.val else mean(training.losses[-5:])
    measured = FineTuned(
        value=end,
        limit=Limit(value=start, rule="the loss at the start"),
        start=start,
        steps=len(training.losses),
        seconds=training.seconds,
        losses=thinned(training.losses),
        val=list(training.val),
        notes=() if training.val else (f"not validated: {training.stopped or 'too few rows'}",),
    )
    if training.stopped.startswith("training stopped") or not end < start:
        _fail(training, measured)
    return measured


def _fail(training: Training, measured: FineTuned) -> None:
    what = "validation loss" if measured.val else "loss"
    said = training.stopped or (
        f"the {what} is {measured.value:.4g} after {measured.steps} steps, at the start the loss "
        f"was {measured.start:.4g}"
    )
    learned = mean(measured.losses[-5:]) < measured.start
    likely = (
        "it computes something else in evaluation than in training (see dropout), or the rows are "
        "so few that it learned them by heart"
        if measured.val and learned
        else "too few rows, a learning rate that does not fit (ini tb_limits: "
        "fine_tuning.rate = 1e-4), or what one_batch_overfit says"
    )
    raise CheckFailed(
        "training on the data must make the model better on data it has not seen\n"
        f"{said}\n"
        f"likely: {likely}",
        measured,
    )
