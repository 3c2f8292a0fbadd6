"""Layers of one kind beside each other: what they keep of their input, and what they share."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.alike import like_layers, turns
from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.identities import INSIDE, MOVED, Identity, Moves
from pytest_transformer_validate.probe.passes import Passes, remembered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.subject.batch import Batch

_COUNTS = ("layer", "block", "depth")
_NUMBER = re.compile(r"(n|num|number)_?(of_)?(\w+_)?(layer|block)s?|(\w+_)?(layers|blocks|depth)")
_DECLARES = ("shar", "recur", "reuse", "univers", "group", "loop", "repeat")


@dataclass(frozen=True)
class Shared:
    """Elements of one list that are the same module, or that share ``parameter`` alone."""

    holder: str
    first: str
    second: str
    count: int
    distinct: int
    parameter: str = ""
    declared: str = ""


class Siblings(Passes):
    """Layers compared with those that are built alike in the same list."""

    @remembered
    def alike(self) -> list[list[str]]:
        """See ``alike.like_layers``."""
        return like_layers(self.probe.subject.model)

    def turns(self, module: str) -> tuple[int, ...]:
        """See ``alike.turns``."""
        return turns(self.probe.subject.model, module)

    @remembered
    def identities(self) -> list[list[Identity]]:
        """One forward in which the input of every layer is moved a little at random, and in
        rows of their own what the attention in it gives.

        All rows are the same text; row 0 is left as it is. After each layer its output is put
        back to that of row 0, so that every layer is looked at by itself.
        """
        probe = self.probe
        alike = like_layers(probe.subject.model, rates=False)
        groups = [g for g in alike if self._large(g[0])]
        batch = self._same_rows()
        if batch is None or not groups:
            return []
        layers = {name for group in groups for name in group}
        parts = self._attention_parts(layers) if batch.rows > MOVED else {}
        behind = self._projections(parts)
        seed = functools.partial(probe.seed_for, "identity")
        moves = Moves(groups, parts, behind, batch.rows, seed)
        self._run(moves, batch, {*layers, *parts, *behind})
        kept = [[moves.found[name] for name in group if name in moves.found] for group in groups]
        return [group for group in kept if len(group) > 1]

    def _run(self, moves: Moves, batch: Batch, modules: set[str]) -> None:
        with (
            contextlib.suppress(Exception),  # no model has to take tensors that we exchange
            self.probe.running("identities") as subject,
            hooked(subject.model, moves.enter, moves.leave, modules),
        ):
            subject(batch)

    def of_parts(self, parts: list[str]) -> list[Identity]:
        """What ``identities`` tells of layers, of modules in them."""
        batch = self._same_rows()
        if batch is None:
            return []
        moves = Moves([parts], {}, {}, batch.rows, functools.partial(self.probe.seed_for, "parts"))
        self._run(moves, batch, set(parts))
        return [moves.found[name] for name in parts if name in moves.found]

    def built_for_sums(self, group: Sequence[Identity]) -> bool:
        """Whether each layer holds, outside of its part with attention, a norm and two matrices:
        branches of a residual network are normalised, plain stacks need not be."""
        return all(one.inner and self._beside(one.layer, one.inner.layer) for one in group)

    def _beside(self, layer: str, part: str) -> bool:
        module = self.probe.subject.model.get_submodule(layer)
        inside = part.removeprefix(f"{layer}.")
        normed = any(
            "norm" in type(other).__name__.lower() and not _within(name, inside)
            for name, other in module.named_modules()
        )
        large = [n for n, p in module.named_parameters() if p.dim() > 1 and not _within(n, inside)]
        return normed and len(large) > 1

    def attending(self) -> list[list[Identity]]:
        """Those of ``identities`` in whose layers attention is seen, all others left out."""
        inside = self._attention()
        return [
            group
            for group in self.identities()
            if all(any(_within(name, one.layer) for name in inside) for one in group)
        ]

    @remembered
    def _attention(self) -> list[str]:
        """Modules in which attention is seen."""
        modules = self.probe.subject.model.named_modules()
        torchs = [n for n, m in modules if isinstance(m, torch.nn.MultiheadAttention)]
        return torchs + list(self.probe.attention.footprints().modules)

    def _attention_parts(self, layers: set[str]) -> dict[str, str]:
        """The layer of each module that stands right in one and is, or holds, attention."""
        found: dict[str, str] = {}
        for name in self._attention():
            layer = next((one for one in layers if name.startswith(f"{one}.")), None)
            if layer is not None:
                part = name.removeprefix(f"{layer}.").partition(".")[0]
                found[f"{layer}.{part}"] = layer
        return {part: layer for part, layer in found.items() if part not in layers}

    def _projections(self, parts: dict[str, str]) -> dict[str, str]:
        """The layer of each projection that keeps the width and stands beside one of ``parts``,
        as it does where it is not in the module of attention."""
        model = self.probe.subject.model
        return {
            f"{layer}.{own}": layer
            for layer in set(parts.values())
            for own, child in model.get_submodule(layer).named_children()
            if isinstance(child, torch.nn.Linear) and child.in_features == child.out_features
        }

    def _large(self, layer: str) -> bool:
        module = self.probe.subject.model.get_submodule(layer)
        return sum(p.dim() > 1 for p in module.parameters()) > 1

    def _same_rows(self) -> Batch | None:
        subject = self.probe.subject
        if subject.most_rows < MOVED or subject.dtype.itemsize < 4:
            return None
        batch = self.probe.batch(1, subject.sizes[1], "siblings")
        rows = MOVED + (INSIDE if subject.most_rows >= MOVED + INSIDE else 0)
        return batch.with_(
            **{r: t.expand(rows, *t.shape[1:]).clone() for r, t in batch.inputs.items()}
        )

    @remembered
    def shared(self) -> list[Shared]:
        """Lists that hold one layer several times, and pairs of layers that share one matrix."""
        model = self.probe.subject.model
        found = []
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
                continue
            held = module._modules.items()  # asked for None: not every module has a truth
            children = {f"{name}.{own}".lstrip("."): c for own, c in held if c is not None}
            large = {
                n: c for n, c in children.items() if sum(p.dim() > 1 for p in c.parameters()) > 1
            }
            first = {id(c): n for n, c in reversed(large.items())}
            again = next((n for n, c in large.items() if first[id(c)] != n), None)
            if again is not None:
                found.append(
                    Shared(
                        name,
                        first[id(large[again])],
                        again,
                        len(large),
                        len(first),
                        declared=self.declares(),
                    )
                )
        return found + [s for group in self.probe.drawn.layers() if (s := self._one_matrix(group))]

    def _one_matrix(self, group: list[str]) -> Shared | None:
        """The one matrix that two of three or more layers share, and nobody else does."""
        if len(group) < 3:
            return None
        model = self.probe.subject.model
        own = [dict(model.get_submodule(layer).named_parameters()) for layer in group]
        partly = []
        for inner in own[0]:
            tensors = [layer.get(inner) for layer in own]
            if any(t is None or t.dim() < 2 for t in tensors):
                continue
            ids = [id(t) for t in tensors]
            partly.append((inner, ids))
        odd = [(inner, ids) for inner, ids in partly if len(set(ids)) == len(ids) - 1]
        free = [ids for _, ids in partly if len(set(ids)) == len(ids)]
        if len(odd) != 1 or not free:
            return None
        inner, ids = odd[0]
        second = next(i for i, one in enumerate(ids) if one in ids[:i])
        first = ids.index(ids[second])
        return Shared(
            group[first].rpartition(".")[0],
            group[first],
            group[second],
            len(ids),
            len(ids) - 1,
            inner,
            self.declares(),
        )

    def promised(self, shared: Shared) -> str:
        """What promises as many layers: a key of the configuration, else a number that the model,
        or the module that holds the list, keeps or is made with unless told otherwise."""
        config, model = self.probe.subject.config, self.probe.subject.model
        for key in config:
            if any(word in key.lower() for word in _COUNTS) and config.get(key) == shared.count:
                return key
        parent = shared.holder.rpartition(".")[0]
        for module in (model.get_submodule(parent), model):
            made = inspect.signature(type(module).__init__).parameters.values()
            numbers = [*vars(module).items(), *((p.name, p.default) for p in made)]
            for name, value in numbers:
                if (
                    _NUMBER.fullmatch(name.lower())
                    and type(value) is int
                    and value == shared.count
                ):
                    return name
        return ""

    def declares(self) -> str:
        """What says that layers are shared on purpose: a key of the configuration, or a plain
        attribute of the model, that is not off."""
        config = self.probe.subject.config
        for key in config:
            if any(word in key.lower() for word in _DECLARES) and config.get(key):
                return key
        for module in self.probe.subject.model.modules():
            for name, value in vars(module).items():
                if value is True and any(word in name.lower() for word in _DECLARES):
                    return name
        return ""


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
