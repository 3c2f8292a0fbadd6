"""Layers of one kind beside each other: what they keep of their input, and what they share."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.alike import like_layers
from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.passes import Passes, remembered

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.batch import Batch

_ROWS = 6
_SLIGHT = 0.1  # of the usual size: such vectors are left out
_STEP = 1e-2  # of the input's size: small enough for a slope, large enough for float32
_COUNTS = ("layer", "block", "depth")
_NUMBER = re.compile(r"(n|num|number)_?(of_)?(\w+_)?(layer|block)s?|(\w+_)?(layers|blocks|depth)")
_DECLARES = ("shar", "recur", "reuse", "univers", "group", "loop", "repeat")


@dataclass(frozen=True)
class Identity:
    """How much of a layer's input is in its output: ``share`` is the mean slope of an output
    number in its own input number, ``relative`` the same with both scaled to size one,
    ``spread`` how uncertain they are (from feature to feature), ``positive`` the part of the
    features with a positive slope; ``handed`` says that the layer was given just what the one
    before it in its list gave, so that nothing is added around it."""

    layer: str
    share: float
    relative: float
    spread: float
    positive: float
    handed: bool = False


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

    @remembered
    def identities(self) -> list[list[Identity]]:
        """One forward in which the input of every layer is moved a little at random.

        All rows are the same text; row 0 is left as it is. After each layer its output is put
        back to that of row 0, so that every layer is looked at by itself.
        """
        probe = self.probe
        groups = [g for g in self.alike() if self._large(g[0])]
        batch = self._same_rows()
        if batch is None or not groups:
            return []
        wanted = {name for group in groups for name in group}
        inputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        found: dict[str, Identity] = {}
        gave: dict[str, torch.Tensor] = {}
        before = {b: a for group in groups for a, b in itertools.pairwise(group)}
        handed: set[str] = set()
        rows = batch.rows

        def enter(name: str, given: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if not given or not _fits(given[0], rows):
                return None
            previous = gave.get(before.get(name, ""))
            if previous is not None and torch.equal(previous, given[0][:1]):
                handed.add(name)
            step = _signs(given[0], probe.seed_for("identity", name))
            inputs[name] = (given[0], step)
            return [given[0] + step, *given[1:]]

        def leave(name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if name not in inputs or not outputs:
                return None
            x, step = inputs.pop(name)
            if outputs[0].shape != x.shape:
                return None
            if name not in found:
                found[name] = _identity(name, x, step, outputs[0], handed=name in handed)
            gave[name] = outputs[0][:1]
            return [outputs[0][:1].expand_as(outputs[0]).clone(), *outputs[1:]]

        with (
            contextlib.suppress(Exception),  # no model has to take tensors that we exchange
            probe.running("identities") as subject,
            hooked(subject.model, enter, leave, wanted),
        ):
            subject(batch)
        kept = [[found[name] for name in group if name in found] for group in groups]
        return [group for group in kept if len(group) > 1]

    def attending(self) -> list[list[Identity]]:
        """Those of ``identities`` in whose layers attention is seen, all others left out."""
        model = self.probe.subject.model
        inside = [
            n for n, m in model.named_modules() if isinstance(m, torch.nn.MultiheadAttention)
        ]
        inside += self.probe.attention.footprints().modules
        return [
            group
            for group in self.identities()
            if all(any(_within(name, one.layer) for name in inside) for one in group)
        ]

    def _large(self, layer: str) -> bool:
        module = self.probe.subject.model.get_submodule(layer)
        return sum(p.dim() > 1 for p in module.parameters()) > 1

    def _same_rows(self) -> Batch | None:
        subject = self.probe.subject
        if subject.most_rows < _ROWS or subject.dtype.itemsize < 4:
            return None
        batch = self.probe.batch(1, subject.sizes[1], "siblings")
        return batch.with_(
            **{r: t.expand(_ROWS, *t.shape[1:]).clone() for r, t in batch.inputs.items()}
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


def _fits(tensor: torch.Tensor, rows: int) -> bool:
    return tensor.dim() == 3 and tensor.shape[0] == rows and tensor.shape[-1] > 7


def _signs(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Random steps of one size in all rows but the first."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, x.shape, generator=generator).mul_(2).sub_(1).to(x)
    signs[0] = 0
    return signs * (_STEP * x[0].square().mean().sqrt())


def _identity(
    name: str, x: torch.Tensor, step: torch.Tensor, y: torch.Tensor, *, handed: bool
) -> Identity:
    sizes = x[0].double().square().mean(-1).sqrt()
    # A norm in the layer blows up a step from a vector that is next to nothing: filled-up places.
    usual = sizes >= _SLIGHT * sizes.square().mean().sqrt()
    step = step[1:, usual].double()
    moved = (y[1:, usual] - y[:1, usual]).double() * step
    slopes = moved.mean((0, 1)) / step.square().mean((0, 1)).clamp_min(1e-30)
    mean, spread = float(slopes.mean()), float(slopes.std()) / len(slopes) ** 0.5
    size = float(x[0].double().square().mean().sqrt() / y[0].double().square().mean().sqrt())
    positive = float((slopes > 0).double().mean())
    return Identity(name, mean, mean * size, spread, positive, handed)
