"""Which module of one model stands for which of another, and where they first part.

Modules are paired by name where most names are in both; else those with parameters of their own,
in the order in which they run, where their results have the same shapes; else the repeated blocks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pytest_transformer_validate.probe.trace import ROOT, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    Moved = Callable[[torch.Tensor, torch.Tensor], bool]


@dataclass(frozen=True)
class Pair:
    """One call in each of two models."""

    own: Call
    other: Call

    @property
    def apart(self) -> float:
        """How far the results are apart, of the largest number in the other's."""
        largest = [
            (float((a - b.to(a)).abs().nan_to_num(float("inf")).max()), float(b.abs().max()))
            for a, b in zip(self.own.outputs, self.other.outputs, strict=False)
            if a.shape == b.shape and a.numel()
        ]
        return max((moved / scale if scale else moved for moved, scale in largest), default=0.0)


def align(
    model: nn.Module, calls: list[Call], other: nn.Module, others: list[Call]
) -> tuple[str, list[Pair]]:
    """How the calls of two models were paired (``names``, ``order``, ``blocks``), and the pairs in
    the first one's order; nothing where none of the three fits."""
    for how, own_calls, other_calls in (
        ("order", _with_parameters(model, calls), _with_parameters(other, others)),
        ("blocks", _blocks(model, calls), _blocks(other, others)),
    ):
        if how == "order":
            named = _by_name(calls, others)
            if 2 * len(named) >= len(calls):
                return "names", named
        same = [_shape(a) == _shape(b) for a, b in zip(own_calls, other_calls, strict=False)]
        if own_calls and len(own_calls) == len(other_calls) and all(same):
            return how, [Pair(a, b) for a, b in zip(own_calls, other_calls, strict=True)]
    return "", []


def first_apart(pairs: Sequence[Pair], moved: Moved) -> Pair | None:
    """The first pair whose inputs agree and whose results do not; else the first whose results do
    not agree."""
    for pair in pairs:
        inputs = zip(pair.own.inputs, pair.other.inputs, strict=False)
        outputs = zip(pair.own.outputs, pair.other.outputs, strict=False)
        if _any(outputs, moved) and not _any(inputs, moved):
            return pair
    for pair in pairs:
        if _any(zip(pair.own.outputs, pair.other.outputs, strict=False), moved):
            return pair
    return None


def place(pairs: Sequence[Pair], found: Pair, moved: Moved) -> tuple[str, str]:
    """Where it happens, in both models: the module itself where its inputs agree; where they do
    not, what holds it together with the last one before it that agrees."""
    inputs = zip(found.own.inputs, found.other.inputs, strict=False)
    if not _any(inputs, moved):
        return found.own.name, found.other.name
    before = [p for p in pairs[: pairs.index(found)] if p.own.name != found.own.name]
    if not before:
        return found.own.name, found.other.name
    last = before[-1]
    return _common(last.own.name, found.own.name), _common(last.other.name, found.other.name)


def _any(pairs: object, moved: Moved) -> bool:
    return any(a.shape == b.shape and moved(a, b) for a, b in pairs)  # type: ignore[attr-defined]


def _common(one: str, other: str) -> str:
    """The innermost module that holds both."""
    shared = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared) or ROOT


def _by_name(calls: list[Call], others: list[Call]) -> list[Pair]:
    waiting: dict[str, list[Call]] = defaultdict(list)
    for call in others:
        waiting[call.name].append(call)
    found = []
    for call in calls:
        if waiting[call.name]:
            other = waiting[call.name].pop(0)
            if _shape(call) == _shape(other):
                found.append(Pair(call, other))
    return found


def _with_parameters(model: nn.Module, calls: list[Call]) -> list[Call]:
    own = {
        name or ROOT
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    return [call for call in calls if call.name in own]


def _blocks(model: nn.Module, calls: list[Call]) -> list[Call]:
    """Calls of the modules that stand in a list of several of one class."""
    names = set()
    for above, module in model.named_modules():
        children = dict(module.named_children())
        listed = isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > 1
        if listed and len({type(child) for child in children.values()}) == 1:
            names |= {f"{above}.{name}" if above else name for name in children}
    outer = {n for n in names if not any(n.startswith(f"{o}.") for o in names if o != n)}
    return [call for call in calls if call.name in outer]


def _shape(call: Call) -> tuple[int, ...] | None:
    return tuple(call.outputs[0].shape) if call.outputs else None
