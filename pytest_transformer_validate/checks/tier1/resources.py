"""What the model costs: memory, work, time."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.checks.registry import Budget, check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.resources import Footprint, Speed, ratios, times

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.growth import Growth
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.resources import Counts, Size

MODES = ("eval", "training")
WORDS = {
    "operations": "torch operations",
    "products": "multiplications between activations",
    "multiplications": "multiplications",
}


@check(tier=1, budgets=[Budget("per_token"), Budget("parameter_bytes")])
def memory_footprint(probe: Probe, *, slack: float = 1.1) -> Footprint:
    """Memory grows no faster than the batch, and calls leave nothing behind.

    Counted from what autograd keeps for a backward, each storage once and parameters not at all:
    twice the rows may need twice the bytes, times ``slack``, and no tensor may have two axes that
    grow with the batch. Bytes that stay alive after a call are followed over calls of one shape,
    in eval mode and in training mode. How memory grows with the length is information.
    """
    base = probe.resources.base()
    measured = _footprint(probe, base, slack)
    _judge_batch(probe, base, measured)
    notes = [_judge_growth(probe.growths.over_calls(mode), measured) for mode in MODES]
    if base.unseen:
        notes.append(f"what a backward keeps cannot be counted here: {base.unseen}")
    return Footprint(**{**vars(measured), "notes": tuple(note for note in notes if note)})


@check(tier=1, budgets=[Budget("median_ms", timed=True)])
def inference_speed(probe: Probe, *, slack: float = 1.1) -> Speed:
    """Work grows no faster than the batch, and no faster than the square of the length.

    Times are a report, because a clock on a shared machine tells nothing about the model. Judged
    is what can be counted: operations and multiplications may double with the batch, and become
    four times as many with twice the length, times ``slack``; what exceeds that is counted once
    more at larger sizes, where chance and constant parts weigh less.
    """
    base = probe.resources.base()
    sizes = probe.resources.sizes
    notes: list[str] = []
    grown: dict[str, Any] = {}
    for axis, name, power in ((0, "wide", 1), (1, "long", 2)):
        if name in sizes:
            grown |= _judge_work(probe, base, axis, 2**power * slack, notes)
    return _speed(probe, base, grown, notes)


def _footprint(probe: Probe, base: Counts, slack: float) -> Footprint:
    model, resources = probe.subject.model, probe.resources
    sizes = resources.sizes
    counted = {name: resources.counted(*size) for name, size in sizes.items()}
    grows = None
    if "long" in counted:
        grows = "quadratic" if resources.squares("base", "long", 1) else "linear"
    wide = "wide" in counted
    return Footprint(
        value=ratios(base, counted["wide"]).bytes if wide else None,
        limit=Limit(value=2 * slack, rule="twice for twice the rows") if wide else None,
        parameter_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
        activations={"x".join(map(str, sizes[n])): c.bytes for n, c in counted.items()},
        by_length={size[1]: resources.kept(*size) for size in resources.lengths()},
        per_token=None if probe.subject.vision else base.bytes / (base.size[0] * base.size[1]),
        length_growth=grows,
        cache_per_token=resources.cache_bytes(),
    )


def _judge_batch(probe: Probe, base: Counts, measured: Footprint) -> None:
    resources, limit = probe.resources, measured.limit
    if limit is None:
        return
    wide = resources.counted(*resources.sizes["wide"])
    squares = resources.squares("base", "wide", 0)
    if squares:
        worst = max(squares, key=lambda each: each.size)
        where = resources.place_of(worst, "wide")
        raise CheckFailed(
            "memory must grow with the batch, not with its square\n"
            f"{_sizes(base, wide)}: a tensor of {worst.shape} is made, two axes of which grow "
            f"with the batch ({len(squares)} such)\n"
            f"first module to make one: {where or 'none stands out'}\n"
            "likely: rows are flattened into one long sequence that attends to itself, masked "
            "block by block; or (B, 1) and (B,) were broadcast to (B, B)",
            measured,
            where=where,
        )
    if ratios(base, wide).bytes <= limit.value:
        return
    again = _again(probe, 0, (4, 8))
    if again is not None and ratios(*again).bytes > limit.value:
        small, large = again
        raise CheckFailed(
            "memory must grow with the batch, not faster\n"
            f"{_sizes(small, large)}: {small.bytes} and {large.bytes} bytes are kept for the "
            f"backward, {ratios(*again).bytes:.2f} times as many (limit {limit})\n"
            "likely: every row is compared or joined with every other one",
            measured,
        )


def _judge_growth(growth: Growth, measured: Footprint) -> str:
    """A note, where little or something bounded is kept; raises for what piles up."""
    if growth.unseen:
        return f"no call in {growth.mode} mode: {growth.unseen}"
    if growth.written:
        return (
            f"in {growth.mode} mode the cache keeps the graph of every call: detach what it gets"
        )
    if growth.bytes <= 0:
        return ""
    held = growth.holder or growth.module or "the model"
    each = f"each call in {growth.mode} mode leaves {growth.bytes:.0f} bytes in {held}"
    if growth.bounded:
        return f"{each}, a queue with a maximum length"
    if growth.emptied:
        return f"{each}, until {growth.emptied}() is called"
    if growth.wider <= 1.5 * growth.bytes:
        return f"{each}, as much for a larger batch"
    with_graph = growth.mode == "training"
    raise CheckFailed(
        "a call must leave nothing behind that grows with the number of calls\n"
        f"{each}, over {growth.calls} calls of one shape; {growth.wider:.0f} bytes with twice the "
        "rows\n"
        f"module that holds it: {growth.module or 'none stands out'}\n"
        "likely: a list that collects "
        + ("losses or activations with their graph" if with_graph else "outputs or attention maps")
        + " (keep .item(), or replace what is there), or a cache that is never emptied",
        Footprint(
            **{
                **vars(measured),
                "value": growth.bytes,
                "limit": Limit(value=0.0, rule="bytes a call"),
                "kept": growth.bytes,
            }
        ),
        where=growth.module,
    )


def _judge_work(
    probe: Probe, base: Counts, axis: int, limit: float, notes: list[str]
) -> dict[str, float]:
    """The ratios for twice the rows (``axis`` 0) or tokens (1); raises above ``limit``."""
    name, what = (("wide", "batch"), ("long", "length"))[axis]
    doubled = probe.resources.counted(*probe.resources.sizes[name])
    first = ratios(base, doubled)
    if first.work > limit:
        again = _again(probe, axis, (4, 8) if axis == 0 else (2, 4))
        if again is not None and ratios(*again).work > limit:
            _too_much(probe, base, doubled, again, axis, limit)
        notes.append(
            f"work grows {first.work:.2f} times with twice the {what} at first, not later"
        )
    elif first.operations > 1.3:
        notes.append(
            f"{first.operations:.2f} times as many operations for twice the {what}: "
            f"a loop over {('rows', 'positions')[axis]}?"
        )
    return {
        f"operations_{what}_ratio": first.operations,
        f"products_{what}_ratio": first.products,
    }


def _too_much(
    probe: Probe,
    base: Counts,
    doubled: Counts,
    again: tuple[Counts, Counts],
    axis: int,
    limit: float,
) -> None:
    found = ratios(*again)
    kind = found.kind
    where = probe.resources.locate_work(base.size, doubled.size, limit, kind)
    rule, rate, likely = (
        (
            "the work must grow with the batch, not faster",
            "twice",
            "rows are flattened into one sequence that attends to itself, or compared in pairs",
        ),
        (
            "the work may grow with the square of the length, not faster",
            "4 times",
            "a loop over positions that runs everything before each position again",
        ),
    )[axis]
    raise CheckFailed(
        f"{rule}\n"
        f"{_sizes(*again)}: {found.work:.2f} times as many {WORDS[kind]} (limit {limit:g} = "
        f"{rate}, with some slack)\n"
        f"{_sizes(base, doubled)}: {ratios(base, doubled).work:.2f} times\n"
        f"innermost module whose calls do not multiply: {where or 'none stands out'}\n"
        f"likely: {likely}",
        where=where,
    )


def _again(probe: Probe, axis: int, times: tuple[int, int]) -> tuple[Counts, Counts] | None:
    """Counts at two larger sizes; ``None`` where the model does not take them."""
    if not probe.subject.small and axis == 0:
        times = (2, 4)
    sizes: list[Size | None] = [probe.resources.larger(axis, n) for n in times]
    if sizes[0] is None or sizes[1] is None:
        return None
    return probe.resources.counted(*sizes[0]), probe.resources.counted(*sizes[1])


def _sizes(small: Counts, large: Counts) -> str:
    return " to ".join(f"{c.size[0]} x {c.size[1]} (rows x length)" for c in (small, large))


def _speed(probe: Probe, base: Counts, grown: dict[str, Any], notes: list[str]) -> Speed:
    resources = probe.resources
    seconds = resources.timed()
    sizes = resources.sizes
    first = seconds[sizes["base"]]
    median = statistics.median(first)
    for name, what in (("wide", "batch"), ("long", "length")):
        if name in sizes:
            grown[f"time_{what}_ratio"] = statistics.median(seconds[sizes[name]]) / median
    rows, length = sizes["base"]
    found: dict[str, Any] = dict(times(first))
    return Speed(
        value=found["median_ms"],
        rows=rows,
        length=length,
        trials=len(first),
        samples_per_second=rows / median,
        tokens_per_second=None if probe.subject.vision else rows * length / median,
        operations=base.work.operations,
        multiplications=base.work.multiplications,
        by_length={size[1]: 1e3 * min(seconds[size]) for size in resources.lengths()},
        notes=tuple(notes),
        **found,
        **grown,
    )
