"""Whether a loss is a plain cross entropy, what it is a mean of, and which labels it ignores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.tier1.loss_rule import fail
from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.measures.losses import (
    ROUNDING,
    WEIGHTS,
    Pull,
    cross_entropy,
    linear,
    of_label_probabilities,
    of_probabilities,
    pull,
    smoothing,
    softmaxed,
    unsmoothed,
)

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.losses import Answer
    from pytest_transformer_validate.probe.probe import Probe


def judge_form(probe: Probe, full: Answer, found: Pull, notes: list[str]) -> float | None:
    """The label smoothing of what is a cross entropy of the logits, mostly 0; else ``None``."""
    probabilities = softmaxed(full)
    fits = found.misfit <= max(ROUNDING * full.eps, 1e-6)
    sparse = found.misfit == 0.0
    doubled = probabilities and not sparse and found.misfit < WEIGHTS
    if doubled or (not probabilities and of_probabilities(full, found)):
        fail(
            probe,
            "the cross entropy takes probabilities for logits: softmax is applied twice, and the "
            "gradient all but vanishes",
            "softmax before cross_entropy, which holds one",
        )
    if linear(full):
        fail(
            probe,
            "the loss is linear in the logit of each label: it is unbounded, and no other class "
            "has a gradient",
            "nll_loss, which takes logarithms of probabilities, given logits; use cross_entropy",
        )
    if fits and of_label_probabilities(full, found):
        fail(
            probe,
            f"the loss, {full.loss:.3g}, is minus the probability of each label, not its "
            "logarithm: an output that is wrong has next to no gradient",
            "nll_loss given softmax(logits), which wants log_softmax(logits); use cross_entropy",
        )
    if fits:
        return 0.0
    amount = smoothing(full, found)
    if amount is not None:
        notes.append(f"labels are smoothed by {amount:.2g}")
        return amount
    notes.append("no plain cross entropy of the returned logits: only the labels are judged")
    return None


def scale_of(
    probe: Probe, full: Answer, found: Pull, count: int, notes: list[str]
) -> tuple[str, float]:
    """What the ``count`` outputs are summed to, by their weights when all labels count: its kind,
    and the loss over the mean."""
    weights = found.weight[found.clear]
    if not weights.numel():
        notes.append("outputs are too sure of their labels for their weights to be read")
        return "unknown", 1.0
    rows = full.labels.shape[0]
    mean = float(weights.mean())
    if float((weights - mean).abs().max()) > _tolerance(full) * abs(mean):
        notes.append("outputs count differently, with no label ignored")
        return "unknown", mean * count
    scale, total = mean * count, full.labels.numel()
    length = total // rows
    near = _tolerance(full)
    if _near(scale, 1.0, near):
        return "mean", scale
    if _near(mean, 1.0, near) or _near(mean, 1 / rows, near):
        over = "" if _near(mean, 1.0, near) else " over tokens, with a mean over rows"
        notes.append(f"the loss is a sum{over}, not a mean")
        return "sum", scale
    wrong = {
        "all positions, also those without a label": 1 / total,
        "the number of labels, and then by the rows": 1 / (count * rows),
        "the number of labels, and then by the length": 1 / (count * length),
    }
    for what, weight in wrong.items():
        if _near(mean, weight, near):
            fail(
                probe,
                f"every output has the weight {mean:.3g} where 1/{count} is a mean: the sum is "
                f"divided by {what}",
                "the denominator of the mean",
            )
    notes.append(f"the loss is {scale:.3g} times the mean cross entropy")
    return "mean", scale


def judge_ignored(
    probe: Probe,
    full: Answer,
    found: Pull,
    kind: str,
    shift: int,
    notes: list[str],
    smooth: float = 0.0,
) -> int | None:
    """Ignored labels have no gradient and no part in the mean; which label is ignored. Labels are
    smoothed by ``smooth``."""
    if full.labels.dim() == 1:
        return None
    some, ignored = with_ignored(probe, full, notes)
    if some is None or ignored is None:
        return None
    counted = _counted(some, ignored, shift)
    pulled = pull(some)
    _refuse(probe, pulled.active & ~counted, ignored)
    if kind == "unknown":
        return ignored
    pulled = pull(unsmoothed(some, smooth))
    if bool((pulled.clear == counted).all()):
        all_of_them = cross_entropy(full, full.labels, shift).isfinite()
        before = found.weight[found.clear].mean().expand(int(all_of_them.sum()))
        _judge_mean(probe, before, pulled.weight, counted, kind, ignored, _tolerance(full))
    return ignored


def judge_ignored_beside(probe: Probe, full: Answer, shift: int, notes: list[str]) -> int | None:
    """Ignored labels have no gradient, in a cross entropy that has labels of its own making for
    the outputs behind the last one (an end id, or a label that was to be ignored)."""
    if full.labels.dim() == 1:
        return None
    some, ignored = with_ignored(probe, full, notes)
    if some is None or ignored is None:
        return None
    labelled = cross_entropy(full, full.labels, shift).isfinite()
    _refuse(probe, pull(some).active & labelled & ~_counted(some, ignored, shift), ignored)
    return ignored


def _counted(some: Answer, ignored: int, shift: int) -> torch.Tensor:
    """(B, T): the outputs whose label counts."""
    labels = some.labels.masked_fill(some.labels == ignored, -1)
    return cross_entropy(some, labels, shift).isfinite()


def _refuse(probe: Probe, wrong: torch.Tensor, ignored: int) -> None:
    if bool(wrong.any()):
        fail(
            probe,
            f"{int(wrong.sum())} outputs whose label is {ignored} have a gradient",
            "ignore_index is missing or another one, or the label is clamped to a real id",
        )


def _judge_mean(
    probe: Probe,
    before: torch.Tensor,
    weight: torch.Tensor,
    counted: torch.Tensor,
    kind: str,
    ignored: int,
    near: float,
) -> None:
    """The weights when some labels are ignored, against those when none was."""
    count = int(counted.sum())
    wanted = float(before.mean())
    if kind == "mean":
        wanted *= before.numel() / count
    found = weight[counted]
    if float((found - wanted).abs().max()) <= near * wanted:
        return
    rows = counted.sum(1, keepdim=True).clamp(min=1) * counted.shape[0]
    by_rows = (weight * rows)[counted]
    if kind == "mean" and float((by_rows - by_rows.mean()).abs().max()) <= near:
        fail(
            probe,
            "every row has the same weight, however many of its labels count: a mean of means",
            "a mean for each row, and a mean of these",
        )
    mean = float(found.mean())
    if kind == "mean" and _near(mean, float(before.mean()), near):
        fail(
            probe,
            f"with {before.numel() - count} labels ignored ({ignored}) the sum is still divided "
            f"by {round(1 / mean)}, not by the {count} that count",
            "reduction='none' and a plain mean(), or a division by batch times length",
        )
    fail(
        probe,
        f"with {before.numel() - count} labels ignored ({ignored}) an output weighs {mean:.3g} "
        f"where {wanted:.3g} is expected",
        "the denominator of the mean",
    )


def with_ignored(probe: Probe, full: Answer, notes: list[str]) -> tuple[Answer | None, int | None]:
    """An answer where some labels are ignored, and the label that the model ignores."""
    losses, subject = probe.losses, probe.subject
    if subject.device.type != "cpu":
        notes.append("ignored labels are judged on the CPU only")
        return None, None
    raised = None
    for ignored in dict.fromkeys((-100, -1, subject.pad_id)):
        if ignored is None:
            continue
        try:
            some = losses.answer("some", ignored)
        except Exception as error:  # noqa: BLE001 - which label is ignored is found by trying
            raised = raised or error_line(error, 100)
            continue
        if ignored == subject.pad_id and not _ignores(full, some):
            continue
        if ignored != -100:
            notes.append(f"the label {ignored} is ignored, -100 is not taken")
        return some, ignored
    if full.named and losses.role == "labels":
        fail(
            probe,
            f"labels of -100 must be ignored, and are not taken ({raised})",
            "ignore_index is missing, or the label is used as an index",
        )
    notes.append("no label is ignored (-100, -1 and the padding id were tried)")
    return None, None


def _ignores(full: Answer, some: Answer) -> bool:
    """Whether labels that are ignored change which outputs have a gradient."""
    if some.gradient is None or full.gradient is None:
        return False
    before, after = (a.gradient.abs().amax(-1) > 0 for a in (full, some) if a.gradient is not None)
    return bool(before.sum() > after.sum())


def _tolerance(answer: Answer) -> float:
    """How far weights may be apart, relative to each other."""
    return max(WEIGHTS, 8 * answer.eps)


def _near(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * abs(b)
