"""What a loss is, read from its gradient at the logits.

For a cross entropy the gradient at the logits z of one output is w (softmax(z) - onehot(y)): its
only negative entry names the label y, and its size the weight w of that output in the loss.
Axes: B batch, T positions, V outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.losses import Answer

SHIFTS = (0, 1, -1, 2, -2)
ROUNDING = 64  # times eps: a log-softmax and its gradient are sums over V
WEIGHTS = 1e-3
SURE = 0.02  # 1 - p below which a weight is not read


@dataclass(frozen=True, kw_only=True)
class LossAlignment(Measurement):
    """How the loss follows from logits and labels.

    ``shift`` is how many positions ahead the label of an output stands; ``by`` says whether that
    was read from the ``gradient`` or from the ``value``; ``factor`` is the loss over the mean
    cross entropy of the labels that count; ``auxiliary`` what the loss holds besides;
    ``ignored`` the label that does not count.
    """

    shift: int | None = None
    by: str = "gradient"
    factor: float | None = None
    auxiliary: float = 0.0
    ignored: int | None = None


@dataclass(frozen=True)
class Pull:
    """Read from a gradient (B, T, V): the label ``towards`` (B, T) that each output is drawn to,
    the ``weight`` (B, T) with which, whether it is ``active`` at all, and whether the weight is
    ``clear``: of an output that is sure of its label no gradient is left to read it from."""

    towards: torch.Tensor
    weight: torch.Tensor
    active: torch.Tensor
    clear: torch.Tensor
    misfit: float


def pull(answer: Answer) -> Pull:
    """Labels and weights in the gradient; ``misfit`` is what a cross entropy does not explain,
    relative to the largest entry.

    Where (log) probabilities are returned the gradient may stand at the label alone.
    """
    assert answer.gradient is not None
    assert answer.logits is not None
    gradient, logits = answer.gradient, answer.logits
    size = gradient.abs().amax(-1)
    largest = float(size.max())
    active = size > 1e-7 * largest
    towards = gradient.argmin(-1)
    chosen = towards[..., None]
    at = gradient.gather(-1, chosen)[..., 0]
    if bool((gradient.abs().sum(-1) == at.abs()).all()):
        if softmaxed(answer):
            weight = -at * logits.gather(-1, chosen)[..., 0]
            return Pull(towards, weight, active, active, 0.0)
        if normalised(answer):
            return Pull(towards, -at, active, active, 0.0)
    p = logits.softmax(-1)
    open_part = 1 - p.gather(-1, chosen)[..., 0]
    weight = -at / open_part.clamp(min=1e-12)
    expected = p.scatter_add(-1, chosen, -p.new_ones(chosen.shape)) * weight[..., None]
    rest = (gradient - expected).abs() * active[..., None]
    misfit = float(rest.max()) / (largest or 1.0)
    return Pull(towards, weight * active, active, active & (open_part > SURE), misfit)


def shift_of(answer: Answer, found: Pull, labels: torch.Tensor) -> int | None:
    """The shift that explains every active output, with a label for each that could have one (an
    output that is sure of it needs no gradient)."""
    assert answer.logits is not None
    towards, active = found.towards, found.active
    p = answer.logits.softmax(-1)

    def fits(first: int, last: int, wanted: torch.Tensor) -> bool:
        rows = (slice(None), slice(first, last)) if labels.dim() > 1 else (slice(None),)
        sure = p[rows].gather(-1, wanted.clamp(min=0)[..., None])[..., 0] > 1 - SURE
        drawn = active[rows] & (towards[rows] == wanted)
        return bool((drawn | (sure & ~active[rows])).all())

    if labels.dim() == 1:
        return 0 if fits(0, 0, labels) else None
    length = labels.shape[1]
    for shift in SHIFTS:
        outputs = towards.shape[1]
        first, last = max(0, -shift), min(outputs, length - shift)
        if last <= first:
            continue
        inside = active.clone()
        inside[:, first:last] = False
        wanted = labels[:, first + shift : last + shift]
        if not bool(inside.any()) and fits(first, last, wanted):
            return shift
    return None


def others_shift(
    towards: torch.Tensor, active: torch.Tensor, labels: torch.Tensor
) -> tuple[int, int] | None:
    """(rows, positions) by which the label of most outputs stands elsewhere in the batch."""
    best, found = 0, None
    for rows in range(labels.shape[0]):
        for shift in range(1 - labels.shape[1], labels.shape[1]):
            moved = labels.roll((-rows, -shift), (0, 1))
            if moved.shape != towards.shape:
                return None
            hits = int(((towards == moved) & active).sum())
            if hits > best:
                best, found = hits, (rows, shift)
    return found if best > 0.5 * int(active.sum()) else None


def cross_entropy(answer: Answer, labels: torch.Tensor, shift: int) -> torch.Tensor:
    """Of every output that has a label (a negative one is none): NaN elsewhere. (B, T) or (B,)."""
    assert answer.logits is not None
    nan, logits = float("nan"), answer.logits
    scores = logits.log() if softmaxed(answer) else logits.log_softmax(-1)
    wanted = labels
    if labels.dim() == 2:
        wanted = labels.new_full(logits.shape[:2], -1)
        first = max(0, -shift)
        last = max(first, min(logits.shape[1], labels.shape[1] - shift))
        wanted[:, first:last] = labels[:, first + shift : last + shift]
    values = -scores.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return values.masked_fill(wanted < 0, nan)


def softmaxed(answer: Answer) -> bool:
    """Whether the returned logits are probabilities already."""
    logits = answer.logits
    assert logits is not None
    sums = logits.sum(-1)
    return bool((logits >= 0).all()) and float((sums - 1).abs().max()) < 1e-3


def normalised(answer: Answer) -> bool:
    """Whether the returned logits are logarithms of probabilities."""
    assert answer.logits is not None
    return float(answer.logits.logsumexp(-1).abs().max()) < 1e-3


def linear(answer: Answer) -> bool:
    """Whether the loss looks at nothing but the logit of each label, which are no logarithms of
    probabilities: it can fall for ever."""
    assert answer.gradient is not None
    size = answer.gradient.abs()
    alone = bool((size.sum(-1) == size.amax(-1)).all())
    return alone and not softmaxed(answer) and not normalised(answer)


def of_label_probabilities(answer: Answer, found: Pull) -> bool:
    """Whether the loss is minus the probability of the labels, each with its weight: a cross
    entropy is never below zero."""
    total = float(found.weight.sum())
    return answer.loss < 0 and abs(answer.loss + total) <= WEIGHTS * total


def of_probabilities(answer: Answer, found: Pull) -> bool:
    """Whether the gradient is that of a cross entropy which took softmax(logits) for logits."""
    assert answer.gradient is not None
    assert answer.logits is not None
    p = answer.logits.softmax(-1)
    inner = p.softmax(-1)
    inner = inner.scatter_add(
        -1, found.towards[..., None], -inner.new_ones((*inner.shape[:-1], 1))
    )
    through = p * (inner - (p * inner).sum(-1, keepdim=True)) * found.active[..., None]
    scale = float((through * answer.gradient).sum() / through.pow(2).sum())
    rest = float((answer.gradient - scale * through).abs().max())
    ours = float(found.misfit) * float(answer.gradient.abs().max())
    count = int(found.active.sum())
    plausible = 0.99 < scale * count < 1.01
    return plausible and rest < 1e-3 * float(answer.gradient.abs().max()) and rest <= ours


def smoothing(answer: Answer, found: Pull) -> float | None:
    """The label smoothing that explains the gradient, ``None`` where none does."""
    import torch

    assert answer.gradient is not None
    assert answer.logits is not None
    p, g = answer.logits.softmax(-1), answer.gradient
    size = p.shape[-1]
    if size < 3:
        return None
    off = torch.ones_like(p).scatter(-1, found.towards[..., None], 0) * found.active[..., None]
    count = off.sum(-1, keepdim=True).clamp(min=1)
    mean_p, mean_g = (
        (p * off).sum(-1, keepdim=True) / count,
        (g * off).sum(-1, keepdim=True) / count,
    )
    dp, dg = (p - mean_p) * off, (g - mean_g) * off
    slope = float((dp * dg).sum() / dp.pow(2).sum().clamp(min=1e-300))
    if slope <= 0:
        return None
    constant = float((slope * mean_p - mean_g)[found.active].mean())
    amount = constant * size / slope
    rest = (g - slope * p + constant) * off
    fits = float(rest.abs().max()) <= WEIGHTS * float(g.abs().max())
    return amount if fits and 1e-3 < amount < 0.9 else None


def unsmoothed(answer: Answer, amount: float) -> Answer:
    """The answer with the gradient that the same weights give without label smoothing.

    With it the gradient of one output is w (softmax(z) - (1 - amount) onehot(y) - amount / V).
    """
    assert answer.gradient is not None
    assert answer.logits is not None
    if not amount:
        return answer
    p, size = answer.logits.softmax(-1), answer.logits.shape[-1]
    label = answer.gradient.argmin(-1, keepdim=True)
    others = 1 - p.gather(-1, label) - amount * (size - 1) / size
    others = others.where(others.abs() > SURE, float("inf"))  # too sure for a weight to be read
    off = answer.gradient.sum(-1, keepdim=True) - answer.gradient.gather(-1, label)
    weight = off / others
    return replace(answer, gradient=weight * p.scatter_add(-1, label, -p.new_ones(label.shape)))
