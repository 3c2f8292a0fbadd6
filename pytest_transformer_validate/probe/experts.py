"""Experts and the routers that choose among them: which ones no input can reach."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.gradients import plain_gradients
from pytest_transformer_validate.probe.passes import Passes, remembered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.gradients import Gradients

_DRAWS = 12
_CHANCE = 1e-3  # that some expert of a group is left out in all draws by chance


@dataclass(frozen=True)
class Group:
    """The experts of one layer, and the parameters that choose among them.

    ``experts`` holds, for each expert, its name and its parameters; where they are ``stacked``,
    those are the same for all and one slice belongs to each. ``routers`` are parameters with an
    axis of that length.
    """

    experts: tuple[tuple[str, tuple[str, ...]], ...]
    routers: tuple[tuple[str, int], ...]
    stacked: bool = False

    def chosen(self, found: Gradients) -> list[bool]:
        """Which experts some gradient reached."""
        if self.stacked:
            dead = [found.dead_experts.get(name) for name in self.experts[0][1]]
            return [any(d is not None and not d[i] for d in dead) for i in self.numbers]
        return [any(found.norms.get(name) for name in names) for _, names in self.experts]

    @property
    def numbers(self) -> range:
        return range(len(self.experts))


class Experts(Passes):
    """Routed experts, in lists or stacked in one parameter."""

    @remembered
    def never_chosen(self) -> list[str]:
        """Experts that no input reaches, under several draws of inputs and of all parameters, the
        router's outputs being exchanged in each.

        Nothing is said of a group half of which is left out (those are for other inputs, or a
        table chooses that is not filled yet), nor where chance may leave an expert out.
        """
        probe = self.probe
        seen = {group: group.chosen(probe.gradients()) for group in self.groups()}
        open_groups = {g: [chosen] for g, chosen in seen.items() if not all(chosen)}
        for step in range(1, _DRAWS + 1):
            if not open_groups:
                break
            other = type(probe)(probe.subject, seed=probe.seed + step)
            with other.noised(), self._exchanged(step, open_groups):
                found = plain_gradients(other)
            for group, draws in list(open_groups.items()):
                draws.append(group.chosen(found))
                if all(map(any, zip(*draws, strict=True))):
                    del open_groups[group]
            if open_groups and all(map(_certain, open_groups.values())):
                break
        return [
            group.experts[i][0]
            for group, draws in open_groups.items()
            if _certain(draws)
            for i in group.numbers
            if not any(draw[i] for draw in draws)
        ]

    def half_used(self) -> list[str]:
        """Matrices of stacked experts that get no gradient, while another one of the same expert
        does: as they are, and with all parameters moved at random."""
        stacked = [group for group in self.groups() if group.stacked]
        runs = [self.probe.gradients()] if stacked else []
        if any(_half_used(group, runs[0]) for group in stacked):
            runs.append(self.probe.gradients(noised=True))
        left = ([set(_half_used(group, found)) for found in runs] for group in stacked)
        return sorted(name for sets in left for name in set.intersection(*sets))

    @remembered
    def gradients_in_training(self) -> Gradients:
        """Gradients in training mode: some routers draw, or mix more experts, there alone."""
        return plain_gradients(self.probe, training=True)

    @remembered
    def routers(self) -> set[str]:
        """The matrices that choose among experts."""
        shapes = dict(self.probe.subject.model.named_parameters())
        named = {name for group in self.groups() for name, _ in group.routers}
        return {name for name in named if shapes[name].dim() == 2}

    @remembered
    def groups(self) -> list[Group]:
        """Every group of experts beside which a router stands."""
        model = self.probe.subject.model
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        return [*self._lists(shapes), *_stacks(shapes)]

    def _lists(self, shapes: dict[str, tuple[int, ...]]) -> Iterator[Group]:
        for name, module in self.probe.subject.model.named_modules():
            if not isinstance(module, torch.nn.ModuleList) or len(module) < 2:
                continue
            if len({type(child) for child in module}) > 1:
                continue
            inside = [f"{name}.{own}".lstrip(".") for own in module._modules]
            experts = [(e, tuple(n for n in shapes if n.startswith(f"{e}."))) for e in inside]
            around = name.rpartition(".")[0]
            routers = _routers(shapes, around, f"{name}.", len(experts))
            if routers and all(names for _, names in experts):
                yield Group(tuple(experts), routers)

    @contextlib.contextmanager
    def _exchanged(self, step: int, groups: dict[Group, list[list[bool]]]) -> Iterator[None]:
        """The outputs of the routers in another order: what is seldom chosen is so by its place,
        not by its numbers."""
        generator = torch.Generator().manual_seed(self.probe.seed_for("router", step))
        named = dict(self.probe.subject.model.named_parameters())
        originals = []
        try:
            for group in groups:
                order = torch.randperm(len(group.experts), generator=generator)
                for name, axis in group.routers:
                    originals.append((named[name], named[name].data))
                    data = named[name].data
                    named[name].data = data.index_select(axis, order.to(data.device))
            yield
        finally:
            for parameter, data in reversed(originals):
                parameter.data = data


def _half_used(group: Group, found: Gradients) -> list[str]:
    names = [name for name in group.experts[0][1] if name in found.dead_experts]
    return [
        f"{name}[{i}]"
        for i, used in zip(group.numbers, group.chosen(found), strict=True)
        for name in names
        if used and found.dead_experts[name][i]
    ]


def _stacks(shapes: dict[str, tuple[int, ...]]) -> Iterator[Group]:
    """Two or more parameters (E, ., .) of one module, and a router beside it or around it."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in shapes)
    for owner in owners:
        own = {n: s for n, s in shapes.items() if n.rpartition(".")[0] == owner and is_stack(s)}
        for count in dict.fromkeys(s[0] for s in own.values()):
            names = tuple(n for n, s in own.items() if s[0] == count)
            routers = _routers(shapes, owner.rpartition(".")[0], "", count)
            if len(names) > 1 and routers:
                experts = tuple((f"{owner}[{i}]", names) for i in range(count))
                yield Group(experts, routers, stacked=True)


def is_stack(shape: tuple[int, ...]) -> bool:
    """Whether a parameter may hold a matrix for each of several experts."""
    return len(shape) == 3 and shape[0] > 1 and min(shape[1:]) > 3


def _routers(
    shapes: dict[str, tuple[int, ...]], around: str, but: str, count: int
) -> tuple[tuple[str, int], ...]:
    """Matrices around the experts with an axis as long as there are experts, and the vectors
    beside them; empty without a matrix."""
    prefix = f"{around}." if around else ""
    near = {
        n: s for n, s in shapes.items() if n.startswith(prefix) and not (but and n.startswith(but))
    }
    matrices = {n: s.index(count) for n, s in near.items() if len(s) == 2 and count in s}
    beside = {n.rpartition(".")[0] for n in matrices}
    vectors = [n for n, s in near.items() if s == (count,) and n.rpartition(".")[0] in beside]
    return (*matrices.items(), *((n, 0) for n in vectors)) if matrices else ()


def _certain(draws: list[list[bool]]) -> bool:
    """Whether fewer than half are left out in all draws, and chance hardly does that.

    The first entry is from the parameters as they are, the others from exchanged routers.
    """
    count = len(draws[0])
    never = sum(not any(column) for column in zip(*draws, strict=True))
    if not 0 < never < count / 2 or len(draws) < 3:
        return False
    others = [sum(not one for one in draw) - never for draw in draws[1:]]
    rate = max(sum(others), 1) / ((count - never) * len(others))
    return bool(count * rate ** len(others) < _CHANCE)
