"""What a model needs: bytes that a backward keeps, operations, and time.

Counted, not sampled: the same on every machine, but for the time. Axes: B batch, T positions.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import NotApplicable, first_line
from pytest_transformer_validate.probe.holders import tensors_behind
from pytest_transformer_validate.probe.ledger import (
    Ledger,
    Saved,
    Work,
    keeping,
    places,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

Size = tuple[int, int]

_TURNS, _SOME_TIME = 10, 0.006  # of forwards of all sizes: what is timed is a report


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
            for t in tensors_behind(output.cache)
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
