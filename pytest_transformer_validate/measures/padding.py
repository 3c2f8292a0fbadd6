"""Numbers about padding: what it does to the outputs of real tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.measures.measurement import Limit, Measurement
from pytest_transformer_validate.measures.tolerance import same_shape_limit, shapes_limit, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pytest_transformer_validate.probe.padded_texts import Lengths
    from pytest_transformer_validate.probe.padding import Content

_COARSE = 64


@dataclass(frozen=True, kw_only=True)
class PaddingInvariance(Measurement):
    """How far outputs of real tokens move with the padding.

    ``value`` is the largest movement of an output at a real token (of a text's one output);
    ``argument`` the mask that was given (``None``: the model finds padding by its id, or needs no
    mask); ``effect`` how far the mask moves those outputs, against a mask of ones (0: nothing was
    shown); ``comparisons`` how many probes were compared and ``lengths`` the lengths of texts.
    """

    argument: str | None = None
    effect: float | None = None
    comparisons: int = 0
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MaskEffect(Measurement):
    """What a mask does.

    ``value`` is how far masking tokens moves the outputs of the others and ``limit`` what it has
    to exceed; ``ones`` how far a mask of ones is from none and ``ones_limit`` what it was held
    against (``None`` where forward requires a mask). Where a mask of ones is what fails, ``value``
    and ``limit`` are those of it.
    """

    argument: str | None = None
    ones: float | None = None
    ones_limit: float | None = None


def content_limit(found: Content, factor: float) -> Limit:
    """16 u: one shape, so exactly 0 is expected."""
    return same_shape_limit(found.reference, factor)


def lengths_limit(found: Lengths, noise: Callable[[], float], factor: float) -> Limit:
    """64 u, or 16 times the model's own noise: two shapes."""
    return shapes_limit(worst_length(found)[0], found.reference, noise, factor)


def effect_limit(reference: torch.Tensor, factor: float) -> Limit:
    """What an effect has to exceed: 256 u (the smallest of a healthy model at its first weights,
    measured over transformers 5.23: 9e-5 of the largest output, 750 u); in half precision, where
    that would be more than most outputs, 1/64 of the largest (the smallest measured with moved
    parameters: 1/30)."""
    u = unit(reference)
    coarse = u / _eps(reference) / _COARSE
    if factor * u <= coarse:
        return Limit(value=factor * u, rule=f"{factor:g} u")
    return Limit(value=coarse, rule=f"1/{_COARSE} of the largest output")


def _eps(reference: torch.Tensor) -> float:
    """The spacing of numbers of a dtype at 1."""
    import torch

    return float(torch.finfo(reference.dtype).eps)


def effect_floor(reference: torch.Tensor, factor: float) -> float:
    """The number of ``effect_limit``."""
    return float(effect_limit(reference, factor).value)


def worst_length(found: Lengths) -> tuple[float, int]:
    """The largest movement, and the row that moved; NaN is larger than any number."""
    worst = max(range(len(found.moved)), key=lambda row: _rank(found.moved[row]))
    return found.moved[worst], worst


def _rank(value: float) -> float:
    return value if value == value else float("inf")


def closer_to_limit(value: float, limit: Limit, before: PaddingInvariance) -> tuple[float, Limit]:
    """The value that is closer to its limit, of a new one and the one measured before."""
    if before.value is None or before.limit is None:
        return value, limit
    if value * before.limit.value < before.value * limit.value:
        return before.value, before.limit
    return value, limit


def worst_case(results: list[PaddingInvariance], skipped: list[str]) -> PaddingInvariance:
    """The result that is closest to its limit; NotApplicable, with the reasons ``skipped``, where
    there is none."""
    if not results:
        raise NotApplicable("; ".join(skipped))
    return max(results, key=lambda r: (r.value or 0.0) / (r.limit.value if r.limit else 1.0))
