"""Random numbers: what depends on them in evaluation, and where a generator is seeded again."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.probe.compare import moved_by
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT, traced
from pytest_transformer_validate.probe.watch import (
    drawing,
    first_change,
    first_difference,
    generator_state,
    settings_of_torch,
)
from pytest_transformer_validate.subject.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.probe.trace import Call
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_RARE = 24  # states that are tried where something draws: a layer may be left out rarely


@dataclass(frozen=True)
class Twice:
    """One batch in evaluation under two random states, each with the model as it was loaded.

    ``moved`` is how far the logits of the state called ``other`` are from the first ones,
    ``repeated`` how far those of the first state given again; ``reseeded`` are the generators
    that are in the same state after both, ``settings`` what a forward changed in torch,
    ``draws`` says whether a generator is in another state after the first one, ``condition`` is
    what the probe was under.
    """

    way: str
    reference: torch.Tensor
    moved: float
    other: str = "another"
    repeated: float = 0.0
    reseeded: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    draws: bool = False
    condition: str = "as loaded"


class Draws(Passes):
    """Passes about random numbers."""

    def ways(self) -> list[str]:
        """How the model is called in evaluation: plainly, with gradients recorded (another path
        in torch's own layers, and in models that confuse the two), and with an explicit mask."""
        subject = self.probe.subject
        masks = subject.signature.takes("attention_mask") and not subject.vision and subject.small
        return ["plain", "gradients", *(["masked"] if masks else [])]

    @remembered
    def drawn_twice(self, way: str) -> Twice:
        """The same batch under two random states in evaluation; see ``ways``.

        Where something draws and nothing moves, a few more, and with every parameter moved at
        random: a layer may be left out rarely, or stand behind a gate that is closed.
        """
        twice = self._twice(way, "another", "as loaded")
        if twice.moved or not twice.draws:
            return twice
        small = self.probe.subject.small
        for time in range(_RARE if small else 2):
            again = self._twice(way, f"another {time}", "as loaded")
            if again.moved:
                return again
        for time in range(4 if small else 0):
            again = self._twice(way, f"another {time}", "noised")
            if again.moved:
                return again
        return twice

    def first_drawing(self, twice: Twice) -> str | None:
        """The first module whose output differs from equal inputs under two random states; the
        one whose ``train()`` or ``eval()`` leaves it in training mode, where that is why."""
        model, way = self.probe.subject.model, twice.way
        calls: list[list[Call]] = []
        stuck: set[str] = set()
        switched: set[str] = set()
        # what is drawn once a row shows in the first of its modules where there are many rows
        batch = self.batch(way, rows=5 if self.probe.subject.small else 2)
        with self.probe.under(twice.condition):
            for which in ("one", twice.other):
                with self._running(way, which) as subject, traced(model, tensors_in) as found:
                    stuck = _in_training(model)
                    subject(batch)
                    switched = _in_training(model) - stuck
                calls.append(found)
        name = first_difference(model, calls[0], calls[1])
        if name is None:
            running = self._running(way, "one")
            with running as subject, drawing(model, subject.device) as names:
                subject(self.batch(way))
            name = names[0] if names else None
        if name in stuck:
            return keeps_mode(model, name) or name
        return name.rpartition(".")[0] or ROOT if name in switched else name

    def first_reseeding(self, *, training: bool = False) -> str | None:
        """The first module after which torch's generator is in the same state, whatever state
        it was in before."""
        if training:
            with self.probe.under("training"):
                return self._first_reseeding(self._trained)
        return self._first_reseeding(functools.partial(self._running, "plain"))

    def _first_reseeding(
        self, running: Callable[[str], contextlib.AbstractContextManager[Subject]]
    ) -> str | None:
        subject = self.probe.subject
        states: list[torch.Tensor] = []

        def note() -> bool:
            states.append(generator_state(subject.device))
            return False

        with running("one"), first_change(subject.model, note):
            subject(self.batch("plain"))
        left = iter(states)

        def equal() -> bool:
            state = next(left, None)
            return state is not None and generator_state(subject.device).equal(state)

        with running("another"), first_change(subject.model, equal) as found:
            subject(self.batch("plain"))
        return found[0] if found else None

    def batch(self, way: str, rows: int = 2) -> Batch:
        """What the model is called on; see ``ways``."""
        most, length = self.probe.subject.sizes
        batch = self.probe.batch(min(rows, most), length, "draws")
        if way == "masked":
            batch = batch.with_(attention_mask=torch.ones_like(batch["input_ids"]))
        return batch

    @contextlib.contextmanager
    def _running(self, way: str, which: str) -> Iterator[Subject]:
        """The subject in evaluation, by ``train()`` and ``eval()`` as users call them."""
        with self.probe.running("draws", which, grad=way == "gradients") as subject:
            if self._switches:
                subject.model.train()
                subject.model.eval()
            yield subject

    @functools.cached_property
    def _switches(self) -> bool:
        """Whether ``train()`` or ``eval()`` does more than what has been done already."""
        return any(map(_switches_itself, self.probe.subject.model.modules()))

    def _trained(self, which: str) -> contextlib.AbstractContextManager[Subject]:
        return self.probe.running("trained", which)

    def _twice(self, way: str, other: str, condition: str) -> Twice:
        with self.probe.under(condition):
            first, states = self._evaluated(way, "one")
            second, others = self._evaluated(way, other)
            moved, repeated = moved_by(first, second), 0.0
            if moved:
                repeated = max(moved_by(first, self._evaluated(way, "one")[0]) for _ in range(2))
        settings, draws = states.pop("settings"), states.pop("draws")
        reseeded = tuple(n for n, state in states.items() if _equal_states(state, others[n]))
        return Twice(way, first, moved, other, repeated, reseeded, settings, draws, condition)

    def _evaluated(self, way: str, which: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Logits under a random state; the state of every generator afterwards, the names of
        the ``settings`` of torch that have changed, and whether anything ``draws``."""
        batch = self.batch(way)
        with self._running(way, which) as subject:
            before, states = settings_of_torch(), _generators(subject.device)
            logits = subject(batch).logits.detach()
            now, after = settings_of_torch(), _generators(subject.device)
            changed = tuple(name for name in before if before[name] != now[name])
            draws = not all(_equal_states(state, after[n]) for n, state in states.items())
            return logits, {**after, "settings": changed, "draws": draws}


def _in_training(model: nn.Module) -> set[str]:
    return {name or ROOT for name, module in model.named_modules() if module.training}


def keeps_mode(model: nn.Module, name: str) -> str | None:
    """The innermost module around ``name`` with a ``train()`` or ``eval()`` of its own."""
    modules = dict(model.named_modules())
    place = "" if name == ROOT else name
    while True:
        if _switches_itself(modules[place]):
            return place or ROOT
        if not place:
            return None
        place = place.rpartition(".")[0]


def _switches_itself(module: nn.Module) -> bool:
    """Whether a module has a ``train()`` or ``eval()`` of its own."""
    return any(
        method in vars(module) or getattr(type(module), method) is not getattr(nn.Module, method)
        for method in ("train", "eval")
    )


def _generators(device: torch.device) -> dict[str, Any]:
    numpy = sys.modules.get("numpy")
    states: dict[str, Any] = {"torch": generator_state(device), "random": random.getstate()}
    if numpy is not None:
        states["numpy"] = numpy.random.get_state()[1].tobytes()
    return states


def _equal_states(a: Any, b: Any) -> bool:
    return bool(a.equal(b)) if isinstance(a, torch.Tensor) else bool(a == b)
