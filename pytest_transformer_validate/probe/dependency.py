"""What each output depends on: two oracles, exact where rounding allows.

The swap oracle replaces tokens (or rows) and looks at what must not move; it sees discrete paths
(routing, top-k). The gradient oracle reads d(output)/d(token vector); it sees every token at once
and needs no luck in the choice of a token. Shapes never change within a comparison.

Axes: B batch, T positions, V outputs, K experiments (one row of a batch each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from pytest_transformer_validate.errors import Blocked
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.trace import Call, first_to_differ, traced
from pytest_transformer_validate.subject.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.probe.probe import Probe

    Moved = Callable[[torch.Tensor, torch.Tensor], bool]


@dataclass(frozen=True)
class Plan:
    """A way of replacing tokens of one text of ``length`` tokens, one by one, at ``starts``.

    ``name`` is ``every`` (token of a short text), ``masked`` (with an explicit mask that keeps
    everything), ``special`` (in a text that holds padding, end and other special ids),
    ``noised`` (with every parameter moved at random), or ``long`` (some tokens of a long text,
    behind a short source where there is one).
    """

    name: str
    length: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Swaps:
    """Tokens replaced in copies of one text.

    ``effect[k, s]`` is how far the output at position ``s`` moved in experiment ``k`` (largest
    over V); ``start[k]`` the first replaced token and ``suffix[k]`` whether all later ones were
    replaced too; ``reference`` the logits before (K, T, V).
    """

    plan: Plan
    effect: torch.Tensor
    start: list[int]
    suffix: list[bool]
    reference: torch.Tensor
    before: Batch
    after: Batch

    @property
    def condition(self) -> str:
        """What the probe was under."""
        return self.plan.name


@dataclass(frozen=True)
class RowSwaps:
    """All rows but one replaced: ``effect[i]`` is how far the kept row ``kept[i]`` moved."""

    condition: str
    effect: list[float]
    kept: list[int]
    own_effect: float
    reference: torch.Tensor
    before: Batch
    after: list[Batch]


def position_swaps(probe: Probe, plan: Plan) -> Swaps:
    """Replace single tokens, and whole suffixes, of one text; all experiments in one batch.

    Suffixes start at about five of the plan's tokens.
    """
    length, starts, suffixes = plan.length, plan.starts, _suffixes(plan.starts)
    source = max(1, length // 2) if plan.name == "long" else None
    before = _copies(probe, length, len(starts) + len(suffixes), source)
    role = _sequence(probe)
    if plan.name == "special":
        before = probe.subject.with_special(before)
    if plan.name == "masked":
        before = before.with_(attention_mask=torch.ones_like(before["input_ids"]))
    ids, other = before[role], _different(probe, before[role][:1], length)
    changed = ids.clone()
    experiments = [(k, False) for k in starts] + [(k, True) for k in suffixes]
    for row, (k, suffix) in enumerate(experiments):
        stop = length if suffix else k + 1
        changed[row, k:stop] = other[0, k:stop]
    after = before.with_(**{role: changed})
    with probe.under(plan.name):
        reference = finite_logits(probe, before, length)
        effect = _difference(reference, finite_logits(probe, after, length)).amax(-1)
    start, suffix_flags = [k for k, _ in experiments], [s for _, s in experiments]
    return Swaps(plan, effect.cpu(), start, suffix_flags, reference, before, after)


def single_swap(probe: Probe, swaps: Swaps, row: int) -> torch.Tensor:
    """The effect (T,) of one experiment when its text is alone in the batch."""
    before, after = (_rows(batch, row, row + 1) for batch in (swaps.before, swaps.after))
    length = swaps.reference.shape[1]
    with probe.under(swaps.condition):
        old, new = (finite_logits(probe, batch, length) for batch in (before, after))
    return _difference(old, new)[0].amax(-1).cpu()


def repeats(probe: Probe, swaps: Swaps | RowSwaps) -> float:
    """How far the logits move when the very same batch is run again, with another random state."""
    logits = []
    for time in ("once", "again"):
        with probe.under(swaps.condition), probe.running(time) as subject:
            logits.append(subject(_rows(swaps.before, 0, subject.full_batch)).logits)
    return float(_difference(*logits).max())


def position_gradients(probe: Probe, length: int, condition: str) -> torch.Tensor | None:
    """The dependency matrix (T, T): gradient of the output at k (row) at token s (column).

    One backward over copies of a text: copy k contributes its output at position k. There is one
    copy more than needed, so that B and T differ. ``None`` where no lookup by the ids is seen.
    What a backward raises comes through. ``condition`` may be ``training``.
    """
    role = _sequence(probe)
    batch = _copies(probe, length, length + 1)
    with (
        probe.under(condition),
        probe.running("position_gradients", grad=True) as subject,
    ):
        with TokenLookup(batch[role]) as lookup:
            logits = subject(batch).logits
        if not lookup:
            return None
        logits = logits.flatten(2)
        weight = _projection(probe, logits.shape[-1]).to(logits)
        diagonal = logits.diagonal(dim1=0, dim2=1).T  # (T, V): copy k at position k
        torch.autograd.backward(_finite(diagonal).mul(weight).sum(), inputs=lookup.leaves)
        matrix: torch.Tensor = lookup.gradient()[:length]
    return matrix


def single_gradient(probe: Probe, length: int, position: int, condition: str) -> torch.Tensor:
    """One row (T,) of ``position_gradients`` from a batch of one text."""
    batch = _copies(probe, length, 1)
    with (
        probe.under(condition),
        probe.running("position_gradients", grad=True) as subject,
    ):
        with TokenLookup(batch[_sequence(probe)]) as lookup:
            logits = subject(batch).logits.flatten(2)
        weight = _projection(probe, logits.shape[-1]).to(logits)
        loss = _finite(logits[0, position]).mul(weight).sum()
        torch.autograd.backward(loss, inputs=lookup.leaves)
        matrix: torch.Tensor = lookup.gradient()
    return matrix[0]


def row_swaps(probe: Probe, plan: str) -> RowSwaps:
    """Replace every row but the first, then every row but the last.

    ``plan`` is ``every``; ``padded``, which gives the replaced rows another padding too (both
    times some, so that the same kernels run), by an attention mask; ``noised``, with every
    parameter moved at random; ``full``, at the full batch size; or ``rolled``, which keeps all
    rows and gives each the next one's place.
    """
    rows, length = probe.subject.sizes
    if plan == "full":
        rows = max(rows, probe.subject.full_batch)
    before = probe.batch(rows, length, "rows")
    if plan == "rolled":
        return _rolled(probe, before)
    fresh = probe.batch(rows, length, "other rows")
    if plan == "padded":
        before = _pad_between(probe, before, 2)
        fresh = _pad_all(probe, fresh, 3)
    kept = [0, rows - 1]
    after = [_keep_row(before, fresh, keep) for keep in kept]
    with probe.under(plan):
        reference = finite_logits(probe, before)
        moved = [
            _difference(reference, finite_logits(probe, swapped)).flatten(1).amax(1)
            for swapped in after
        ]
    effect = [float(m[keep]) for m, keep in zip(moved, kept, strict=True)]
    own = max(float(m.max()) for m in moved)
    return RowSwaps(plan, effect, kept, own, reference, before, after)


def _keep_row(before: Batch, fresh: Batch, keep: int) -> Batch:
    """The fresh rows, but for one."""
    inputs = {role: tensor.clone() for role, tensor in fresh.inputs.items()}
    for role, tensor in before.inputs.items():
        inputs[role][keep] = tensor[keep]
    return before.with_(**inputs)


def _rolled(probe: Probe, before: Batch) -> RowSwaps:
    after = before.with_(**{role: t.roll(1, 0) for role, t in before.inputs.items()})
    reference = finite_logits(probe, before)
    moved = _difference(reference, finite_logits(probe, after).roll(-1, 0)).flatten(1).amax(1)
    worst = int(moved.argmax())
    own = float(_difference(reference, reference.roll(1, 0)).max())
    return RowSwaps("rolled", [float(moved[worst])], [worst], own, reference, before, [after])


def row_gradients(probe: Probe, rows: int, length: int) -> torch.Tensor | None:
    """(B, B): gradient of a projection of row i's output (row) at row j's input (column)."""
    batch = probe.batch(rows, length, "rows")
    with probe.running("row_gradients", grad=True) as subject:
        if subject.vision:
            pixels = batch["pixel_values"].requires_grad_()
            logits = subject(batch).logits
            return _row_matrix(probe, logits, [pixels])
        role = _sequence(probe)
        with TokenLookup(batch[role]) as lookup:
            logits = subject(batch).logits
        return _row_matrix(probe, logits, lookup.leaves, lookup)


def locate_position(probe: Probe, swaps: Swaps, row: int) -> tuple[str | None, tuple[int, ...]]:
    """The first module in which positions before the replaced token move, and how far ahead of
    the token these positions stand in its output (layers after it would look further)."""
    start, length = swaps.start[row], swaps.reference.shape[1]
    ahead: set[int] = set()

    def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
        axis = _axis(a, length)
        if axis is None:
            return False
        places = [s for s in range(start) if _over(a.select(axis, s), b.select(axis, s))]
        ahead.clear()
        ahead.update(start - s for s in places)
        return bool(places)

    with probe.under(swaps.condition):
        before, after = (
            _trace(probe, _rows(b, row, row + 1)) for b in (swaps.before, swaps.after)
        )
    where = first_to_differ(before, after, moved)
    if where is None:
        return None, ()
    outputs = next((b, a) for b, a in zip(before, after, strict=True) if b.name == where)
    for old, new in zip(outputs[0].outputs, outputs[1].outputs, strict=True):
        if moved(old, new):
            break
    return where, tuple(sorted(ahead))


def locate_row(probe: Probe, swaps: RowSwaps, index: int) -> str | None:
    """The first module in which the kept row moves."""
    rows, keep = swaps.before.rows, swaps.kept[index]
    place = (keep + 1) % rows if swaps.condition == "rolled" else keep
    with probe.under(swaps.condition):
        before, after = _trace(probe, swaps.before), _trace(probe, swaps.after[index])
    return first_to_differ(before, after, _row_moved(rows, keep, place))


def locate_row_gradient(probe: Probe, row: int, source: int) -> str | None:
    """The first module in which a row moves when the ``source`` row alone is replaced."""
    rows, length = probe.subject.sizes
    before = probe.batch(rows, length, "rows")
    fresh = probe.batch(rows, length, "other rows")
    after = before.with_(
        **{
            role: torch.cat([t[:source], fresh[role][source : source + 1], t[source + 1 :]])
            for role, t in before.inputs.items()
        }
    )
    return first_to_differ(_trace(probe, before), _trace(probe, after), _row_moved(rows, row, row))


def _pad_between(probe: Probe, batch: Batch, by: int) -> Batch:
    """Pad all rows but the first and the last by ``by`` tokens on the right."""
    keep = torch.ones_like(batch["input_ids"])
    keep[1:-1, -by:] = 0
    return _masked(probe, batch, keep)


def _pad_all(probe: Probe, batch: Batch, by: int) -> Batch:
    keep = torch.ones_like(batch["input_ids"])
    keep[:, -by:] = 0
    return _masked(probe, batch, keep)


def _masked(probe: Probe, batch: Batch, keep: torch.Tensor) -> Batch:
    """The batch with what ``keep`` leaves out padded; a text still ends with its end id."""
    subject, ids = probe.subject, batch["input_ids"]
    filler = ids[0, 0] if subject.pad_id is None else subject.pad_id
    padded = torch.where(keep == 0, filler, ids)
    if subject.ends:
        padded.scatter_(1, keep.sum(1, keepdim=True) - 1, ids[:, -1:])
    return batch.with_(input_ids=padded, attention_mask=keep)


def _row_moved(rows: int, keep: int, place: int) -> Moved:
    """Whether row ``keep`` of one tensor is another one than row ``place`` of the other."""

    def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
        axis = _batch_axis(a, rows)
        if axis is None:
            return False
        size = a.shape[axis] // rows
        return _over(a.narrow(axis, keep * size, size), b.narrow(axis, place * size, size))

    return moved


def finite_logits(probe: Probe, batch: Batch, length: int | None = None) -> torch.Tensor:
    """The logits of a forward, in batches that the model takes; Blocked where they hold NaN, or
    are not (B, T, V) when ``length`` is given."""
    most = probe.subject.full_batch
    parts = [
        probe.forward(_rows(batch, start, start + most)).logits
        for start in range(0, batch.rows, most)
    ]
    logits = torch.cat(parts) if len(parts) > 1 else parts[0]
    if bool(logits.isnan().any()):
        raise Blocked("logits hold NaN: see output_stability")
    if length is not None and logits.dim() > 3:
        logits = logits.flatten(2)
    if length is not None and (logits.dim() != 3 or logits.shape[1] != length):
        shape = tuple(logits.shape)
        raise Blocked(f"logits are {shape} for {length} tokens: see shape_robustness")
    return logits


def _trace(probe: Probe, batch: Batch) -> list[Call]:
    with probe.running("forward") as subject, traced(subject.model) as calls:
        subject(batch)
    return calls


def _copies(probe: Probe, length: int, rows: int, source: int | None = None) -> Batch:
    """``rows`` copies of one text."""
    one = probe.batch(1, length, "text", length, source=source).inputs
    return Batch({role: t.expand(rows, *t.shape[1:]).clone() for role, t in one.items()})


def _sequence(probe: Probe) -> str:
    """The role of the sequence that the output follows."""
    return "decoder_input_ids" if probe.subject.decodes else "input_ids"


def _suffixes(starts: tuple[int, ...]) -> list[int]:
    last = len(starts) - 1
    return sorted({starts[i] for i in (0, last // 4, last // 2, 3 * last // 4, last)})


def _different(probe: Probe, ids: torch.Tensor, length: int) -> torch.Tensor:
    """Ids that differ from ``ids`` at every position."""
    other = probe.batch(1, length, "swaps", length)[_sequence(probe)]
    pool = probe.batch(1, max(8, ids.shape[1]), "pool")["input_ids"].flatten()
    for position in (other == ids)[0].nonzero().flatten().tolist():
        different = pool[pool != ids[0, position]]
        if len(different):
            other[0, position] = different[0]
    return other


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    return batch.with_(**{role: t[start:stop] for role, t in batch.inputs.items()})


def _row_matrix(
    probe: Probe,
    logits: torch.Tensor,
    leaves: list[torch.Tensor],
    lookup: TokenLookup | None = None,
) -> torch.Tensor | None:
    if not leaves:
        return None
    weight = _projection(probe, logits.shape[-1]).to(logits)
    matrix = []
    for row in range(logits.shape[0]):
        for leaf in leaves:
            leaf.grad = None
        loss = _finite(logits[row]).mul(weight).sum()
        torch.autograd.backward(loss, retain_graph=True, inputs=leaves)
        if lookup is not None:
            matrix.append(lookup.gradient().amax(1))
        else:
            grad = cast("torch.Tensor", leaves[0].grad)
            matrix.append(grad.abs().flatten(1).amax(1).to("cpu", torch.float64))
    return torch.stack(matrix)


def _projection(probe: Probe, width: int) -> torch.Tensor:
    """A fixed random direction (V,): a plain sum has no gradient behind a LayerNorm or softmax."""
    generator = torch.Generator().manual_seed(probe.seed_for("projection"))
    return torch.randn(width, generator=generator)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(tensor.isfinite(), tensor, 0)


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a - b|, 0 where both are the same infinity."""
    return torch.where(a == b, torch.zeros_like(a), (a - b).abs())


def _over(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ by more than 16 u of the first (same shape, see tolerance)."""
    if not a.numel():
        return False
    finite = a[a.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    both_nan = a.isnan() & b.isnan()
    difference = torch.where(both_nan, 0, _difference(a, b))
    return not float(difference.max()) <= 16 * torch.finfo(a.dtype).eps * scale


def _axis(tensor: torch.Tensor, length: int) -> int | None:
    """The axis of positions: the first one of that length."""
    return next((i for i, size in enumerate(tensor.shape) if size == length), None)


def _batch_axis(tensor: torch.Tensor, rows: int) -> int | None:
    """The axis of rows: the first of that size, else a leading one that holds rows x something."""
    exact = next((i for i, size in enumerate(tensor.shape) if size == rows), None)
    if exact is not None:
        return exact
    return 0 if tensor.dim() > 1 and tensor.shape[0] > 0 and tensor.shape[0] % rows == 0 else None
