"""What becomes of the tensor that a part of a layer is given: whether it is added to anything.

Layers written as pairs, ``for attention, feed_forward in layers: x = attention(x) + x``, keep
their residuals outside of their modules, where only the operations show them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.subject.dispatch import uncompiled
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ADDS = {
    torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
}  # fmt: skip
# What computes with a vector as a layer does, and hands it on to nobody.
_READS = {
    torch.nn.functional.linear, torch.nn.functional.layer_norm, torch.nn.functional.rms_norm,
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The parts at one place of every layer, ``name`` with ``*`` for the number of the layer.

    ``kept`` says that some call's input was used again, by the part itself or behind it;
    ``added`` that every call's input was added to something; ``streams`` that every input, but
    the first one, was a sum with the input of the part before it.
    """

    name: str
    first: str
    kept: bool
    added: bool
    streams: bool


@dataclass
class _Call:
    module: str
    given: torch.Tensor
    summed: bool
    open: bool = True
    used: bool = False
    added: bool = False


class Streams(Passes):
    """Passes over layers whose parts stand beside each other."""

    @remembered
    def parts(self) -> list[list[Part]]:
        """The parts of each stack that has two kinds or more, in one forward; none where no
        stack is written so."""
        stacks = self._stacks()
        wanted = {name for stack in stacks for names in stack.values() for name in names}
        if not wanted:
            return []
        calls = self._calls(wanted)
        return [
            [_part(place, [calls[n] for n in names]) for place, names in stack.items()]
            for stack in stacks
            if all(len(calls[n]) == 1 for names in stack.values() for n in names)
        ]

    def added(self, parts: Mapping[str, str]) -> list[str]:
        """Those of ``parts``, each with the layer in which it stands, whose result that layer's
        own code adds to just what it was given; in one forward."""
        probe = self.probe
        watch = _Sums(parts)
        with probe.running("streams") as subject:
            try:
                modules = dict(subject.model.named_modules())
                for layer in dict.fromkeys(parts.values()):
                    watch.hook(layer, modules[layer])
                with uncompiled(), watch:
                    subject.call(probe.batch(min(2, subject.most_rows), subject.sizes[1]), {})
            finally:
                for handle in watch.handles:
                    handle.remove()
        return [part for part in parts if part in watch.found]

    def _stacks(self) -> list[dict[str, list[str]]]:
        """By place, the parts of each list of pairs, or of lists of one length in one module."""
        stacks: list[dict[str, list[str]]] = []
        beside: dict[tuple[str, int], dict[str, list[str]]] = defaultdict(dict)
        for name, module in self.probe.subject.model.named_modules():
            if not isinstance(module, torch.nn.ModuleList) or len(module) < 2:
                continue
            inner = [one for one in module if isinstance(one, torch.nn.ModuleList)]
            if len(inner) == len(module) and len(set(map(len, inner))) == 1:
                places = {
                    f"{name}.*.{part}": [f"{name}.{i}.{part}" for i in range(len(module))]
                    for part in range(len(inner[0]))
                    if all(_computes(layer[part]) for layer in inner)
                }
                stacks.append(places)
            elif not inner and all(map(_computes, module)):
                parent = name.rpartition(".")[0]
                names = [f"{name}.{i}" for i in range(len(module))]
                beside[parent, len(module)][f"{name}.*"] = names
        return [stack for stack in (*stacks, *beside.values()) if len(stack) > 1]

    def _calls(self, wanted: set[str]) -> dict[str, list[_Call]]:
        probe = self.probe
        calls: dict[str, list[_Call]] = defaultdict(list)
        watch = _Watch()
        handles = []
        with probe.running("streams") as subject:
            try:
                for name, module in subject.model.named_modules():
                    if not isinstance(module, torch.jit.ScriptModule):
                        handles += watch.hooks(module, name, calls if name in wanted else None)
                with uncompiled(), watch:
                    subject.call(probe.batch(min(2, subject.most_rows), subject.sizes[1]), {})
            finally:
                for handle in handles:
                    handle.remove()
        return calls


class _Sums(TorchFunctionMode):
    """Which results of parts are added to what their layers were given."""

    def __init__(self, parts: Mapping[str, str]) -> None:
        super().__init__()
        self.parts = parts
        self.found: set[str] = set()
        self.handles: list[Any] = []
        self.running: list[str] = []  # layers, and what stands right in them
        self.given: dict[str, torch.Tensor] = {}
        self.results: dict[int, tuple[str, torch.Tensor]] = {}

    def hook(self, layer: str, module: torch.nn.Module) -> None:
        """Watch a layer and its parts."""
        named = [(layer, module)]
        named += [(f"{layer}.{own}", child) for own, child in module.named_children()]
        for name, one in named:
            if not isinstance(one, torch.jit.ScriptModule):
                enter, leave = self._around(name, layer)
                self.handles.append(one.register_forward_pre_hook(enter, with_kwargs=True))
                self.handles.append(one.register_forward_hook(leave))

    def _around(self, name: str, layer: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(_module: Any, args: Any, kwargs: Any) -> None:
            self.running.append(name)
            for tensor in floating((args, kwargs))[:1] if name == layer else ():
                self.given[layer] = tensor

        def leave(_module: Any, _args: Any, output: Any) -> None:
            self.running.pop()
            for tensor in floating(output)[:1] if name in self.parts else ():
                self.results[id(tensor)] = name, tensor

        return enter, leave

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _ADDS and self.running:
            terms = floating((args, kwargs or {}))
            for part, _ in (self.results[id(t)] for t in terms if id(t) in self.results):
                layer = self.parts[part]
                if self.running[-1] == layer and any(t is self.given[layer] for t in terms):
                    self.found.add(part)
        return func(*args, **(kwargs or {}))


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.sums: dict[int, tuple[torch.Tensor, set[int]]] = {}  # with their terms
        self.results: dict[int, torch.Tensor] = {}  # of modules
        self.calls: dict[int, list[_Call]] = defaultdict(list)
        self.last: _Call | None = None

    def hooks(
        self, module: torch.nn.Module, name: str, calls: dict[str, list[_Call]] | None
    ) -> list[Any]:
        def enter(_module: Any, args: Any, kwargs: Any) -> None:
            self.running.append(name)
            given = floating((args, kwargs))
            if calls is not None and given and given[0].dim() == 3:
                call = self.last = _Call(name, given[0], self._carries(given[0]))
                calls[name].append(call)
                self.calls[id(given[0])].append(call)

        def leave(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            self.running.pop()
            self.results |= {id(tensor): tensor for tensor in floating(output)}
            if calls is not None and calls[name]:
                calls[name][-1].open = False

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor | tuple | list) or isinstance(result, torch.Size):
            return result
        given = floating((args, kwargs or {}))
        for tensor in given:
            for call in self.calls.get(id(tensor), ()):
                self._note(call, func)
        if func in _ADDS and isinstance(result, torch.Tensor):
            self.sums[id(result)] = (result, set(map(id, given)))
        return result

    def _carries(self, given: torch.Tensor) -> bool:
        """Whether it is the sum of what the part before it was given and something else, and no
        module's result."""
        _, terms = self.sums.get(id(given), (given, set()))
        last = None if self.last is None else id(self.last.given)
        return id(given) not in self.results and last in terms

    def _note(self, call: _Call, func: Callable[..., Any]) -> None:
        inside = call.open and self.running[-1:] == [call.module]
        if not call.open or (inside and func not in _READS):
            call.used = True
            call.added = call.added or func in _ADDS


def _computes(module: torch.nn.Module | None) -> bool:
    """Whether it holds two matrices or more, as attention and feed-forward parts do."""
    return module is not None and sum(p.dim() > 1 for p in module.parameters()) > 1


def _part(place: str, calls: list[list[_Call]]) -> Part:
    flat = [call for (call,) in calls]
    return Part(
        name=place,
        first=flat[0].module,
        kept=any(call.used for call in flat),
        added=all(call.added for call in flat),
        streams=all(call.summed for call in flat[1:]),
    )
