"""How the weights of a model start: statistics, equal layers and rows, what can never move."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _NormBase

from pytest_transformer_validate.probe.gradients import Gradients, plain_gradients
from pytest_transformer_validate.probe.holders import own_weight
from pytest_transformer_validate.probe.passes import Passes, remembered

if TYPE_CHECKING:
    from collections.abc import Iterator

_HUGE = 1e10  # no initialisation draws such a number; memory that was never written holds it
_SAMPLE = 1_000_000
_PIECE = 1 << 20  # numbers that are centred at a time
_DENORMAL = 1e-30
_LOOKED_AT = 8  # columns that tell whether two rows may be equal, before all are compared
_NEAR = 0.1  # two spreads of the same law in a table of a few hundred numbers
_RULED_OUT = -1e3  # a logit below stands for a label that cannot be
_TURNED = 0.2  # of random numbers; a mean that is taken away turns few
_ROUNDS = 4  # how many steps a chain of zeros may need to wake up


@dataclass(frozen=True)
class Spread:
    """Statistics of one parameter. ``broken`` counts numbers that no initialisation draws: NaN,
    infinity, beyond 1e10, or smaller than 1e-30 and not zero."""

    parameter: str
    shape: tuple[int, ...]
    mean: float
    std: float
    low: float
    high: float
    broken: int
    trains: bool

    @property
    def constant(self) -> bool:
        """Whether every number is the same."""
        return self.low == self.high

    @property
    def matrix(self) -> bool:
        """Whether at least two axes are longer than one."""
        return sum(size > 1 for size in self.shape) > 1


@dataclass(frozen=True)
class Rows:
    """Outputs of one weight that start badly: ``zero`` those whose weights are all the same
    number, ``equal`` those that are copies of another output; of ``total``."""

    parameter: str
    zero: tuple[int, ...]
    equal: tuple[int, ...]
    total: int


class Weights(Passes):
    """The parameters as they are, without running the model but for ``stuck``."""

    @remembered
    def spreads(self) -> dict[str, Spread]:
        """Statistics of every floating point parameter, shared ones once."""
        named = self.probe.subject.model.named_parameters()
        return {
            name: _spread(name, p)
            for name, p in named
            if p.is_floating_point() and p.numel() and not p.is_meta
        }

    def untouched(self) -> bool:
        """Whether the weights look as an initialisation leaves them.

        A quarter or more of the vectors hold one number throughout, or most linear layers stay in
        the bounds of torch's own initialisation: the first steps of training end both.
        """
        spreads = self.spreads().values()
        vectors = [s for s in spreads if s.trains and not s.matrix and max(s.shape or (1,)) > 3]
        constant = [s for s in vectors if s.constant]
        return (len(constant) > 1 and 4 * len(constant) >= len(vectors)) or self.by_default()

    def by_default(self) -> bool:
        """Whether most linear layers are drawn as torch draws them when nobody says otherwise."""
        spreads = self.spreads()
        linear = [(spreads[name], axis) for name, axis in self.linear().items()]
        return 2 * sum(_default(s, axis) for s, axis in linear) > len(linear)

    @remembered
    def layers(self) -> list[list[str]]:
        """Layers of one kind: children of a list that have one class, in their order.

        Layers with fewer than two matrices are left out, and so are the layers of torch's own
        containers, which are copies of one.
        """
        found = []
        for name, module in self.probe.subject.model.named_modules():
            if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
                continue
            kinds: dict[type, list[str]] = {}
            for own, child in module.named_children():
                if sum(p.dim() > 1 for p in child.parameters()) > 1:
                    kinds.setdefault(type(child), []).append(f"{name}.{own}" if name else own)
            found += [layers for layers in kinds.values() if len(layers) > 1]
        return found

    def copied_by_torch(self, layer: str) -> bool:
        """Whether a layer, or the container around its list, is one of torch itself."""
        modules = dict(self.probe.subject.model.named_modules())
        holder = modules[layer.rpartition(".")[0].rpartition(".")[0]]
        kinds = (*type(holder).__mro__, type(modules[layer]))
        return any(kind.__module__ == "torch.nn.modules.transformer" for kind in kinds)

    @remembered
    def twins(self) -> list[tuple[str, str]]:
        """Pairs of layers of one list whose random matrices are all equal, bit for bit."""
        pairs = []
        for layers in self.layers():
            inside = [self._matrices(layer) for layer in layers]
            for first, (layer, own) in enumerate(zip(layers, inside, strict=True)):
                for other, theirs in zip(layers[:first], inside[:first], strict=True):
                    if own and _equal(own, theirs):
                        pairs.append((other, layer))
                        break
        return pairs

    def _matrices(self, layer: str) -> dict[str, torch.Tensor]:
        """The matrices of a layer that train and hold drawn numbers."""
        spreads = self.spreads()
        module = self.probe.subject.model.get_submodule(layer)
        return {
            own: p
            for own, p in module.named_parameters()
            if p.requires_grad
            and (s := spreads.get(f"{layer}.{own}")) is not None
            and s.matrix
            and not s.constant
        }

    @remembered
    def outputs(self) -> list[Rows]:
        """Outputs of linear layers that start without weights of their own."""
        found = []
        named = dict(self.probe.subject.model.named_parameters())
        for name, axis in self.linear().items():
            weight = named[name].detach()
            rows = weight if axis == 0 else weight.T
            if rows.shape[0] > 3 and rows.shape[1] >= _LOOKED_AT and not self._flat(name):
                zero, equal = _odd_rows(rows)
                if zero or equal:
                    found.append(Rows(name, zero, equal, rows.shape[0]))
        return found

    def noisy_norms(self) -> list[str]:
        """Scales of norms that start as noise around zero: what comes out has other signs than
        what goes in. Norms that add one to their weight have not."""
        spreads, found = self.spreads(), []
        for name, module in self.probe.subject.model.named_modules():
            if "norm" not in type(module).__name__.lower() or isinstance(module, _NormBase):
                continue
            own = (f"{name}.{n}" for n, _ in module.named_parameters(recurse=False))
            for spread in (spreads[n] for n in own if n in spreads and "bias" not in n):
                around = spread.low < 0 < spread.high and 2 * abs(spread.mean) < spread.std
                long = not spread.matrix and max(spread.shape, default=1) >= _LOOKED_AT
                if around and long and _turns_signs(module, spread.shape):
                    found.append(spread.parameter)
        return found

    def _flat(self, name: str) -> bool:
        return self.spreads()[name].constant

    @remembered
    def linear(self) -> dict[str, int]:
        """Weights of linear layers that train, and the axis of their outputs."""
        axes = {}
        for name, module in self.probe.subject.model.named_modules():
            weight = own_weight(module)
            fused = getattr(module, "in_proj_weight", None)
            prefix = f"{name}." if name else ""
            if isinstance(module, torch.nn.Linear):
                axes[f"{prefix}weight"] = 0
            elif weight is not None and getattr(module, "nf", None) == weight.shape[-1]:
                axes[f"{prefix}weight"] = 1
            elif isinstance(module, torch.nn.MultiheadAttention) and fused is not None:
                axes[f"{prefix}in_proj_weight"] = 0
        spreads = self.spreads()
        return {n: a for n, a in axes.items() if n in spreads and spreads[n].trains}

    @remembered
    def stuck(self) -> list[str]:
        """Parameters that start at zero and stay there: no gradient reaches them, whatever those
        do that have one, though one would if all were moved."""
        probe = self.probe
        found = probe.gradients()
        zeros = {n for n, s in self.spreads().items() if s.constant and not s.low and s.trains}
        still = {n for n, norm in found.norms.items() if norm == 0.0}
        if not zeros & still:
            return []
        alive = probe.gradients(noised=True)
        still = {n for n in still if alive.norms[n]}
        for step in range(_ROUNDS):
            moving = {n for n in found.norms if n not in still and found.norms[n]}
            with self._moved(moving, step):
                after = plain_gradients(probe)
            awake = {n for n in still if after.norms.get(n)}
            if not awake:
                return sorted(zeros & still)
            still -= awake
            found = Gradients(norms={**found.norms, **{n: after.norms[n] for n in awake}})
            if not zeros & still:
                return []
        return sorted(zeros & still)

    @contextlib.contextmanager
    def _moved(self, names: set[str], step: int) -> Iterator[None]:
        """Only these parameters moved at random, as ``Probe.noised`` moves all."""
        generator = torch.Generator().manual_seed(self.probe.seed_for("moved", step))
        named = self.probe.subject.model.named_parameters()
        originals = [(p, p.data) for n, p in named if n in names]
        try:
            for parameter, data in originals:
                scale = 0.5 / math.sqrt(data[0].numel()) if data.dim() > 1 else 0.1
                parameter.data = data + scale * torch.randn(data.shape, generator=generator).to(
                    data
                )
            yield
        finally:
            for parameter, data in originals:
                parameter.data = data

    def initial_loss(self) -> tuple[float, float, int]:
        """What cross entropy costs on labels that have nothing to do with the inputs, the spread
        of the logits, and how many of them there are. The mean over labels is exact; labels that
        the model rules out (one low number, or none, for all of them) are left out."""
        logits = self.probe.samples().random.double()
        lowest = logits.amin()
        out = ~logits.isfinite() | ((logits == lowest) & (lowest < _RULED_OUT))
        finite = logits.masked_fill(out, float("nan"))
        cost = logits.logsumexp(-1) - finite.nanmean(-1)
        spread = finite - finite.nanmean(-1, keepdim=True)
        std = float(spread.square().nanmean().sqrt())
        return float(cost[cost.isfinite()].mean()), std, logits.shape[-1]

    def asked_for(self, std: float) -> str | None:
        """The key of the configuration that asks for this spread, or leaves it to the model
        (a key that is there and ``None``)."""
        config = self.probe.subject.config
        for key in config:
            if _asks(key.lower()):
                value = config.get(key)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if value is None or (number and abs(std - value) <= _NEAR * std):
                    return key
        return None

    def readers(self, width: int) -> list[Spread]:
        """The matrices that may make ``width`` logits: that of the module which gives them, else
        every one that is as wide."""
        model = self.probe.subject.model
        try:
            place = self.probe.answers.origin().where
        except Exception:  # noqa: BLE001 - a model need not support a graph in eval mode
            place = self.probe.root
        spreads = self.spreads()
        names = {id(p): name for name, p in model.named_parameters()}
        module = None if place == self.probe.root else model.get_submodule(place)
        weight = None if module is None else own_weight(module)
        if weight is not None and width in weight.shape and id(weight) in names:
            return [spreads[names[id(weight)]]]
        return [s for s in spreads.values() if len(s.shape) == 2 and width in s.shape]


def _asks(key: str) -> bool:
    return "init" in key and any(word in key for word in ("std", "range", "factor", "scale"))


def _default(spread: Spread, axis: int) -> bool:
    """Uniform between -1/sqrt(inputs) and 1/sqrt(inputs), or Xavier's bound for fused ones."""
    inputs, outputs = spread.shape[1 - axis], spread.shape[axis]
    bound = max(inputs**-0.5, (6 / (inputs + outputs)) ** 0.5)
    largest = max(-spread.low, spread.high)
    return 0 < largest <= bound * 1.001 and abs(spread.std * 3**0.5 / largest - 1) < _NEAR


def _spread(name: str, parameter: torch.nn.Parameter) -> Spread:
    data = parameter.detach()
    values = data.float() if data.dtype in (torch.float16, torch.bfloat16) else data
    low, high = (float(x) for x in values.aminmax())
    mean = float(values.mean())
    std = 0.0 if low == high else _deviation(values, mean)
    broken = 0
    if not (-_HUGE < low <= high < _HUGE):
        broken = int((~(values.abs() < _HUGE)).sum())
    elif low != high or 0 < abs(low) < _DENORMAL:
        some = values.flatten()[:: 1 + values.numel() // _SAMPLE]
        small = some.abs() < _DENORMAL
        broken = int(small.count_nonzero()) and int((small & (some != 0)).sum())
    shape = tuple(data.shape)
    return Spread(name, shape, mean, std, low, high, broken, parameter.requires_grad)


def _deviation(values: torch.Tensor, mean: float) -> float:
    """The standard deviation; ``torch.std`` takes twenty times as long on a CPU."""
    norms = [float((part - mean).norm()) for part in values.flatten().split(_PIECE)]
    return math.hypot(*norms) / math.sqrt(values.numel())


def _equal(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two layers hold equal numbers in different places."""
    if own.keys() != theirs.keys():
        return False
    pairs = [(own[n], theirs[n]) for n in own]
    if any(a is b or not torch.equal(a, b) for a, b in pairs):
        return False
    return all(_drawn(a) for a, _ in pairs)


def _drawn(matrix: torch.Tensor) -> bool:
    """Whether most numbers of a matrix are different ones, as drawn ones are."""
    sample = matrix.detach().flatten()[:256]
    return 2 * len(sample.unique()) > len(sample)


def _turns_signs(norm: torch.nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether much of what a norm gives, for vectors of random numbers, has another sign than what
    it is given."""
    given = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    given = given.to(next(norm.parameters()))
    try:
        with torch.no_grad():
            result = norm(given)
    except Exception:  # noqa: BLE001 - a norm may take more than vectors
        return False
    return result.shape == given.shape and bool((result * given < 0).float().mean() > _TURNED)


def _odd_rows(rows: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows that hold one number only, and rows that are copies of an earlier one."""
    start = rows[:, :_LOOKED_AT].double()
    flat = (start == start[:, :1]).all(1).nonzero().flatten().tolist()
    constant = [i for i in flat if bool((rows[i] == rows[i, 0]).all())]
    weights = torch.arange(1, _LOOKED_AT + 1, dtype=torch.float64).sqrt().to(start.device)
    keys = (start * weights).sum(1).tolist()
    if not constant and len(set(keys)) == len(keys):
        return (), ()
    seen: dict[float, int] = {}
    equal = []
    left = set(constant)
    for index, key in enumerate(keys):
        if index in left:
            continue
        if key in seen and torch.equal(rows[index], rows[seen[key]]):
            equal.append(index)
        else:
            seen.setdefault(key, index)
    return tuple(constant), tuple(equal)
