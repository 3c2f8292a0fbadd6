"""What each output depends on along a text: two oracles, exact where rounding allows.

The swap oracle replaces tokens and looks at what must not move; it sees discrete paths (routing,
top-k). The gradient oracle reads d(output)/d(token vector); it sees every token at once and needs
no luck in the choice of a token. Shapes never change within a comparison.

Axes: B batch, T positions, V outputs, K experiments (one row of a batch each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.compare import (
    MANY,
    axis_of,
    difference,
    finite,
    joined,
    over,
    projection,
    sequence,
    some_rows,
    text_logits,
    trace,
)
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.trace import first_to_differ
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import with_special

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


@dataclass(frozen=True)
class Plan:
    """A way of replacing tokens of one text of ``length`` tokens: one by one at ``starts``, and
    all from each of ``suffixes`` on.

    ``name`` is ``every`` (token of a short text), ``masked`` (with an explicit mask that keeps
    everything), ``special`` (in a text that holds padding, end and other special ids; a large
    model is given the mask there too), ``noised`` (with every parameter moved at random), or
    ``long`` (some tokens of a long text, behind a short source where there is one).
    """

    name: str
    length: int
    starts: tuple[int, ...]
    suffixes: tuple[int, ...]


@dataclass(frozen=True)
class Swaps:
    """Tokens replaced in copies of one text.

    ``effect[k, s]`` is how far the output at position ``s`` moved in experiment ``k`` (largest
    over V); ``start[k]`` the first replaced token and ``suffix[k]`` whether all later ones were
    replaced too; ``reference`` the logits before (1, T, V).
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


def swap_plans(probe: Probe) -> list[Plan]:
    """The ways in which tokens are replaced.

    What a mask does to the triangle shows in a text that is briefer still.
    """
    subject = probe.subject
    short, less = subject.sizes[1], brief(probe)
    special = bool(subject.text_ids) and short > 4
    plans = [_every("every", short)]
    if subject.signature.takes("attention_mask") and (subject.small or not special):
        plans.append(_every("masked", less))
    if special:
        room = less > 2 * len(subject.text_ids) + 1
        plans.append(_every("special", less if room else short))
    plans.append(_every("noised", short))
    affordable = min(1024, max(32, int(4e9 / subject.parameters)))
    longest = min(subject.max_length or 64, affordable)
    if longest > short:
        middle = longest // 2
        early = 1 if subject.small else middle
        late = {middle, longest - 2} if subject.small else {middle}
        plans.append(Plan("long", longest, (early,), tuple(sorted(late))))
    return plans


def _every(name: str, length: int) -> Plan:
    """Every token but the first of a short text, and all from the middle on; with moved
    parameters, which show the most, all from the first and from the last quarter on too."""
    suffixes = {1, length // 2, 3 * length // 4} if name == "noised" else {length // 2}
    return Plan(name, length, tuple(range(1, length)), tuple(sorted(suffixes)))


def brief(probe: Probe) -> int:
    """The length of a text where length is not what is asked about: less than that of others,
    where the model has another one."""
    short, other = probe.subject.sizes[1], probe.subject.other_sizes[1]
    return other if 4 < other < short else short


def position_swaps(probe: Probe, plan: Plan) -> Swaps:
    """Replace single tokens, and whole suffixes, of one text; all experiments in one batch."""
    length = plan.length
    source = max(1, length // 2) if plan.name == "long" else None
    experiments = [(k, False) for k in plan.starts] + [(k, True) for k in plan.suffixes]
    before = copies(probe, length, len(experiments), source)
    role = sequence(probe)
    if plan.name == "special":
        before = with_special(probe.subject, before)
    if plan.name == "masked" or (plan.name == "special" and _takes_mask_too(probe)):
        before = before.with_(attention_mask=torch.ones_like(before["input_ids"]))
    ids, other = before[role], _different(probe, before[role][:1], length)
    changed = ids.clone()
    for row, (k, suffix) in enumerate(experiments):
        stop = length if suffix else k + 1
        changed[row, k:stop] = other[0, k:stop]
    after = before.with_(**{role: changed})
    with probe.under(plan.name):
        together = plan.name != "every"
        reference, effect = _effects(probe, before, after, length, together=together)
    start, suffix_flags = [k for k, _ in experiments], [s for _, s in experiments]
    return Swaps(plan, effect.cpu(), start, suffix_flags, reference, before, after)


def _effects(
    probe: Probe, before: Batch, after: Batch, length: int, *, together: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits (1, T, V) of the text as it is, and how far each experiment moves them (K, T).

    ``together``, the text is the first row of each batch of experiments, which takes half as
    long: what mixes rows and positions alike would move both, and shows where it is not.
    """
    subject = probe.subject
    most = min(MANY, subject.most_rows) if subject.small else subject.full_batch
    if not together or most == 1:
        reference = text_logits(probe, before, length)
        return reference[:1], difference(reference, text_logits(probe, after, length)).amax(-1)
    effects = []
    for start in range(0, after.rows, most - 1):
        experiments = some_rows(after, start, start + most - 1)
        logits = text_logits(probe, joined(some_rows(before, 0, 1), experiments), length)
        reference = logits[:1]
        effects.append(difference(logits[1:], reference).amax(-1))
    return reference.clone(), torch.cat(effects)


def single_swap(probe: Probe, swaps: Swaps, row: int) -> torch.Tensor:
    """The effect (T,) of one experiment when its text is alone in the batch."""
    before, after = (some_rows(batch, row, row + 1) for batch in (swaps.before, swaps.after))
    length = swaps.reference.shape[1]
    with probe.under(swaps.condition):
        old, new = (text_logits(probe, batch, length) for batch in (before, after))
    return difference(old, new)[0].amax(-1).cpu()


def position_gradients(probe: Probe, length: int, condition: str) -> torch.Tensor | None:
    """The dependency matrix (T, T): gradient of the output at k (row) at token s (column).

    One backward over copies of a text: copy k contributes its output at position k. There is one
    copy more than needed, so that B and T differ. ``None`` where no lookup by the ids is seen.
    What a backward raises comes through. ``condition`` may be ``training``: then of all positions
    but the last (T - 1, T), behind which no token is.
    """
    role = sequence(probe)
    batch = copies(probe, length, length - 1 if condition == "training" else length + 1)
    with (
        probe.under(condition),
        probe.running("position_gradients", grad=True) as subject,
    ):
        with TokenLookup(batch[role]) as lookup:
            logits = subject(batch).logits
        return diagonal_gradient(probe, logits, lookup) if lookup else None


def diagonal_gradient(probe: Probe, logits: torch.Tensor, lookup: TokenLookup) -> torch.Tensor:
    """The matrix from the logits of copies of a text: see ``position_gradients``."""
    logits = logits.flatten(2)
    weight = projection(probe, logits.shape[-1]).to(logits)
    diagonal = logits.diagonal(dim1=0, dim2=1).T  # (T, V): copy k at position k
    loss = finite(diagonal).mul(weight).sum()
    torch.autograd.backward(loss, inputs=lookup.leaves)
    return lookup.gradient()[: len(diagonal)]


def single_gradient(probe: Probe, length: int, position: int, condition: str) -> torch.Tensor:
    """One row (T,) of ``position_gradients`` from a batch of one text."""
    batch = copies(probe, length, 1)
    with (
        probe.under(condition),
        probe.running("position_gradients", grad=True) as subject,
    ):
        with TokenLookup(batch[sequence(probe)]) as lookup:
            logits = subject(batch).logits.flatten(2)
        weight = projection(probe, logits.shape[-1]).to(logits)
        loss = finite(logits[0, position]).mul(weight).sum()
        torch.autograd.backward(loss, inputs=lookup.leaves)
        matrix: torch.Tensor = lookup.gradient()
    return matrix[0]


def locate_position(probe: Probe, swaps: Swaps, row: int) -> tuple[str | None, tuple[int, ...]]:
    """The first module in which positions before the replaced token move, and how far ahead of
    the token these positions stand in its output (layers after it would look further)."""
    start, length = swaps.start[row], swaps.reference.shape[1]
    ahead: set[int] = set()

    def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
        axis = axis_of(a, length)
        if axis is None:
            return False
        places = [s for s in range(start) if over(a.select(axis, s), b.select(axis, s))]
        ahead.clear()
        ahead.update(start - s for s in places)
        return bool(places)

    with probe.under(swaps.condition):
        before, after = (
            trace(probe, some_rows(b, row, row + 1)) for b in (swaps.before, swaps.after)
        )
    where = first_to_differ(before, after, moved)
    if where is None:
        return None, ()
    outputs = next((b, a) for b, a in zip(before, after, strict=True) if b.name == where)
    for old, new in zip(outputs[0].outputs, outputs[1].outputs, strict=True):
        if moved(old, new):
            break
    return where, tuple(sorted(ahead))


def _takes_mask_too(probe: Probe) -> bool:
    """Whether a text with special ids is given the mask too: one pass for two in large models."""
    return not probe.subject.small and probe.subject.signature.takes("attention_mask")


def copies(probe: Probe, length: int, rows: int, source: int | None = None) -> Batch:
    """``rows`` copies of one text."""
    one = probe.once(_text, length, source).inputs
    return Batch({role: t.expand(rows, *t.shape[1:]).clone() for role, t in one.items()})


def _text(probe: Probe, length: int, source: int | None) -> Batch:
    return probe.batch(1, length, "text", length, source=source)


def _different(probe: Probe, ids: torch.Tensor, length: int) -> torch.Tensor:
    """Ids that differ from ``ids`` at every position."""
    other = probe.batch(1, length, "swaps", length)[sequence(probe)]
    for position in (other == ids)[0].nonzero().flatten().tolist():
        pool = probe.batch(1, max(8, ids.shape[1]), "pool")["input_ids"].flatten()
        different = pool[pool != ids[0, position]]
        if len(different):
            other[0, position] = different[0]
    return other
