"""Which tokens each output, and each module, depends on: by gradient, nothing replaced.

Axes: B batch, T positions of the sequence that the output follows, S positions of an encoder's
input, V outputs, K positions looked at.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pytest_transformer_validate.probe.compare import finite, projection, sequence, trace
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.positions import Plan, copies
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe

# Modules that treat every position alike and alone: asking them costs time and tells nothing.
_POSITIONWISE = (
    torch.nn.Linear,
    torch.nn.Embedding,
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
    torch.nn.Dropout,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.ReLU,
    torch.nn.Tanh,
    torch.nn.Identity,
)


@dataclass(frozen=True)
class Footprint:
    """What one call of a module carries from position to position.

    ``matrices`` holds, by the length of an input, the gradient (K, length) of the output at
    ``positions[k]`` (row) with respect to that input at every position; ``length`` is that of the
    output. What a module was given twice (queries and keys) is added up.
    """

    module: str
    length: int
    positions: tuple[int, ...]
    matrices: dict[int, torch.Tensor]

    @property
    def own(self) -> torch.Tensor | None:
        """The matrix for an input as long as the output."""
        return self.matrices.get(self.length)


class Mixing(Passes):
    """Dependencies of outputs, and of modules, on tokens. ``condition`` is that of
    ``Probe.under``: ``eval``, or ``noised``."""

    def tokens(self, condition: str) -> tuple[torch.Tensor, str]:
        """(T, T): how much the output at k (row) depends on token s (column), and how that was
        found out: ``gradient``, else ``swaps``, which cannot tell about token 0 (NaN)."""
        try:
            matrix = self.probe.position_gradients(condition)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            matrix = None
        if matrix is not None and bool(matrix.isfinite().all()):
            return matrix, "gradient"
        return self._by_swaps(condition), "swaps"

    def _by_swaps(self, condition: str) -> torch.Tensor:
        length = self.probe.subject.sizes[1]
        plan = Plan(
            "noised" if condition == "noised" else "every", length, tuple(range(1, length))
        )
        swaps = self.probe.position_swaps(plan)
        matrix = torch.full((length, length), float("nan"), dtype=torch.float64)
        for row, start in enumerate(swaps.start):
            if not swaps.suffix[row]:
                matrix[:, start] = swaps.effect[row].double()
        return matrix

    @remembered
    def text(self, length: int, condition: str) -> torch.Tensor | None:
        """(T,): gradient of a classifier's outputs at every token, the largest of several
        texts (a maximum over time reads few tokens of one text). ``None``: see ``lookup``."""
        probe = self.probe
        rows = min(8 if probe.subject.small else 2, probe.subject.most_rows)
        batch = probe.batch(rows, length, "mixing", length)
        with probe.under(condition), probe.running("mixing", grad=True) as subject:
            with TokenLookup(batch["input_ids"]) as lookup:
                logits = subject(batch).logits
            if not lookup:
                return None
            loss = finite(logits).mul(projection(probe, logits.shape[-1]).to(logits)).sum()
            torch.autograd.backward(loss, inputs=lookup.leaves)
            return lookup.gradient().amax(0)

    @remembered
    def source(self, condition: str) -> torch.Tensor | None:
        """(T, S): gradient of the output at k (row) at token s of the encoder's input."""
        probe = self.probe
        length = probe.subject.sizes[1]
        batch = copies(probe, length, length + 1, self.source_length)
        with probe.under(condition), probe.running("mixing", grad=True) as subject:
            with TokenLookup(batch["input_ids"]) as lookup:
                logits = subject(batch).logits.flatten(2)
            if not lookup:
                return None
            diagonal = logits.diagonal(dim1=0, dim2=1).T
            weight = projection(probe, logits.shape[-1]).to(logits)
            torch.autograd.backward(finite(diagonal).mul(weight).sum(), inputs=lookup.leaves)
            return lookup.gradient()[:length]

    @property
    def source_length(self) -> int:
        """S: a length of which no other axis is."""
        other = self.probe.subject.other_sizes[1]
        return other if other != self.probe.subject.sizes[1] else other + 1

    @remembered
    def pixels(self, condition: str) -> torch.Tensor:
        """(H, W): gradient of a few images' outputs at every pixel, the largest."""
        probe = self.probe
        batch = probe.batch(min(4, probe.subject.most_rows), 1, "mixing")
        with probe.under(condition), probe.running("mixing", grad=True) as subject:
            pixels = batch["pixel_values"].requires_grad_()
            logits = subject(batch).logits.flatten(1)
            loss = finite(logits).mul(projection(probe, logits.shape[-1]).to(logits)).sum()
            torch.autograd.backward(loss, inputs=[pixels])
            return cast("torch.Tensor", pixels.grad).abs().amax((0, 1)).double().cpu()

    @remembered
    def footprints(self, length: int, condition: str) -> list[Footprint]:
        """The footprint of every call of every module, in the order in which calls end; empty
        where no gradient can be read."""
        probe = self.probe
        source = self.source_length if probe.subject.decodes else length
        try:
            with probe.under(condition):
                return _footprints(probe, length, source)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            return []

    @functools.cached_property
    def patch(self) -> int:
        """Side of the patches of an image: the stride of the first convolution that has a large
        one, else a quarter of the image."""
        probe = self.probe
        side = min(probe.batch(1, 1, "mixing")["pixel_values"].shape[2:])
        strides = (
            int(m.stride[0])
            for m in probe.subject.model.modules()
            if isinstance(m, torch.nn.Conv2d)
        )
        first = next((n for n in strides if 4 <= n <= side // 2), None)
        return first or max(1, side // 4)

    def first_shortening(self) -> str | None:
        """The first module that is given a sequence and gives a shorter one, or one vector."""
        probe = self.probe
        length = probe.subject.sizes[1]
        for call in trace(probe, probe.batch(2, length, "shortening")):
            given = [t for t in call.inputs if t.dim() == 3]
            if given and call.outputs and call.outputs[0].dim() in (2, 3):
                before, after = given[0], call.outputs[0]
                if after.dim() == 2 or after.shape[1] < before.shape[1]:
                    return call.name
        return None

    def kind(self, module: str) -> tuple[object, ...]:
        """What modules that are built alike have in common: class, parameters and their
        shapes."""
        found = self.probe.subject.model.get_submodule("" if module == ROOT else module)
        shapes = ((name, tuple(p.shape)) for name, p in found.named_parameters())
        return (type(found), *shapes)


@dataclass
class _Open:
    """A call that has begun: where its inputs hang in the graph."""

    edges: list[tuple[int, GradientEdge]]


def _looked_at(length: int, *, every: bool) -> tuple[int, ...]:
    few = dict.fromkeys((0, length // 2, length - 1))
    return tuple(range(length)) if every else tuple(few)


def _footprints(probe: Probe, length: int, source: int) -> list[Footprint]:
    every = probe.subject.small and length <= 31
    looked = {n: _looked_at(n, every=every) for n in (length, source)}
    rows = max(len(p) for p in looked.values()) + 1
    batch = copies(probe, length, rows, source if probe.subject.decodes else None)
    calls: list[tuple[str, int, list[tuple[int, GradientEdge]], torch.Tensor]] = []
    stack: list[_Open] = []
    handles: list[Any] = []

    def axes(tensor: torch.Tensor) -> tuple[int, int] | None:
        """The axes of rows and of positions."""
        along = next((i for i, n in enumerate(tensor.shape) if n in looked), None)
        across = next((i for i, n in enumerate(tensor.shape) if n == rows and i != along), None)
        return None if along is None or across is None or tensor.dim() < 3 else (across, along)

    def enter(_module: Any, args: Any, kwargs: Any) -> None:
        tensors = {id(t): t for t in floating((args, kwargs)) if t.requires_grad and axes(t)}
        stack.append(_Open([(_length(t, axes(t)), _edge(t)) for t in tensors.values()]))

    def leave(name: str) -> Any:
        def record(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            opened = stack.pop()
            given = [t for t in floating(output) if t.requires_grad and axes(t)]
            if opened.edges and given:
                size, total = _projected(probe, given[0], axes(given[0]), looked)
                calls.append((name, size, opened.edges, total))

        return record

    with probe.running("footprints", grad=True) as subject:
        for parameter in subject.model.parameters():
            parameter.requires_grad_(False)
        for name, module in _askable(subject.model):
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave(name), with_kwargs=True))
        try:
            with (
                TokenLookup(batch["input_ids"]) as lookup,
                TokenLookup(batch[sequence(probe)]),
            ):
                subject(batch)
            return [_footprint(*call, looked) for call in calls] if lookup else []
        finally:
            for handle in handles:
                handle.remove()


def _askable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in model.named_modules():
        if not isinstance(module, (torch.jit.ScriptModule, *_POSITIONWISE)):
            yield name or ROOT, module


def _edge(tensor: torch.Tensor) -> GradientEdge:
    return get_gradient_edge(tensor)


def _length(tensor: torch.Tensor, axes: tuple[int, int] | None) -> int:
    assert axes is not None
    return tensor.shape[axes[1]]


def _projected(
    probe: Probe,
    output: torch.Tensor,
    axes: tuple[int, int] | None,
    looked: dict[int, tuple[int, ...]],
) -> tuple[int, torch.Tensor]:
    """The length of an output, and the projected sum over copies k at their positions."""
    assert axes is not None
    across, along = axes
    stood = output.movedim((across, along), (0, 1)).flatten(2)
    positions = list(looked[stood.shape[1]])
    picked = stood[torch.arange(len(positions)), positions]
    weight = projection(probe, picked.shape[-1]).to(picked)
    return stood.shape[1], finite(picked).mul(weight).sum()


def _footprint(
    name: str,
    size: int,
    edges: list[tuple[int, GradientEdge]],
    total: torch.Tensor,
    looked: dict[int, tuple[int, ...]],
) -> Footprint:
    positions = looked[size]
    grads = torch.autograd.grad(
        total, [edge for _, edge in edges], retain_graph=True, allow_unused=True
    )
    rows = max(len(p) for p in looked.values()) + 1
    matrices: dict[int, torch.Tensor] = {}
    for (n, _), grad in zip(edges, grads, strict=True):
        matrix = torch.zeros(len(positions), n, dtype=torch.float64)
        if grad is not None:
            along = next(i for i, s in enumerate(grad.shape) if s == n)
            across = next(i for i, s in enumerate(grad.shape) if s == rows and i != along)
            stood = grad.detach().movedim((across, along), (0, 1)).flatten(2).abs().amax(2)
            matrix = stood[: len(positions)].double().cpu()
        matrices[n] = matrices.get(n, 0) + matrix
    return Footprint(name, size, positions, matrices)
