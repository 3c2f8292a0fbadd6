"""Layers that are built alike."""

from __future__ import annotations

import re

from torch import nn

_TOLD = (float, bool, str, type(None))
_RATE = re.compile(r"^p$|drop|rate|prob", re.IGNORECASE)

Built = dict[str, tuple[type, tuple[tuple[str, object], ...]]]


def like_layers(model: nn.Module, *, rates: bool = True) -> list[list[str]]:
    """Groups of at least two elements of a list or sequence that are built alike.

    Alike are the same submodules of the same classes (or one derived from the other) with the
    same settings. Whole numbers are no settings: a layer's number is one. Without ``rates`` those
    of dropout are none either: they may rise with the depth.
    """
    groups: list[list[str]] = []
    for name, holder in model.named_modules():
        if not isinstance(holder, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        prefix = f"{name}." if name else ""
        kinds: list[tuple[Built, list[str]]] = []
        for own, layer in holder.named_children():
            built = _built(layer, rates)
            alike = next((names for other, names in kinds if _alike(built, other)), None)
            if alike is None:
                kinds.append((built, [prefix + own]))
            else:
                alike.append(prefix + own)
        groups += [names for _, names in kinds if len(names) > 1]
    return groups


def _built(layer: nn.Module, rates: bool) -> Built:
    return {name: (type(m), _settings(m, rates)) for name, m in layer.named_modules()}


def _settings(module: nn.Module, rates: bool) -> tuple[tuple[str, object], ...]:
    named = sorted((n, v) for n, v in vars(module).items() if type(v) in _TOLD and n != "training")
    if not rates and next(module.parameters(), None) is None:
        named = [(n, v) for n, v in named if type(v) is not float or not _RATE.search(n)]
    return tuple(named)


def _alike(a: Built, b: Built) -> bool:
    return a.keys() == b.keys() and all(
        a[name][1] == b[name][1]
        and (issubclass(a[name][0], b[name][0]) or issubclass(b[name][0], a[name][0]))
        for name in a
    )


def turns(model: nn.Module, name: str) -> tuple[int, ...]:
    """The place of a module in what each list around it repeats: for every number in its name,
    0 in a list of layers of one sort, 1 for the second of every two in one that alternates. A
    list that repeats nothing is one turn, all of whose places differ."""
    found: list[int] = []
    holder = model
    for part in name.split("."):
        if part.isdigit():
            sorts = [_sort(layer) for layer in holder.children()]
            period = next(n for n in range(1, len(sorts) + 1) if sorts[n:] == sorts[:-n])
            found.append([own for own, _ in holder.named_children()].index(part) % period)
        holder = holder.get_submodule(part)
    return tuple(found)


def _sort(layer: nn.Module) -> object:
    """A layer's class; of a bare container, the sorts of what it holds, which it is named for."""
    if type(layer) in {nn.ModuleList, nn.Sequential, nn.ModuleDict}:
        return [_sort(part) for part in layer.children()]
    return type(layer)


def undropped(model: nn.Module) -> list[tuple[str, str]]:
    """Places without dropout in a layer, each with the one of a later layer of the same class
    that has it.

    Only where all others drop the same share: rates that rise with the depth start at zero. And
    not in the last layers, whose output may be meant to stay whole.
    """
    found: list[tuple[str, str]] = []
    for name, holder in model.named_modules():
        if not isinstance(holder, nn.ModuleList | nn.Sequential):
            continue
        prefix = f"{name}." if name else ""
        by_class: dict[type, dict[str, nn.Module]] = {}
        for own, layer in holder.named_children():
            by_class.setdefault(type(layer), {})[prefix + own] = layer
        for layers in by_class.values():
            parts = {name: dict(layer.named_modules()) for name, layer in layers.items()}
            for role in next(iter(parts.values())):
                found += _undropped_in(parts, role)
    return found


def _undropped_in(layers: dict[str, dict[str, nn.Module]], role: str) -> list[tuple[str, str]]:
    rates: dict[str, float] = {}
    for layer, modules in layers.items():
        rate = _rate(modules.get(role))
        if rate is None:
            return []
        rates[f"{layer}.{role}"] = rate
    dropping = [place for place, rate in rates.items() if rate]
    whole = [place for place, rate in rates.items() if not rate]
    if not dropping or len(whole) > len(dropping) or len({rates[p] for p in dropping}) > 1:
        return []
    order = list(rates)
    last = order.index(dropping[-1])
    return [(place, dropping[-1]) for place in whole if order.index(place) < last]


def _rate(module: nn.Module | None) -> float | None:
    """What a dropout drops, nothing for an identity; ``None`` for anything else."""
    if isinstance(module, nn.Identity):
        return 0.0
    return module.p if isinstance(module, nn.modules.dropout._DropoutNd) else None
