"""What small changes of the input do: tokens, vectors, and a search for the worst."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import perturbation as numbers
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.perturbation import (
    Adversarial,
    Smoothness,
    TokenEffects,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe

_DIGITS = 1e-5  # eps above which noise of 1e-4 cannot be told from rounding


@check(tier=2)
def token_perturbation(probe: Probe) -> TokenEffects:
    """How far the output moves when one token is replaced, left out or masked: information.

    Every position in one batch, and every patch of an image set to zero. Which tokens have to
    reach the output is judged by ``context_use``, what an output may be by ``output_stability``.
    """
    found = probe.perturbation.effects()
    part = numbers.moving(found.moved, 16 * probe.eps)
    replaced = found.moved.get("replaced")
    agreement = None
    if replaced and found.slope:
        sizes = [abs(slope) for slope in found.slope[: len(replaced)]]
        agreement = numbers.spearman(replaced, sizes)
    return TokenEffects(
        value=part,
        effects=found.moved,
        slope=found.slope,
        agreement=agreement,
        grid=found.grid,
        notes=(f"information: {part:.0%} of the changes move the output",),
    )


@check(tier=2)
def embedding_smoothness(probe: Probe, *, jump: float = 100.0) -> Smoothness:
    """The output follows small noise on the token vectors, or the pixels.

    Noise of 1e-4 to 1e-1 of the vectors. How far the output moves over how far they do (the gain)
    may differ by ``jump`` between scales, as far as it is more than rounding: an output that moves
    as far under the smallest noise as under the largest follows nothing. Not judged where the
    model chooses or rounds on the way (top-k routing, an argmax, quantised vectors).
    """
    if probe.eps > _DIGITS:
        raise NotApplicable("half precision rounds small noise away")
    condition, found = "eval", probe.vector_noise.response()
    if not numbers.told(found):  # branches that start at zero
        condition, found = "noised", probe.vector_noise.response("noised")
    told, gains = numbers.told(found), numbers.gains(found)
    if not told:
        raise NotApplicable("noise does not move the output: see output_stability")
    measured = Smoothness(
        value=max(told) / min(told),
        limit=Limit(value=jump, rule="the largest gain over the smallest"),
        scales=list(found.scales),
        gains=gains,
        decides=list(found.decides),
    )
    if measured.value is not None and measured.value <= jump:
        return measured
    if found.decides:
        raise NotApplicable(
            f"the output jumps, and the model chooses or rounds: {', '.join(found.decides)}",
            measured,
        )
    said = ", ".join(f"{g:.3g} at {s:g}" for s, g in zip(found.scales, gains, strict=True))
    where = probe.vector_noise.first_jumping(jump, condition)
    raise CheckFailed(
        "the output must follow small noise on its input\n"
        f"moved over noise: {said}; they differ {measured.value:.3g} times (limit {jump:g})\n"
        f"first module to jump: {where or 'none stands out'}\n"
        "likely: numbers are made from the last digits of activations (a hash, a seed, a "
        "remainder), or multiplied until only their digits count",
        measured,
        where=where,
    )


@check(tier=2, tasks=("causal_lm", "masked_lm", "seq2seq", "classification"))
def adversarial_tokens(probe: Probe) -> Adversarial:
    """How few tokens have to be replaced until the prediction is another one: information.

    Up to four tokens, each the best of eight that the gradient of the margin proposes.
    """
    found = probe.adversary.attack()
    count = len(found.swaps) if found.flipped else None
    said = f"{count} swaps change" if found.flipped else f"{len(found.swaps)} swaps do not change"
    return Adversarial(
        value=None if count is None else float(count),
        margins=list(found.margins),
        swaps=list(found.swaps),
        notes=(f"information: {said} the prediction",),
    )
