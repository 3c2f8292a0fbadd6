"""What stays alive over calls of one shape: which module holds it, and whether something empties
it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import first_line
from pytest_transformer_validate.probe.holders import tensors_behind
from pytest_transformer_validate.probe.ledger import Survivors, places
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

# Calls of one shape over which results may pile up before it counts as growth: longer than the
# memories of segments and queues that models keep on purpose.
_CALLS = (8, 32, 32)
_CALLS_OF_LARGE = (2, 4, 4)
# Methods that empty a collection, called between steps.
_EMPTIES = re.compile(
    r"(reset|clear|empty|pop|flush|drain)(_\w+)?(?<!parameters)(?<!weights)|"
    r"(get|collect)_and_(reset|clear)(_\w+)?"
)


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


class Growths(Passes):
    """Passes that call the model more than once and follow what is made."""

    @remembered
    def over_calls(self, mode: str) -> Growth:
        """What piles up over calls of one shape: ``eval`` without gradients, or ``training`` with
        labels where the model takes some. Two calls where nothing does.

        A model may take nothing but full length in training mode (axial positions); whether it
        can be trained at all is not judged here.
        """
        if mode == "eval":
            return self._growth(mode, *self.probe.resources.sizes["base"])
        rows, length = self.probe.resources.sizes["base"]
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
        if "wide" in self.probe.resources.sizes:
            calls.given = self._given(
                *self.probe.resources.sizes["wide"], labels=mode == "training"
            )
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


def _holder(model: torch.nn.Module, results: Survivors) -> tuple[str | None, str | None, bool]:
    """The module, and its attribute, that holds most of what is alive; whether it is bounded."""
    alive = results.alive()
    best: tuple[int, str | None, str | None, bool] = (0, None, None, False)
    for name, module in model.named_modules():
        for key, value in _attributes(module):
            held = [t for t in tensors_behind(value) if t.untyped_storage()._cdata in alive]
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
