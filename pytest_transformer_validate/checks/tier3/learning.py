"""A model that is built right learns a batch by heart, and its loss falls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.training import (
    LossCurve,
    Overfit,
    largest_spike,
    mean,
    thinned,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.training.trials import Training

RATES = (3e-3, 1e-2, 1e-3, 1e-4)
CYCLE = 4  # batches that the curve goes round in
LASTING = 3  # steps for which a loss has to stay small


@check(tier=3)
def one_batch_overfit(probe: Probe, *, goal: float = 0.1) -> Overfit:
    """One small batch can be learned by heart: its loss falls below ``goal`` of the first.

    Random inputs, AdamW, clipping at 1, no dropout, at most 200 optimizer steps at each of the
    learning rates 3e-3, 1e-2, 1e-3 and 1e-4; one of them is enough. Three steps in a row count.
    """
    from pytest_transformer_validate.training.trials import Trials

    trials = Trials(probe)
    limit = Limit(value=goal, rule="of the first loss")
    curves: dict[str, list[float]] = {}
    tried: list[tuple[float, Training]] = []
    for rate in RATES:
        training = trials.overfit(rate, goal)
        _refuse_empty(training)
        tried.append((rate, training))
        curves[f"{rate:g}"] = thinned(training.losses)
        part = _best(training)
        if part < goal:
            steps = len(training.losses)
            start = training.losses[0]
            return Overfit(
                value=part, limit=limit, rate=rate, steps=steps, start=start, curves=curves
            )
        if training.stopped.startswith("out of time"):
            break
    rate, best = min(tried, key=lambda pair: _best(pair[1]))
    measured = Overfit(
        value=_best(best),
        limit=limit,
        rate=rate,
        steps=len(best.losses),
        start=best.losses[0],
        curves=curves,
    )
    if tried[-1][1].stopped.startswith("out of time"):
        raise NotApplicable(
            f"{tried[-1][1].stopped}; the loss fell to {_best(best):.2g} of the first in "
            f"{len(best.losses)} steps; --tb-time-budget gives it more",
            measured,
        )
    raise CheckFailed(
        "one batch must be learned by heart\n"
        f"the loss fell to {_best(best):.2g} of the first (limit {limit}) at best\n"
        + "".join(f"  learning rate {rate:g}: {_told(training)}\n" for rate, training in tried)
        + "likely: a gradient that is reversed, scaled or cut, noise in training mode, or outputs "
        "that cannot become large",
        measured,
    )


@check(tier=3)
def loss_curve(
    probe: Probe, *, steps: int = 40, rate: float = 1e-3, start: float = 1.5, spike: float = 3.0
) -> LossCurve:
    """The loss starts near that of a guess, falls, and does not leap.

    Over four batches in turn for ``steps`` optimizer steps at the learning rate ``rate``, without
    dropout. Random weights start between 1/``start`` and ``start`` times ln V, the loss of a guess
    among V outputs; the last losses are below the first; none is above ``spike`` times the
    smoothed ones before it.
    """
    from pytest_transformer_validate.training.trials import Trials

    training = Trials(probe).curve(rate, steps)
    _refuse_empty(training)
    losses = training.losses
    chance = math.log(probe.subject.facts.width)
    first, last = mean(losses[:CYCLE]), mean(losses[-CYCLE:])
    measured = LossCurve(
        value=last / first,
        limit=Limit(value=1.0, rule="the first losses"),
        start=losses[0],
        chance=chance,
        end=last,
        spike=largest_spike(losses),
        losses=thinned(losses),
    )
    if training.stopped.startswith("training stopped"):
        _fail(training.stopped, "a division by zero, exp or log of what grows", measured)
    drawn = probe.weights.startswith("random")
    if drawn and not chance / start <= losses[0] <= chance * start:
        _fail(
            f"it starts at {losses[0]:.3g}; a guess among {probe.subject.facts.width} outputs has "
            f"ln V = {chance:.3g} (allowed {chance / start:.3g} to {chance * start:.3g})",
            "weights or a scale of the outputs that are too large, or outputs that hold the label",
            measured,
        )
    if measured.spike > spike:
        _fail(
            f"a loss is {measured.spike:.3g} times the smoothed ones before it (limit {spike:g})",
            "something that happens in some steps only: a counter, a schedule inside the model",
            measured,
        )
    if last >= first:
        _fail(
            f"it was {first:.4g} in the first {CYCLE} steps and is {last:.4g} in the last",
            "a gradient of the wrong sign, or one that reaches nothing that matters",
            measured,
        )
    return measured


def _fail(what: str, likely: str, measured: LossCurve) -> None:
    raise CheckFailed(
        f"the loss must start near a guess, fall and not leap\n{what}\nlikely: {likely}", measured
    )


def _refuse_empty(training: Training) -> None:
    if not training.losses and training.stopped:
        raise CheckFailed(f"a model must be trainable\n{training.stopped}")


def _best(training: Training) -> float:
    """The smallest loss that three steps in a row stayed below, as a part of the first."""
    losses = training.losses
    lasting = [max(losses[at : at + LASTING]) for at in range(len(losses) - LASTING + 1)]
    return min(filter(math.isfinite, lasting), default=losses[0]) / losses[0]


def _told(training: Training) -> str:
    end = f", {training.stopped}" if training.stopped else ""
    losses = training.losses
    return f"{losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps{end}".partition("\n")[0]
