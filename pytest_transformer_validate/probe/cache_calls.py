"""What modules do with a piece of a text behind a cache, and what becomes of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.cache_protocols import tensors_of
from pytest_transformer_validate.probe.compare import axis_of, difference, sequence
from pytest_transformer_validate.probe.decoding import Plan, Protocol, feed, kept, text_of

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.trace import Call
    from pytest_transformer_validate.subject.batch import Batch

KEPT, MOVED, STATE = "kept", "moved", "state"


def becomes(tensor: torch.Tensor, new: list[torch.Tensor]) -> str:
    """What has become of a tensor of a cache behind another token: it is kept (as it was, or it
    grew), a window that moved by one, or a state, most of whose numbers are others."""
    alike = [other for other in new if other.shape == tensor.shape]
    if not alike or any(float((tensor != o).float().mean()) <= 0.5 for o in alike):
        return KEPT
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 2]
    moved = any(
        torch.equal(tensor.narrow(a, 1, tensor.shape[a] - 1), o.narrow(a, 0, o.shape[a] - 1))
        for o in alike
        for a in axes
    )
    return MOVED if moved else STATE


def calls_of_piece(
    probe: Probe, protocol: Protocol, plan: Plan, text: Batch, index: int
) -> list[Call]:
    """The calls of every module for the piece ``index`` of a text."""
    calls: Any = []
    with probe.running("decoded") as subject, kept(subject.model):
        pieces = feed(probe, subject, protocol, plan, text, watched=index)
        for _ in range(index + 1):
            calls = next(pieces)
    return list(calls)


def takes_last(probe: Probe, protocol: Protocol) -> bool:
    """Whether a model that is given a text and the cache of all of it but one token takes that
    token itself: it answers with one position, and the cache grows by one."""
    rows, length = probe.subject.sizes
    if protocol.field is None or length < 3:
        return False
    plan = Plan(rows, (length - 1, 1), whole=True)
    caches: list[Any] = []
    try:
        with probe.running("decoded") as subject, kept(subject.model):
            text = text_of(probe, plan, "decoded")
            *_, last = feed(probe, subject, protocol, plan, text, caches=caches)
    except Exception:  # noqa: BLE001 - it does not run: that is no way to call it
        return False
    old, new = ([t.shape for t in tensors_of(cache)] for cache in caches)
    grown = {sum(n) - sum(o) for o, n in zip(old, new, strict=False) if len(o) == len(n)}
    return last.dim() > 2 and last.shape[1] == 1 and 1 in grown and grown <= {0, 1}


def sees_the_first_alone(probe: Probe, protocol: Protocol, plan: Plan, position: int) -> bool:
    """Whether the logits of the piece that holds ``position`` stay when every token before it,
    the very first one apart, is another one."""
    text, other = (text_of(probe, plan, word) for word in ("decoded", "before"))
    start, index = plan.piece_at(position)
    role = sequence(probe)
    ids, others = text[role], other[role]
    mixed = torch.cat([ids[:, :1], others[:, 1:start], ids[:, start:]], 1)
    found = []
    with probe.under(plan.condition):
        for given in (text, text.with_(**{role: mixed})):
            with probe.running("decoded") as subject, kept(subject.model):
                pieces = feed(probe, subject, protocol, plan, given)
                found.append([next(pieces) for _ in range(index + 1)][-1])
    allowed = 64 * torch.finfo(found[0].dtype).eps * float(found[0].abs().max())
    return float(difference(*found).nan_to_num(float("inf")).max()) <= allowed


def first_other(
    full: list[Call],
    calls: list[Call],
    length: int,
    start: int,
    size: int,
    rows: torch.Tensor | None = None,
) -> str | None:
    """The first of ``calls`` whose outputs differ from those at once and whose inputs do not."""
    at_once: dict[str, list[Call]] = {}
    for call in full:
        at_once.setdefault(call.name, []).append(call)
    keep = None if rows is None else rows[:, start : start + size]
    for call in calls:
        others = at_once.get(call.name)
        if not others:
            continue
        other = others.pop(0)
        if differ(other.outputs, call.outputs, length, start, size, keep) and not differ(
            other.inputs, call.inputs, length, start, size, keep
        ):
            return call.name
    return None


def differ(
    full: list[torch.Tensor],
    piece: list[torch.Tensor],
    length: int,
    start: int,
    size: int,
    keep: torch.Tensor | None = None,
) -> bool:
    """Whether the numbers of a piece differ, beyond rounding, from those of its places at once."""
    for at_once, cached in zip(full, piece, strict=False):
        axis = axis_of(at_once, length)
        if axis is None or axis >= cached.dim() or cached.shape[axis] != size:
            continue
        a, b = at_once.narrow(axis, start, size), cached
        if a.shape != b.shape:
            continue
        if keep is not None and axis == 1 and a.shape[:2] == keep.shape:
            a, b = a[keep], b[keep]
        scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
        moved = difference(a, b).nan_to_num(0.0)
        if moved.numel() and float(moved.max()) > 128 * torch.finfo(a.dtype).eps * scale:
            return True
    return False
