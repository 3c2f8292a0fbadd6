"""The logits are numbers that say something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.outputs import Stability, spread

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.forwards import Samples
    from pytest_transformer_validate.probe.probe import Probe

FAST_PATH = (
    "a bias (ALiBi, distances) is handed to torch's own layers as a mask: in eval mode without "
    "gradients they take their fast path, which reads every number but 0 as hidden; add it to the "
    "scores, or torch.backends.mha.set_fastpath_enabled(False)"
)


@check(tier=1)
def output_stability(probe: Probe, *, ceiling: float = 1e4, floor: float = 1e-6) -> Stability:
    """The logits are finite, of a usable size, and differ between inputs, positions and outputs.

    ``ceiling`` bounds their magnitude: beyond it a softmax in float32 is one-hot whatever the
    input (healthy models at initialisation stay below 100). ``floor`` is the smallest relative
    difference that counts as one; a model that starts at zero somewhere is judged again with
    every parameter moved at random.
    """
    drawn = probe.samples()
    measured = _measure(drawn, ceiling)
    if drawn.bad:
        text = _not_finite(probe, drawn)
        raise CheckFailed(text, measured, where=next(iter(drawn.bad.values())))
    if measured.value is not None and measured.value > ceiling:
        raise CheckFailed(
            "logits must stay at a size that a softmax can use\n"
            f"largest magnitude {measured.value:.3g} (limit {ceiling:g}), over random inputs\n"
            f"first module whose output is as large: {probe.first_larger(ceiling)}\n"
            "likely: a normalisation is missing, or an initial scale is far too large",
            measured,
            where=probe.first_larger(ceiling),
        )
    collapsed = _collapsed(probe, measured, floor)
    if not collapsed:
        return measured
    moved = _measure(probe.samples(noised=True), ceiling)
    still = _collapsed(probe, moved, floor)
    if still:
        where = probe.first_blind(still[0])
        raise CheckFailed(_blind(still[0], measured, where), measured, where=where)
    dead = probe.dead_input()
    if dead is not None:
        raise CheckFailed(
            "logits must depend on the input\n"
            f"no module gives another output for another input, from the first one on: {dead}\n"
            "likely: the embedding starts at zero, or its weights were never loaded",
            measured,
            where=dead,
        )
    return Stability(
        **{
            **vars(measured),
            "notes": (
                *measured.notes,
                f"{collapsed[0]}: only until parameters that start at zero move",
            ),
        }
    )


def _measure(drawn: Samples, ceiling: float) -> Stability:
    logits = drawn.random
    largest, std, rows, positions, outputs = spread(logits)
    finite = logits.masked_fill(~logits.isfinite(), 0)
    return Stability(
        value=largest,
        limit=Limit(value=ceiling, rule="the largest usable logit"),
        mean=float(finite.mean()),
        std=std,
        smallest=float(finite.min()),
        largest=float(finite.max()),
        between_inputs=rows,
        between_positions=positions,
        between_outputs=outputs,
        bad=tuple(drawn.bad),
        notes=tuple(
            f"torch's fused layers give NaN for {name}: pad on the right" for name in drawn.fused
        ),
    )


def _collapsed(probe: Probe, measured: Stability, floor: float) -> list[str]:
    """What the logits do not depend on, in words."""
    found = []
    if measured.between_inputs <= floor:
        found.append("the logits are the same for every input")
    positions = measured.between_positions
    if probe.subject.task.per_token and positions is not None and positions <= floor:
        found.append("the logits are the same at every position")
    if measured.between_outputs is not None and measured.between_outputs <= floor:
        found.append("the logits are the same for every output")
    return found


def _not_finite(probe: Probe, drawn: Samples) -> str:
    first = next(iter(drawn.bad.values()))
    return "\n".join(
        [
            "logits must be finite numbers for every input that the task allows",
            f"NaN or infinity for: {', '.join(drawn.bad)}",
            f"first module that gives it from finite inputs: {first or 'none stands out'}",
            f"likely: {_cause(probe, drawn)}",
        ]
    )


def _cause(probe: Probe, drawn: Samples) -> str:
    if "random" in drawn.bad and probe.backends.fast_path_moves(float("inf")):
        return FAST_PATH
    if "random" not in drawn.bad and all("padding" in name for name in drawn.bad):
        return "a softmax over a row in which everything is masked with -inf"
    if "random" in drawn.bad:
        return "uninitialised weights, an exp or a division that overflows, or a log of zero"
    return "a division by a spread that is zero for this input: a normalisation without eps"


def _blind(what: str, measured: Stability, where: str | None) -> str:
    return "\n".join(
        [
            "logits must depend on the input",
            f"{what}, also after every parameter was moved at random",
            f"largest difference: {measured.between_inputs:.2g} between inputs, "
            f"{measured.between_outputs or 0:.2g} between outputs (relative to the largest logit)",
            f"first module whose output no longer depends on it: {where or 'none stands out'}",
            "likely: a normalisation or softmax over an axis of size one, a mean over the batch "
            "or the positions, or a head that ignores its input",
        ]
    )
