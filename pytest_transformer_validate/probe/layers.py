"""What each layer of a stack does to what it is given.

Axes: N tokens of a batch, D width, V outputs, L layers.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable, error_line
from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.passes import Passes, remembered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.batch import Batch

_MANY = (8, 32)  # rows and tokens of a batch for a small model: enough to fill a width


@dataclass(frozen=True)
class Layer:
    """One call of a layer: ``change`` is how far its result is from what it was given and
    ``size`` how large the result is, each over the size of what it was given and of what the
    first layer of its stack was given; ``rank`` is the effective rank of the result (the
    exponential of the entropy of its singular values, centred), at most ``most``."""

    module: str
    stack: str
    change: float
    size: float
    rank: float
    most: int


@dataclass(frozen=True)
class Lens:
    """What the model would say if the stack ended at a layer: how often its largest logit is that
    of the model, and the KL divergence from the model's prediction, for each layer (L,)."""

    modules: list[str]
    agreement: list[float]
    divergence: list[float]


@dataclass
class Seen:
    """What a layer was given and gave, in the order in which layers were called."""

    modules: list[str] = field(default_factory=list)
    given: list[torch.Tensor] = field(default_factory=list)
    gave: list[torch.Tensor] = field(default_factory=list)


class _Enough(BaseException):
    """Ends a forward of which the rest is of no interest; no model's ``except`` catches it."""


class Layers(Passes):
    """Passes over stacks: modules one after another in a list or a sequence.
    ``condition`` is that of ``Probe.under``."""

    @remembered
    def names(self) -> list[str]:
        """The layers of all stacks that stand in no other: two or more modules, with modules and
        parameters in them, in a ModuleList, ModuleDict or Sequential."""
        kinds = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
        found: list[str] = []
        for name, module in self.probe.subject.model.named_modules():
            if not isinstance(module, kinds) or any(name.startswith(f"{n}.") for n in found):
                continue
            prefix = f"{name}." if name else ""
            own = [prefix + n for n, child in module.named_children() if _is_layer(child)]
            found += own if len(own) > 1 else []
        return found

    @remembered
    def seen(self, condition: str) -> Seen:
        """One forward, with what every layer is given and gives where both have one shape."""
        with self.probe.under(condition):
            return self._seen()

    @remembered
    def effects(self, condition: str) -> list[Layer]:
        """What every layer does that gives what it is given the shape of."""
        seen = self.seen(condition)
        layers: list[Layer] = []
        first: dict[str, float] = {}
        for name, given, gave in zip(seen.modules, seen.given, seen.gave, strict=True):
            stack = name.rpartition(".")[0]
            if not bool(gave.isfinite().all() and given.isfinite().all()):
                raise Blocked(f"{name} gives what is not finite: see output_stability")
            start = first.setdefault(stack, float(given.norm()) or 1.0)
            tokens = gave.flatten(0, -2)
            layers.append(
                Layer(
                    module=name,
                    stack=stack,
                    change=float((gave - given).norm()) / (float(given.norm()) or 1.0),
                    size=float(gave.norm()) / start,
                    rank=_effective_rank(tokens),
                    most=min(len(tokens) - 1, tokens.shape[1]),
                )
            )
        return layers

    @remembered
    def follows(self, condition: str) -> dict[str, float]:
        """How far the result of each layer moves when the numbers in its own weights change
        places, as a part of it. Layers without weights of several axes, and those that are given
        something else then (their weights are those of layers before them too), are left out.

        Behind a norm it says more than ``Layer.change``: a norm changes what it is given even
        where nothing was added to it.
        """
        found = {}
        seen = self.seen(condition)
        with self.probe.under(condition):
            for name, given, gave in zip(seen.modules, seen.given, seen.gave, strict=True):
                if name in found or not (weights := self._weights(name)):
                    continue
                with _turned(weights):
                    again = self._seen(until=name)
                if again.modules and torch.equal(again.given[-1], given):
                    moved = float((again.gave[-1] - gave).norm())
                    found[name] = moved / (float(gave.norm()) or 1.0)
        return found

    def with_other_draws(self) -> Layers:
        """The same passes, by another seed."""
        probe = self.probe
        return type(probe)(probe.subject, seed=probe.seed + 1, weights=probe.weights).layers

    def _weights(self, name: str) -> list[torch.Tensor]:
        """The parameters of a layer that are no vectors: what its branches compute with."""
        module = self.probe.subject.model.get_submodule(name)
        return [p for p in module.parameters() if p.dim() > 1 and p.is_floating_point()]

    @remembered
    def lens(self) -> Lens:
        """The last stack cut short: its last layer gives what an earlier one gave. Raises
        NotApplicable where there is none of two layers, or they cannot be exchanged."""
        seen = self.seen("eval")
        last = seen.modules[-1].rpartition(".")[0] if seen.modules else ""
        own = [i for i, name in enumerate(seen.modules) if name.rpartition(".")[0] == last]
        shapes = {seen.gave[i].shape for i in own}
        if len(own) < 2 or len(shapes) > 1:
            raise NotApplicable("no stack of two layers that take and give one shape")
        try:
            logits = [self._cut(seen.modules[own[-1]], seen.gave[i]) for i in own]
        except Exception as error:
            raise NotApplicable(f"layers cannot be exchanged: {error_line(error)}") from error
        final = logits[-1]
        return Lens(
            modules=[seen.modules[i] for i in own],
            agreement=[float((x.argmax(-1) == final.argmax(-1)).double().mean()) for x in logits],
            divergence=[_divergence(final, x) for x in logits],
        )

    def _seen(self, until: str = "") -> Seen:
        """As ``seen``, no further than the first result of the layer ``until``."""
        names, seen = set(self.names()), Seen()
        open_calls: list[torch.Tensor | None] = []

        def enter(name: str, inputs: list[torch.Tensor]) -> None:
            if name in names:
                open_calls.append(inputs[0].detach().clone() if inputs else None)

        def leave(name: str, outputs: list[torch.Tensor]) -> None:
            if name not in names:
                return
            given = open_calls.pop()
            if given is None or not outputs or given.shape != outputs[0].shape or given.dim() < 3:
                return
            seen.modules.append(name)
            seen.given.append(given.double())
            seen.gave.append(outputs[0].detach().double())
            if name == until:
                raise _Enough

        batch = self._batch()
        with (
            self.probe.running("layers") as subject,
            hooked(subject.model, enter, leave),
            contextlib.suppress(_Enough),
        ):
            subject(batch)
        return seen

    def _cut(self, module: str, states: torch.Tensor) -> torch.Tensor:
        """The logits where ``module`` gives ``states``."""

        def leave(name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            return [states.to(outputs[0]), *outputs[1:]] if name == module else None

        def enter(_name: str, _inputs: list[torch.Tensor]) -> None:
            return None

        batch = self._batch()
        with self.probe.running("layers") as subject, hooked(subject.model, enter, leave):
            return subject(batch).logits.double()

    def _batch(self) -> Batch:
        subject = self.probe.subject
        rows, length = subject.sizes
        if subject.small and not subject.vision:
            rows = min(_MANY[0], subject.most_rows)
            longest = min(_MANY[1], subject.max_length or _MANY[1])
            length = max(longest - longest % subject.multiple, length)
        return self.probe.batch(rows, length, "layers")


@contextlib.contextmanager
def _turned(weights: list[torch.Tensor]) -> Iterator[None]:
    """Each tensor's numbers in other places while inside: a third further on."""
    originals = [weight.data for weight in weights]
    try:
        for weight, data in zip(weights, originals, strict=True):
            weight.data = data.flatten().roll(data.numel() // 3 + 1).view(data.shape)
        yield
    finally:
        for weight, data in zip(weights, originals, strict=True):
            weight.data = data


def _is_layer(module: torch.nn.Module) -> bool:
    """Whether it holds more than its own weights, as a single Linear does."""
    inside = any(next(child.parameters(), None) is not None for child in module.children())
    return inside and not isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)


def _effective_rank(tokens: torch.Tensor) -> float:
    """exp(entropy) of the singular values as parts of their sum, (N, D) centred."""
    values = torch.linalg.svdvals(tokens - tokens.mean(0))
    parts = values / values.sum().clamp(min=1e-300)
    return float(torch.special.entr(parts).sum().exp())


def _divergence(final: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL divergence of predictions, in nats."""
    one, two = (x.log_softmax(-1) for x in (final, other))
    terms = torch.where(one.isfinite() & two.isfinite(), one.exp() * (one - two), 0)
    return float(terms.sum(-1).mean())
