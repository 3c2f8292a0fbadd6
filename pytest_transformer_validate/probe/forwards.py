"""Plain forwards: at the shapes a model has to take, and over inputs that strain it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable
from pytest_transformer_validate.probe.compare import (
    MANY,
    joined,
    plain,
    plain_batch,
    some_rows,
    trace,
)
from pytest_transformer_validate.probe.trace import ROOT, first_not_finite
from pytest_transformer_validate.subject.batch import Batch

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe

# The length that stands for "any" where nothing declares or shows a limit.
_IN_FRONT = "left padding"
_UNBOUNDED = 64


@dataclass(frozen=True)
class Shape:
    """One forward: the batch (``rows``, ``length``) given, with an encoder input of ``source``
    tokens where there is one, the shape of the logits and whether they hold no NaN."""

    rows: int
    length: int
    source: int | None
    logits: tuple[int, ...]
    finite: bool


def shapes_of(probe: Probe, case: str) -> list[Shape]:
    """Forwards at the shapes called ``case``; NotApplicable where the model has none such."""
    if case == "typical" and probe.subject.facts.whole_table:
        _shorter(probe)
    shapes = []
    for rows, length, source in _case_shapes(probe, case):
        logits = _logits_of(probe, case, rows, length, source)
        finite = not bool(logits.isnan().any())
        shapes.append(Shape(rows, length, source, tuple(logits.shape), finite))
    return shapes


def _shorter(probe: Probe) -> None:
    """A decoder's text grows: one token less than the one length that runs is given, too."""
    if probe.subject.task.task_type == "causal_lm":
        whole = probe.batch(1, probe.subject.multiple, "shape", "shorter")
        probe.forward(Batch({role: part[:, :-1] for role, part in whole.inputs.items()}))


def _logits_of(
    probe: Probe, case: str, rows: int, length: int, source: int | None
) -> torch.Tensor:
    fewest, short = probe.subject.sizes
    if source is None and length == short and rows in (fewest, probe.subject.full_batch):
        with contextlib.suppress(Blocked):  # what has raised elsewhere raises here again
            return probe.plain(None if rows > fewest else rows)
    return probe.forward(probe.batch(rows, length, "shape", case, source=source)).logits


def shortens(probe: Probe) -> bool:
    """Whether some module works on a shorter sequence than it is given (pooling, strides), of a
    length that follows the text's: learned queries and labels that look at a text do not."""
    length, other = probe.subject.sizes[1], probe.subject.other_sizes[1]
    shorter = {found for found in _lengths(probe, length) if 1 < found[1] < length}
    if not shorter or other == length:
        return bool(shorter)
    try:
        return bool(shorter - _lengths(probe, other))
    except Exception:  # noqa: BLE001 - a model may take one length alone
        return True


def _lengths(probe: Probe, length: int) -> set[tuple[str, int]]:
    """Modules that are given a text of that length, (B, T, D), with the length of what they give,
    in one forward."""
    calls = trace(probe, probe.batch(1, length, "shortens"))
    return {
        (call.name, b.shape[1])
        for call in calls
        for a in call.inputs
        for b in call.outputs
        if a.dim() == b.dim() == 3 and a.shape[1] == length
    }


def first_misshapen(probe: Probe, shape: Shape) -> str | None:
    """The first module that keeps rows and positions at another shape, and not at this one.

    Both runs are traced; an axis that is B or T in the other run has to be so here.
    """
    rows, length = shape.rows, shape.length
    other = probe.subject.sizes
    if other == (rows, length):
        other = probe.subject.other_sizes
    good = trace(probe, probe.batch(*other, "misshapen", source=other[1]))
    bad = trace(probe, probe.batch(rows, length, "misshapen", source=shape.source))
    sizes = {other[0]: rows, other[1]: length}
    for call, reference in zip(bad, good, strict=False):
        if call.name != reference.name:
            break
        if _follows(call.inputs, reference.inputs, sizes) and not _follows(
            call.outputs, reference.outputs, sizes
        ):
            return call.name
    return next(
        (
            call.name
            for call in bad
            if call.inputs
            and call.outputs
            and call.inputs[0].shape[:2] == (rows, length)
            and call.outputs[0].shape[:2] != (rows, length)
        ),
        ROOT,
    )


def _follows(
    tensors: list[torch.Tensor], reference: list[torch.Tensor], sizes: dict[int, int]
) -> bool:
    return all(
        tuple(t.shape) == tuple(sizes.get(n, n) for n in r.shape)
        for t, r in zip(tensors, reference, strict=False)
    )


@dataclass(frozen=True)
class Samples:
    """Logits of forwards over ordinary and straining inputs.

    ``random`` (N, ...) are rows of random inputs, ``labels`` the names of the straining inputs
    that gave NaN or +infinity, each with the first module that did. ``fused`` are those of them
    that do so in torch's fused layers alone.
    """

    random: torch.Tensor
    bad: dict[str, str | None]
    fused: tuple[str, ...] = ()


def samples(probe: Probe, noised: bool = False) -> Samples:
    """Forwards over random rows, one repeated token, the largest id, and padded rows."""
    with probe.under("noised" if noised else "eval"):
        random = plain(probe) if noised else probe.plain()
        bad: dict[str, str | None] = {}
        if not_finite(random):
            bad["random"] = _first_bad(probe, plain_batch(probe))
        if not noised:
            rows, length = probe.subject.sizes
            for batches in _straining(probe, min(rows, 2), length):
                # one run tells that all is well, others which it is where that is not so
                if not batches or not _any_bad(probe, joined(*batches.values())):
                    continue
                for name, batch in batches.items():
                    if _any_bad(probe, batch):
                        bad[name] = _first_bad(probe, batch)
    fused = [name for name, where in bad.items() if name == _IN_FRONT and where is None]
    return Samples(random, {n: w for n, w in bad.items() if n not in fused}, tuple(fused))


def _any_bad(probe: Probe, batch: Batch) -> bool:
    most = min(MANY, probe.subject.most_rows)
    parts = (some_rows(batch, start, start + most) for start in range(0, batch.rows, most))
    return any(not_finite(_judged(probe.forward(part).logits, part)) for part in parts)


def not_finite(logits: torch.Tensor) -> bool:
    """NaN or +infinity anywhere, or -infinity where other rows are finite (a masked output may
    be -infinity in every row)."""
    if bool(logits.isnan().any()) or bool((logits == float("inf")).any()):
        return True
    lowest = logits == float("-inf")
    flat = lowest.reshape(-1, lowest.shape[-1])
    return bool((flat.any(0) & ~flat.all(0)).any())


def _case_shapes(probe: Probe, case: str) -> list[tuple[int, int, int | None]]:
    """The shapes (B, T, source) of a case; those that the maximum length forbids are left out."""
    subject = probe.subject
    rows, length = subject.sizes
    longest = subject.max_length
    if subject.vision:
        counts = {"single_token": 1, "coprime": 3, "typical": 2, "full_batch": subject.full_batch}
        if case not in counts:
            raise NotApplicable("an image has one size: there is no longest one")
        return [(counts[case], 1, None)]
    full = min(longest or _UNBOUNDED, 4096 if subject.small and subject.declares_length else 1024)
    typical = 32 if subject.small else 16
    other = subject.other_sizes
    wanted: dict[str, list[tuple[int, int, int | None]]] = {
        "single_token": [(1, 1, 1), (3, 1, 1), (2, 2, 2)],
        "coprime": [(rows, length, None), (*other, max(1, other[1] - 2))],
        "typical": [(2, typical, None), (1, typical + 1, None)],
        "full_length": [
            *([(1, full - 1, full)] if subject.small and full <= 1024 else []),
            (1, full, full),
        ],
        "full_batch": [(max(rows, subject.full_batch), length, None)],
    }
    most = subject.most_rows
    fitting = [(min(b, most), t, s) for b, t, s in wanted[case] if 1 <= t <= full]
    if subject.multiple > 1:
        if case == "single_token":
            raise NotApplicable(f"lengths have to be multiples of {subject.multiple}")
        full -= full % subject.multiple
        fitting = list(dict.fromkeys(_rounded(shape, subject.multiple, full) for shape in fitting))
    return fitting or [(min(2, most), full, None)]


def _rounded(
    shape: tuple[int, int, int | None], multiple: int, full: int
) -> tuple[int, int, int | None]:
    """The shape with the next lengths that are multiples, at most ``full``."""
    rows, length, source = shape
    up = [None if n is None else min(full, -(-n // multiple) * multiple) for n in (length, source)]
    return rows, up[0] or full, up[1]


def _straining(probe: Probe, rows: int, length: int) -> tuple[dict[str, Batch], dict[str, Batch]]:
    """Inputs that strain a model, by their names: without padding, and with it."""
    subject = probe.subject
    base = probe.batch(rows, length, "straining")
    if subject.vision:
        pixels = base["pixel_values"]
        return {
            "a black image": base.with_(pixel_values=torch.zeros_like(pixels)),
            "bright pixels": base.with_(pixel_values=pixels * 10),
        }, {}
    role = "decoder_input_ids" if subject.decodes else "input_ids"
    ids = base[role]
    repeated = ids[:, :1].expand_as(ids).clone()
    last = ids.clone()
    size = subject.target_vocab_size if subject.decodes else subject.vocab_size
    last[:, : max(1, length // 2)] = size - 1
    if subject.task.task_type == "classification":
        repeated[:, -1] = last[:, -1] = ids[0, -1]
    batches = {
        "one token repeated": base.with_(**{role: repeated}),
        "the largest id": base.with_(**{role: last}),
    }
    if subject.task.task_type != "classification":
        for special in dict.fromkeys([*subject.text_ids[:4], 0]):
            marked = ids.clone()
            marked[:, length // 2] = special
            batches[f"id {special}"] = base.with_(**{role: marked})
    return batches, padded_halves(probe, base)


def padded_halves(probe: Probe, base: Batch) -> dict[str, Batch]:
    """Half of each text padded, right and left, where the model takes an attention mask."""
    subject = probe.subject
    ids = base["input_ids"]
    if not subject.signature.takes("attention_mask") or ids.shape[1] < 2:
        return {}
    filler = 0 if subject.pad_id is None else subject.pad_id
    half = ids.shape[1] // 2
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[:, -half:], left[:, :half] = 0, 0
    padded = {}
    for name, mask in (("right padding", right), (_IN_FRONT, left)):
        if name == "right padding" and subject.task.task_type == "classification":
            continue
        inputs = {"input_ids": ids.masked_fill(mask == 0, filler), "attention_mask": mask}
        padded[name] = base.with_(**inputs)
    return padded


def _judged(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits of real positions: what stands under padding promises nothing."""
    mask = batch.inputs.get("attention_mask")
    if mask is None or logits.dim() != 3 or logits.shape[1] != mask.shape[1]:
        return logits
    return logits[mask.bool()]


def _first_bad(probe: Probe, batch: Batch) -> str | None:
    """The first module that gives NaN or infinity. With hooks torch's layers run unfused, so that
    there is none where only the fused ones do: for rows without anything to attend to."""
    return first_not_finite(trace(probe, batch))


def first_larger(probe: Probe, ceiling: float) -> str | None:
    """The first module whose output exceeds ``ceiling`` in magnitude from inputs that do not."""
    batch = probe.batch(*probe.subject.sizes, "samples")
    for call in trace(probe, batch):
        if _largest(call.outputs) > ceiling >= _largest(call.inputs):
            return call.name
    return None


def first_blind(probe: Probe, what: str) -> str | None:
    """The first module whose output is the same for every row, position or output (the last word
    of ``what``) although its input is not, with every parameter moved at random."""
    rows, length = probe.subject.sizes
    axis_of = {"input": (rows, 0), "position": (length, 1)}.get(what.rpartition(" ")[2])
    with probe.noised():
        calls = trace(probe, probe.batch(rows, length, "samples"))
    for call in calls:
        if (
            call.outputs
            and _blind(call.outputs[0], axis_of)
            and not any(_blind(t, axis_of) for t in call.inputs)
        ):
            return call.name
    return None


def dead_input(probe: Probe) -> str | None:
    """The first module, where no module at all tells the rows of a random batch apart."""
    rows, length = probe.subject.sizes
    calls = trace(probe, probe.batch(rows, length, "samples"))
    seen = [(call.name, t) for call in calls for t in call.outputs if rows in t.shape]
    blind = all(_blind(t, (rows, 0)) for _, t in seen)
    return seen[0][0] if seen and blind else None


def _blind(tensor: torch.Tensor, axis_of: tuple[int, int] | None) -> bool:
    """Whether a tensor is constant along the axis of that size, or along its last axis."""
    if axis_of is None:
        axis = tensor.dim() - 1
    else:
        axis = next((i for i, n in enumerate(tensor.shape) if n == axis_of[0]), -1)
    if axis < 0 or tensor.shape[axis] < 2:
        return False
    scale = float(tensor.abs().max())
    return float((tensor - tensor.narrow(axis, 0, 1)).abs().max()) <= 1e-6 * scale


def _largest(tensors: list[torch.Tensor]) -> float:
    finite = [t[t.isfinite()] for t in tensors]
    return max((float(t.abs().max()) for t in finite if t.numel()), default=0.0)
