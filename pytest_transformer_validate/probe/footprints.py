"""What each call of a module carries from position to position, by gradient, and how an encoder's
output is used: of one run over copies of one text.

Axes: T positions of the sequence that the output follows, S positions of an encoder's input, K
positions looked at.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pytest_transformer_validate.probe.compare import finite, projection, sequence
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.positions import copies, diagonal_gradient
from pytest_transformer_validate.probe.structure import POSITIONWISE
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.dispatch import uncompiled
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


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


@dataclass(frozen=True)
class Memory:
    """How the encoder's output (S positions) is used: by the logits (S,), and by what each
    module of the decoder is given of that length (S,); ``reads`` says of every module of the
    decoder whether it is given vectors of that length."""

    logits: torch.Tensor
    given: dict[str, torch.Tensor]
    reads: dict[str, bool]


@dataclass
class Found:
    """What one run tells: footprints, the use of the encoder's output, and who depends on whom
    (where each position of the text has a copy)."""

    modules: list[Footprint] = field(default_factory=list)
    memory: Memory | None = None
    tokens: torch.Tensor | None = None


@dataclass
class _Open:
    """A call that has begun: where its inputs hang in the graph, a projection of those that are
    as long as the encoder's output, and how many ``states`` were noted before."""

    edges: list[tuple[int, GradientEdge]]
    given: torch.Tensor | None
    vectors: bool
    states: int


@dataclass
class _Call:
    """A call that has ended: the length of its output, a projection of it, and its inputs."""

    module: str
    length: int
    total: torch.Tensor
    begun: _Open


class _Watch:
    """Records calls while a model runs over copies of one text, T and S long."""

    def __init__(self, probe: Probe, length: int, source: int) -> None:
        self.probe, self.length, self.source = probe, length, source
        self.looked = {n: _looked_at(probe, n, length) for n in (length, source)}
        self.rows = max(len(places) for places in self.looked.values()) + 1
        self.calls: list[_Call] = []
        self.states: list[tuple[int, GradientEdge]] = []
        self._stack: list[_Open] = []

    def axes(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        """The axes of rows and of positions of a tensor that depends on tokens."""
        if tensor.dim() < 3 or not tensor.requires_grad:
            return None
        shape = list(enumerate(tensor.shape))
        along = next((i for i, n in shape if n in self.looked), None)
        across = next((i for i, n in shape if n == self.rows and i != along), None)
        return None if along is None or across is None else (across, along)

    def enter(self, _module: Any, args: Any, kwargs: Any) -> None:
        """Note where the inputs of a call hang in the graph."""
        edges: list[tuple[int, GradientEdge]] = []
        given: torch.Tensor | None = None
        vectors = False
        for tensor in {id(t): t for t in floating((args, kwargs))}.values():
            axes = self.axes(tensor)
            if axes is None:
                continue
            edges.append((tensor.shape[axes[1]], get_gradient_edge(tensor)))
            if tensor.shape[axes[1]] == self.source != self.length:
                projected = self._project(tensor)
                given = projected if given is None else given + projected
                vectors = vectors or tensor.dim() == 3  # a bias of positions has four axes
        self._stack.append(_Open(edges, given, vectors, len(self.states)))

    def leave(self, name: str) -> Any:
        """Note the result of a call."""

        def record(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            begun = self._stack.pop()
            given = next(((t, a) for t in floating(output) if (a := self.axes(t))), None)
            if not begun.edges or given is None:
                return
            stood = given[0].movedim(given[1], (0, 1)).flatten(2)
            places = list(self.looked[stood.shape[1]])
            picked = self._project(stood[torch.arange(len(places)), places])
            self.calls.append(_Call(name, stood.shape[1], picked, begun))

        return record

    def note_state(self, _module: Any, _args: Any, output: Any) -> None:
        """Note what is as long as the encoder's output."""
        for tensor in floating(output)[:1]:
            axes = self.axes(tensor)
            if axes is not None and tensor.dim() == 3 and tensor.shape[axes[1]] == self.source:
                self.states.append((len(self.calls), get_gradient_edge(tensor)))

    def _project(self, tensor: torch.Tensor) -> torch.Tensor:
        return finite(tensor).mul(projection(self.probe, tensor.shape[-1]).to(tensor)).sum()

    def footprint(self, call: _Call) -> Footprint:
        """The gradients within one call."""
        places = self.looked[call.length]
        edges = [edge for _, edge in call.begun.edges]
        grads = torch.autograd.grad(call.total, edges, retain_graph=True, allow_unused=True)
        matrices: dict[int, torch.Tensor] = {}
        for (n, _), grad in zip(call.begun.edges, grads, strict=True):
            matrix = torch.zeros(len(places), n, dtype=torch.float64)
            if grad is not None:
                shape = list(enumerate(grad.shape))
                along = next(i for i, size in shape if size == n)
                across = next(i for i, size in shape if size == self.rows and i != along)
                stood = grad.detach().movedim((across, along), (0, 1)).flatten(2).abs().amax(2)
                matrix = stood[: len(places)].double().cpu()
            matrices[n] = matrices.get(n, 0) + matrix
        return Footprint(call.module, call.length, places, matrices)

    def memory(self, prints: list[Footprint], logits: torch.Tensor) -> Memory | None:
        """See Memory. The encoder's output is the last result of its length before the first
        module that mixes the decoder's positions begins (ends, where there is none before)."""
        numbered = enumerate(prints)
        first = next((i for i, p in numbered if p.length == self.length and _mixes(p)), -1)
        before = [edge for at, edge in self.states if at <= first]
        if not before:
            return None
        # What it makes of the encoder's output while it runs (keys, values) is no state of it.
        before = before[: self.calls[first].begun.states] or before
        given = {
            call.module: used
            for call in self.calls
            if call.length == self.length
            and call.begun.given is not None
            and (used := self._used(call.begun.given, before[-1])) is not None
        }
        total = self._used(self._project(logits.flatten(2)), before[-1])
        reads: dict[str, bool] = {}
        for call in self.calls:
            if call.length == self.length:
                reads[call.module] = reads.get(call.module, False) or call.begun.vectors
        return None if total is None else Memory(total, given, reads)

    def _used(self, total: torch.Tensor, edge: GradientEdge) -> torch.Tensor | None:
        """(S,): the gradient of a number at what stands at ``edge``."""
        found = torch.autograd.grad(total, [edge], retain_graph=True, allow_unused=True)[0]
        if found is None:
            return None
        along = next(i for i, n in enumerate(found.shape) if n == self.source)
        return found.detach().abs().movedim(along, 0).flatten(1).amax(1).double().cpu()


def _looked_at(probe: Probe, length: int, text: int) -> tuple[int, ...]:
    """Every position of a short text; of a long one some, of one in a large model two."""
    small = probe.subject.small
    if small and text <= 31:
        return tuple(range(length))
    return tuple(dict.fromkeys((*((0,) if small else ()), length // 2, length - 1)))


def _is_positionwise(module: torch.nn.Module) -> bool:
    if type(module) is torch.nn.Sequential:
        return all(map(_is_positionwise, module))
    return isinstance(module, POSITIONWISE)


def _is_watched(probe: Probe, module: torch.nn.Module) -> bool:
    """In a large model, leaves with a weight and a bias are taken for layers like a linear one:
    what they carry from position to position shows in the module around them."""
    if _is_positionwise(module):
        return False
    inner = next(module.children(), None) is not None
    return probe.subject.small or inner or len(list(module.parameters())) > 2


def footprints_of(probe: Probe, length: int, source: int) -> Found:
    watch = _Watch(probe, length, source)
    batch = copies(probe, length, watch.rows, source if probe.subject.decodes else None)
    handles: list[Any] = []
    with probe.running("footprints", grad=True) as subject, uncompiled():
        for parameter in subject.model.parameters():
            parameter.requires_grad_(False)
        for name, module in subject.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if source != length:
                handles.append(module.register_forward_hook(watch.note_state))
            if _is_watched(probe, module):
                after = watch.leave(name or ROOT)
                handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            with contextlib.ExitStack() as stack:
                roles = dict.fromkeys((sequence(probe), "input_ids"))
                lookups = [stack.enter_context(TokenLookup(batch[role])) for role in roles]
                logits = subject(batch).logits
            if not lookups[-1]:
                return Found()
            prints = [watch.footprint(call) for call in watch.calls]
            memory = watch.memory(prints, logits)
            copied = lookups[0] and logits.requires_grad
            copied = copied and logits.shape[:2] == (length + 1, length)
            tokens = diagonal_gradient(probe, logits, lookups[0]) if copied else None
            return Found(prints, memory, tokens)
        finally:
            for handle in handles:
                handle.remove()


def _mixes(footprint: Footprint) -> bool:
    matrix = footprint.own
    if matrix is None:
        return False
    rows = torch.arange(len(footprint.positions))
    apart = matrix.clone()
    apart[rows, list(footprint.positions)] = 0
    return float(apart.max()) > 1e-12 * float(matrix.max())
