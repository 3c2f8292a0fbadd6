"""What a model needs: bytes that a backward keeps, operations, what stays alive, and time.

Counted, not sampled: the same on every machine, but for the time. Axes: B batch, T positions.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import re
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, first_line
from pytest_transformer_validate.probe.ledger import (
    Ledger,
    Saved,
    Survivors,
    Work,
    keeping,
    places,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

Size = tuple[int, int]

# Calls of one shape over which results may pile up before it counts as growth: longer than the
# memories of segments and queues that models keep on purpose.
_CALLS = (8, 32, 32)
_CALLS_OF_LARGE = (2, 4, 4)
_TURNS, _SOME_TIME = 10, 0.006  # of forwards of all sizes: what is timed is a report
# Methods that empty a collection, called between steps.
_EMPTIES = re.compile(
    r"(reset|clear|empty|pop|flush|drain)(_\w+)?(?<!parameters)(?<!weights)|"
    r"(get|collect)_and_(reset|clear)(_\w+)?"
)


@dataclass(frozen=True)
class Counts:
    """One forward of (B, T) that a backward could follow: bytes ``saved`` for it and all results
    ``made`` on the way, in order, and the ``work``; by module in ``work_of`` and ``calls`` where
    asked for. ``unseen`` says why no bytes could be counted."""

    size: Size
    saved: tuple[Saved, ...]
    made: tuple[Saved, ...]
    work: Work
    work_of: dict[str, Work]
    calls: dict[str, int]
    unseen: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of activations that are kept."""
        return sum(each.size for each in self.saved)


@dataclass(frozen=True)
class Growth:
    """What stays alive after calls of one shape, in one mode.

    ``bytes`` is what each call adds once ``calls`` have run (0 where nothing piles up), ``wider``
    the same for twice as many rows; ``holder`` the attribute that holds it (``module.attribute``)
    and ``module`` where it is; ``bounded`` that the holder is a queue with a maximum length;
    ``emptied`` names a method of the model that lets go of it; ``written`` says that a
    cache of a model for decoding, which was there before, is written to with its graph;
    ``unseen`` says why nothing was seen.
    """

    mode: str
    bytes: float = 0.0
    wider: float = 0.0
    calls: int = 0
    module: str | None = None
    holder: str | None = None
    bounded: bool = False
    emptied: str = ""
    written: bool = False
    unseen: str = ""


class Resources(Passes):
    """Memory, work and time of forwards."""

    @property
    def sizes(self) -> dict[str, Size]:
        """``base`` (B, T) and, where the model takes them, ``wide`` (2B, T) and ``long`` (B, 2T);
        few rows, short. Images have no length."""
        subject = self.probe.subject
        rows = max(1, min(2, subject.most_rows // 2))
        longest = 1 if subject.vision else subject.max_length or 32
        length = min(8, max(1, longest // 4 if longest >= 4 else longest // 2))
        sizes = {"base": (rows, length)}
        if 2 * rows <= subject.most_rows:
            sizes["wide"] = (2 * rows, length)
        if 2 * length <= longest:
            sizes["long"] = (rows, 2 * length)
        return sizes

    def larger(self, axis: int, times: int) -> Size | None:
        """``base`` with one size (``axis`` 0: B, 1: T) that many times larger, if it is taken."""
        subject = self.probe.subject
        rows, length = self.sizes["base"]
        size = (times * rows, length) if axis == 0 else (rows, times * length)
        longest = subject.max_length or 64
        return size if size[0] <= subject.most_rows and size[1] <= longest else None

    @remembered
    def lengths(self) -> list[Size]:
        """``base`` at 1, 2 and 4 times its length, as far as the model runs with that."""
        found = [self.sizes["base"]]
        for size in (self.sizes.get("long"), self.larger(1, 4)):
            if size is None:
                break
            try:
                self.kept(*size)
            except Exception:  # noqa: BLE001 - what is drawn is no promise
                break
            found.append(size)
        return found

    @remembered
    def kept(self, rows: int, length: int) -> int:
        """Bytes that a backward would need of a forward; see ``counted``."""
        if (rows, length) in self.sizes.values():
            return self.counted(rows, length).bytes
        with self.probe.running("resources", grad=True) as subject:
            with keeping(subject.model, [ROOT]) as found:
                subject.call(self._batch(rows, length), {})
            return sum(each.size for each in found.saved)

    def base(self) -> Counts:
        """What was counted at the ``base`` size."""
        return self.counted(*self.sizes["base"])

    def squares(self, small: str, large: str, axis: int) -> list[Saved]:
        """What is kept for a backward and has two axes that grow with B (``axis`` 0) or T (1):
        see ``quadratic``; for B, where nothing of the kind is kept, what is made on the way. For B
        a third size is counted where two agree."""
        before, after = (self.counted(*self.sizes[name]) for name in (small, large))
        if axis == 1:
            return quadratic(before, after, None, axis, "saved")
        third = self.larger(axis, 3)
        for kind in ("saved", "made"):
            found = quadratic(before, after, None, axis, kind)
            if found and third is not None:
                found = quadratic(before, after, self.counted(*third), axis, kind)
            if found:
                return found
        return []

    def place_of(self, saved: Saved, size: str) -> str | None:
        """The first module that keeps a tensor like ``saved`` at the size called ``size``."""
        counts = self.counted(*self.sizes[size], located=True)
        located = (*counts.saved, *counts.made)
        alike = (s.place for s in located if (s.shape, s.size) == (saved.shape, saved.size))
        return next(alike, None)

    @remembered
    def counted(self, rows: int, length: int, located: bool = False) -> Counts:
        """Count one forward, in eval mode (so that nothing is dropped) with gradients.

        ``located`` also says which module did what. Raises NotApplicable where a model that runs
        by itself does not run while it is counted.
        """
        try:
            return self._counted(rows, length, located=located)
        except Exception as error:
            with contextlib.suppress(Exception):  # torch.func bears no hooks on what is kept
                counts = self._counted(rows, length, located=located, grad=False)
                return replace(counts, unseen=first_line(error))
            self.probe.forward(self._batch(rows, length))
            raise NotApplicable(
                f"the model cannot be watched while it runs: {first_line(error)}"
            ) from error

    def _counted(self, rows: int, length: int, *, located: bool, grad: bool = True) -> Counts:
        batch = self._batch(rows, length)
        with self.probe.running("resources", grad=grad) as subject:
            ledger = Ledger()
            calls: dict[str, int] = {}
            saved: list[Saved] = []
            with contextlib.ExitStack() as stack:
                if located:
                    calls = stack.enter_context(places(subject.model, ledger.inside))
                if grad:
                    saved = stack.enter_context(keeping(subject.model, ledger.inside)).saved
                stack.enter_context(ledger)
                output = subject.call(batch, {})
            del output
        made = tuple(ledger.made)
        return Counts((rows, length), tuple(saved), made, ledger.work, ledger.work_of, calls)

    def _batch(self, rows: int, length: int) -> Batch:
        return self.probe.batch(rows, length, "resources", source=length)

    @remembered
    def growth(self, mode: str) -> Growth:
        """What piles up over calls of one shape: ``eval`` without gradients, or ``training`` with
        labels where the model takes some. Two calls where nothing does.

        A model may take nothing but full length in training mode (axial positions); whether it
        can be trained at all is not judged here.
        """
        if mode == "eval":
            return self._growth(mode, *self.sizes["base"])
        rows, length = self.sizes["base"]
        try:
            return self._growth(mode, rows, length)
        except Exception as error:  # noqa: BLE001 - told, and judged by gradient_flow
            longest = self.probe.subject.max_length or length
            with contextlib.suppress(Exception):
                return self._growth(mode, rows, longest)
            return Growth(mode, unseen=first_line(error))

    def _growth(self, mode: str, rows: int, length: int) -> Growth:
        probe = self.probe
        training = mode == "training"
        with probe.under(mode), probe.running("growth", mode, grad=training) as subject:
            calls = _Calls(subject, self._given(rows, length, labels=training))
            decodes = any(map(subject.signature.takes, ("start", "input_pos")))
            caches = _plain(subject.model) if training and decodes else {}
            calls.call()  # the first one may set up what stays for good
            calls.run(1)
            first = calls.results.alive_bytes()
            if not first:
                return Growth(mode)
            calls.run(1)
            if calls.results.alive_bytes() <= first:
                return Growth(mode)
            gc.collect()  # a cycle of references keeps until then
            first = calls.results.alive_bytes()
            calls.run(1)
            gc.collect()
            if calls.results.alive_bytes() <= first:
                return Growth(mode)
            if any(
                tensor.grad_fn is not None and id(tensor) in caches
                for tensor in _plain(subject.model).values()
            ):
                return Growth(mode, written=True)
            return self._watched(mode, calls)

    def _watched(self, mode: str, calls: _Calls) -> Growth:
        """More calls, with the garbage collected, until it is clear what stays."""
        counts = _CALLS if self.probe.subject.small else _CALLS_OF_LARGE
        alive = []
        for count in counts:
            calls.run(count)
            gc.collect()
            alive.append(calls.results.alive_bytes())
        before, after = (b - a for a, b in itertools.pairwise(alive))
        if before <= 0 or after < 0.9 * before:
            return Growth(mode)
        module, holder, bounded = _holder(self.probe.subject.model, calls.results)
        total = 4 + sum(counts)
        each = after / counts[-1]
        emptied = self._emptied(calls, alive[-1])
        if emptied is not None:
            return Growth(mode, each, 0.0, total, module, holder, emptied=emptied)
        alive[-1] = calls.results.alive_bytes()
        wider = 0.0
        if "wide" in self.sizes:
            calls.given = self._given(*self.sizes["wide"], labels=mode == "training")
            calls.run(1)  # another shape may let go of what was kept
            gc.collect()
            settled = calls.results.alive_bytes()
            calls.run(counts[0])
            gc.collect()
            wider = (calls.results.alive_bytes() - settled) / counts[0]
        if module is None:
            module = self._created(calls)
        return Growth(mode, each, wider, total, module, holder, bounded)

    def _emptied(self, calls: _Calls, full: int) -> str | None:
        """The model's own method that lets most of it go: a trainer calls it after each step."""
        for name, module in self.probe.subject.model.named_modules():
            own = (kind for kind in type(module).__mro__ if _brought(kind))
            for method in {method for kind in own for method in vars(kind)}:
                if _EMPTIES.fullmatch(method):
                    with contextlib.suppress(Exception):  # it may want arguments
                        getattr(module, method)()
                        if calls.results.alive_bytes() < full / 2:
                            return f"{name}.{method}".strip(".")
        return None

    def _created(self, calls: _Calls) -> str | None:
        """The module that was running when what one more call leaves was made."""
        before = calls.results.alive()
        with places(self.probe.subject.model, calls.results.inside):
            calls.run(1)
        new = [place for key, (_, place) in calls.results.alive().items() if key not in before]
        return Counter(new).most_common(1)[0][0] if new else None

    def _given(self, rows: int, length: int, *, labels: bool) -> list[Batch]:
        """The batch to call with; with labels first, without them where that raises."""
        batch = self.probe.batch(rows, length, "growth", source=length)
        subject = self.probe.subject
        if not labels or not subject.signature.takes("labels") or "labels" in batch.inputs:
            return [batch]
        if subject.task.per_token:
            target = batch.inputs.get("decoder_input_ids", batch.main)
        else:
            target = torch.zeros(batch.rows, dtype=torch.long, device=batch.main.device)
        return [batch.with_(labels=target), batch]

    @remembered
    def cache_bytes(self) -> float | None:
        """Bytes a token of the cache that a forward returns; ``None`` where it returns none."""
        probe = self.probe
        if not probe.subject.signature.takes("use_cache"):
            return None
        rows, length = self.sizes["base"]
        batch = self._batch(rows, length)
        try:
            output = probe.forward(batch, use_cache=True)
        except Exception:  # noqa: BLE001 - a model need not support a cache
            return None
        sizes = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes()
            for t in _tensors(output.cache)
        }
        return sum(sizes.values()) / (rows * length) if sizes else None

    def timed(
        self, rounds: int | None = None, warm: int = 0, sizes: Sequence[Size] | None = None
    ) -> dict[Size, list[float]]:
        """Seconds of forwards in eval mode at ``sizes`` (default: all, and ``lengths``), which
        take turns.

        ``rounds`` forwards of each after ``warm`` that are not counted; by default three, and
        more as long as that takes less than 6 ms, or one of each for a large model: all sizes
        have run before.
        """
        probe = self.probe
        sizes = sizes or list(dict.fromkeys((*self.sizes.values(), *self.lengths())))
        batches = {size: self._batch(*size) for size in sizes}
        seconds: dict[Size, list[float]] = {size: [] for size in sizes}
        with probe.running("timed") as subject:
            for _ in range(warm):
                for batch in batches.values():
                    _seconds(subject, batch)
            start = time.perf_counter()
            fewest = rounds or (3 if subject.small else 1)
            for turn in range(rounds or _TURNS):
                if turn >= fewest and time.perf_counter() - start > _SOME_TIME:
                    break
                for size, batch in batches.items():
                    seconds[size].append(_seconds(subject, batch))
        return seconds

    def locate_work(self, small: Size, large: Size, ratio: float, kind: str) -> str | None:
        """The innermost module that is called as often for both sizes and whose work (``kind``:
        a field of ``Work``) grows by more than ``ratio``."""
        before, after = (self.counted(*size, located=True) for size in (small, large))
        grown = [
            name
            for name, calls in before.calls.items()
            if after.calls.get(name) == calls
            and _inside(after, name, kind) > ratio * _inside(before, name, kind) > 0
        ]
        return max(grown, key=lambda name: (name != ROOT, name.count("."))) if grown else None


class _Calls:
    """Calls of one shape, each with inputs of its own, whose results are dropped."""

    def __init__(self, subject: Subject, given: list[Batch]) -> None:
        self.subject = subject
        self.given = given
        self.results = Survivors(subject.model)

    def run(self, count: int) -> None:
        """That many calls whose results are followed."""
        for _ in range(count):
            with self.results:
                self.call()

    def call(self) -> None:
        """One call."""
        batch = self.given[0]
        fresh = batch.with_(**{role: t.clone() for role, t in batch.inputs.items()})
        try:
            self.subject.call(fresh, {})
        except Exception:
            if len(self.given) == 1:
                raise
            self.given = self.given[1:]
            self.call()


def _seconds(subject: Subject, batch: Batch) -> float:
    _finish(subject.device)
    start = time.perf_counter()
    subject.call(batch, {})
    _finish(subject.device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _inside(counts: Counts, name: str, kind: str) -> int:
    """The work of one kind of a module and all inside it."""
    return sum(
        int(getattr(work, kind))
        for place, work in counts.work_of.items()
        if name == ROOT or place == name or place.startswith(f"{name}.")
    )


def _holder(model: torch.nn.Module, results: Survivors) -> tuple[str | None, str | None, bool]:
    """The module, and its attribute, that holds most of what is alive; whether it is bounded."""
    alive = results.alive()
    best: tuple[int, str | None, str | None, bool] = (0, None, None, False)
    for name, module in model.named_modules():
        for key, value in _attributes(module):
            held = [t for t in _tensors(value) if t.untyped_storage()._cdata in alive]
            bounded = isinstance(value, deque) and value.maxlen is not None
            if len(held) > best[0]:
                best = (len(held), name or ROOT, f"{name}.{key}".strip("."), bounded)
    return best[1:]


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Plain attributes of a module and of its class."""
    registered = {"_parameters", "_modules"}
    yield from ((key, value) for key, value in vars(module).items() if key not in registered)
    for kind in filter(_brought, type(module).__mro__):
        yield from ((k, v) for k, v in vars(kind).items() if isinstance(v, list | dict | deque))


def _plain(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Buffers, and tensors in plain attributes, by identity."""
    values = (value for module in model.modules() for value in vars(module).values())
    tensors = (value for value in (*model.buffers(), *values) if isinstance(value, torch.Tensor))
    return {id(tensor): tensor for tensor in tensors}


def _brought(kind: type) -> bool:
    """Whether a class is the model's, not torch's."""
    return kind is not object and not kind.__module__.startswith("torch.")


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor inside a nest of containers and plain objects."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | bytes | torch.nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse, nested
            value.untyped_storage()
            yield value
        return
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, list | tuple | deque | set):
        items = list(value)
    else:
        items = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for item in items:
        yield from _tensors(item, seen)


def quadratic(
    small: Counts, large: Counts, third: Counts | None, axis: int, kind: str
) -> list[Saved]:
    """What is ``saved`` or ``made`` (``kind``) more than linearly in one size (``axis`` 0: B, 1:
    T): tensors two axes of which grow with it. ``third`` is a third size that has to agree.

    Empty where the runs do not have the same number of tensors.
    """
    runs = [run for run in (small, large, third) if run is not None]
    tensors: list[tuple[Saved, ...]] = [getattr(run, kind) for run in runs]
    if len({len(each) for each in tensors}) > 1:
        return []
    found = []
    for each in zip(*tensors, strict=True):
        if all(
            _squared(each[0], other, run.size[axis] / small.size[axis])
            for other, run in zip(each[1:], runs[1:], strict=True)
        ):
            found.append(each[1])
    return found


def _squared(small: Saved, large: Saved, ratio: float) -> bool:
    """Whether two axes, and the bytes, grow with a size that grows by ``ratio``."""
    if len(small.shape) != len(large.shape) or large.size < 0.99 * ratio**2 * small.size:
        return False
    growing = sum(
        b > 1 and math.isclose(b, ratio * a) for a, b in zip(small.shape, large.shape, strict=True)
    )
    return growing >= 2
