"""Which parameters a gradient reaches, and which modules ran."""

from __future__ import annotations

import contextlib
import math
import statistics
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.backward import (
    as_real,
    differentiate,
    gradient_norms,
    reached_beside,
)
from pytest_transformer_validate.probe.by_hand import functions_behind, written
from pytest_transformer_validate.subject.images import larger_images
from pytest_transformer_validate.subject.inputs import with_special
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.outputs import Output


CUTS = {
    torch.Tensor.detach, torch.Tensor.detach_, torch.detach, torch.detach_,
    torch.Tensor.data.__get__,  # type: ignore[attr-defined]
}  # fmt: skip
_LONG, _FAR = 64, 192  # tokens of a text that is cheap, and of one that is asked for in doubt
_WHOLE = 4096  # tokens that a model may ask for in training mode
_SPECIAL = 1  # the batch that holds special ids (padding, end)
_DIRECTIONS = 3  # a batch; six numbers agree by chance about once in 1e12
_DOUBTFUL = 1e-3  # of the median norm: larger gradients are never taken for rounding


@dataclass
class Gradients:
    """The union over several batches.

    ``norms`` holds, for each parameter that asks for a gradient, the largest gradient norm seen,
    ``None`` where autograd never reached it; ``beside`` those that get one from a result which is
    returned beside the one that is used: by the model beside its logits, or by a module with
    several results (a pooled state that this head does not read); ``elsewhere`` those that get
    one at any position that is not read; ``used`` the parameters that some operation read;
    ``tokens`` for each module that ran, how many vectors each of its calls was given; ``selects``
    the modules that return whole numbers only (indices of a choice);
    ``only_padding`` the embeddings that were given nothing but their padding row; ``not_finite``
    parameters whose gradient held NaN or infinity; ``unregistered`` counts parameters that get
    one and are not the model's. ``sketches`` are projections of small gradients on fixed
    random directions (with moved parameters only): two runs that compute the same gradient
    have the same sketch, two that round differently do not. ``cut`` says that a forward took a
    tensor with a gradient out of it (``detach()``, ``.data``), ``inference`` that it ran in
    inference mode, as its own code says; ``by_hand`` that a function with a backward of its
    own stands behind the logits; ``as_one`` are pairs of weights, by name, of which the second
    reads just what the first gives, and less than they could do alone: what is between them is
    wider than what goes in, and than what comes out. ``dead_rows`` marks, for the weight of each
    linear layer, the outputs without a gradient, which stand along ``output_axis``;
    ``dead_experts`` marks the slices (along the first axis) without one in parameters with three
    axes.
    """

    norms: dict[str, float | None] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    selects: set[str] = field(default_factory=set)
    only_padding: dict[str, bool] = field(default_factory=dict)
    sketches: dict[str, list[float]] = field(default_factory=dict)
    unregistered: int = 0
    output_axis: dict[str, int] = field(default_factory=dict)
    dead_rows: dict[str, torch.Tensor] = field(default_factory=dict)
    dead_experts: dict[str, torch.Tensor] = field(default_factory=dict)
    cut: bool = False
    inference: bool = False
    by_hand: bool = False
    as_one: set[tuple[str, str]] = field(default_factory=set)
    not_finite: list[str] = field(default_factory=list)


def gradients(probe: Probe, noised: bool = False) -> Gradients:
    """Backward passes of a random projection of the logits over batches of several lengths.

    In eval mode, so that nothing is dropped; a model that can only be differentiated in training
    mode (reversible layers) is, without its dropout and at full length. ``noised`` moves every
    parameter at random first, so that what starts at zero (gates, residual projections) passes
    gradients on.
    """
    with probe.noised() if noised else contextlib.nullcontext():
        try:
            return _gradients(probe, _shapes(probe), training=False, thorough=noised)
        except Exception:
            longest = probe.subject.max_length
            if longest is None or longest > _WHOLE:
                raise
            with contextlib.suppress(Exception):  # the first exception tells more
                return _gradients(probe, [(2, longest)], training=True, thorough=noised)
            raise


def long_gradients(probe: Probe) -> Gradients | None:
    """``gradients`` with moved parameters over one text that is longer than those: what joins
    many tokens, or tells far distances apart, has nothing to do before; or over a larger image
    where nobody says how large images are. ``None`` where no text is longer, or the model is
    large."""
    subject = probe.subject
    longest = min(subject.max_length or _FAR, _FAR)
    if not subject.small or longest <= _LONG:
        return None
    with probe.noised(), larger_images(subject):
        try:
            return _gradients(probe, [(1, longest)], training=False, thorough=True)
        except Exception:  # noqa: BLE001 - then the shorter texts have the say
            return None


def _gradients(
    probe: Probe, shapes: list[tuple[int, int]], *, training: bool, thorough: bool
) -> Gradients:
    """``thorough`` keeps the gradient of every module's result, to see which parts are read."""
    model = probe.subject.model
    found = Gradients(output_axis=_output_axes(model))
    for number, (rows, length) in enumerate(shapes):
        source = length if training else None
        batch = probe.batch(rows, length, "gradients", number, source=source)
        if number == _SPECIAL and probe.subject.task.per_token:
            batch = with_special(probe.subject, batch)
        with probe.running("gradients", number, grad=True) as subject:
            _enter_mode(subject.model, training)
            watched = _watched(subject.model, found, thorough=thorough)
            with watched as results, _Reads(subject.model, found.used) as reads:
                output = subject(batch)
            if not found.by_hand and written():
                found.by_hand = bool(functions_behind(output.logits.grad_fn))
            _backward(probe, output, results, found)
            found.unregistered = max(found.unregistered, reads.take_unregistered())
            found.cut |= reads.cut
            found.as_one |= reads.as_one
            found.inference |= output.logits.is_inference()
            if thorough:
                _sketch(probe, number, found)
    return found


def _sketch(probe: Probe, number: int, found: Gradients) -> None:
    norms = [norm for norm in found.norms.values() if norm]
    most = _DOUBTFUL * statistics.median(norms) if norms else 0.0
    for name, parameter in probe.subject.model.named_parameters():
        if parameter.grad is not None and 0 < (found.norms.get(name) or 0.0) < most:
            generator = torch.Generator().manual_seed(probe.seed_for("sketch", name, number))
            grad = as_real(parameter.grad.to_dense()).detach().to("cpu", torch.float64)
            for _ in range(_DIRECTIONS):
                direction = torch.randn(grad.shape, generator=generator, dtype=torch.float64)
                found.sketches.setdefault(name, []).append(float((grad * direction).sum()))


def movement(probe: Probe, parameter: str, size: float = 0.1) -> tuple[float, torch.Tensor]:
    """How far the logits move when a parameter moves by ``size`` (normally distributed), and what
    they were."""
    batch = probe.batch(*probe.subject.sizes, "movement")
    before = probe.forward(batch).logits
    tensor = dict(probe.subject.model.named_parameters())[parameter]
    original = tensor.data
    generator = torch.Generator().manual_seed(probe.seed_for("movement", parameter))
    try:
        tensor.data = original + size * torch.randn(original.shape, generator=generator).to(
            original
        )
        after = probe.forward(batch).logits
    finally:
        tensor.data = original
    both = before.isfinite() & after.isfinite()
    return float((before - after)[both].abs().max()) if bool(both.any()) else 0.0, before


def _enter_mode(model: torch.nn.Module, training: bool) -> None:
    """Training mode, but for dropout; or eval mode from there, since going there also drops what
    modules with a ``train()`` of their own have cached."""
    plain = torch.nn.Module.train
    if not training and all(type(module).train is plain for module in model.modules()):
        return
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.eval()
    if not training:
        model.eval()


def _shapes(probe: Probe) -> list[tuple[int, int]]:
    """Two batches of different lengths: a short one, and one text near the maximum where that is
    cheap, else a shorter one."""
    rows, length = probe.subject.sizes
    longest = min(probe.subject.max_length or 32, _LONG)
    if probe.subject.small and longest > length:
        return [(rows, length), (1, longest)]
    most = probe.subject.most_rows
    return [(rows, length), (min(most, max(2, rows - 2)), max(1, length - 3))]


def _backward(
    probe: Probe, output: Output, results: list[list[torch.Tensor]], found: Gradients
) -> None:
    model = probe.subject.model
    # an empty one (no register tokens) has nothing to learn
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel()}
    differentiate(probe, model, [output.logits])
    for (name, parameter), norm in zip(
        named.items(), gradient_norms(list(named.values())), strict=True
    ):
        if norm is None:
            found.norms.setdefault(name, None)
            continue
        if not math.isfinite(norm) and name not in found.not_finite:
            found.not_finite.append(name)
        _note_dead_rows(name, parameter, found)
        _note_dead_experts(name, parameter, found)
        found.norms[name] = max(found.norms.get(name) or 0.0, norm)
    left = {name: p for name, p in named.items() if not found.norms[name]}
    if left:
        beside, elsewhere = reached_beside(probe, left, output.others, results)
        found.beside |= beside
        found.elsewhere |= elsewhere


def _note_dead_rows(name: str, parameter: torch.nn.Parameter, found: Gradients) -> None:
    """Which outputs of a weight (rows) have no gradient in any batch."""
    grad = parameter.grad
    axis = found.output_axis.get(name)
    known = found.dead_rows.get(name)
    if grad is None or axis is None or grad.is_sparse or (known is not None and not known.any()):
        return
    dead = (grad == 0).all(1 - axis).cpu()
    found.dead_rows[name] = dead if known is None else dead & known


def _note_dead_experts(name: str, parameter: torch.nn.Parameter, found: Gradients) -> None:
    """Which slices of a parameter with three axes have no gradient in any batch."""
    grad = parameter.grad
    if grad is not None and not grad.is_sparse and grad.dim() == 3 and grad.shape[0] > 1:
        dead = grad.flatten(1).eq(0).all(1).cpu()
        found.dead_experts[name] = dead & found.dead_experts.get(name, dead)


def _output_axes(model: torch.nn.Module) -> dict[str, int]:
    """The axis of the outputs in the weights of linear layers (``nn.Linear``, and layers with
    ``nf`` outputs, whose weight stands the other way round).

    Layers with far fewer outputs than inputs are left out: a router gives no gradient to what it
    does not choose.
    """
    axes = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.dim() == 2:
            if isinstance(module, torch.nn.Linear):
                axis = 0
            elif getattr(module, "nf", None) == weight.shape[1]:
                axis = 1
            else:
                continue
            if 2 * weight.shape[axis] >= weight.shape[1 - axis]:
                axes[f"{name}.weight"] = axis
    return axes


@contextlib.contextmanager
def _watched(
    model: torch.nn.Module, found: Gradients, *, thorough: bool
) -> Iterator[list[list[torch.Tensor]]]:
    """Note which modules run, on how many vectors, and which return whole numbers only.

    Gives the results of modules that return several; of all modules where ``thorough``.
    """
    results: list[list[torch.Tensor]] = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                padded = all(
                    bool((ids == module.padding_idx).all())
                    for ids in args
                    if isinstance(ids, torch.Tensor)
                )
                found.only_padding[name] = padded and found.only_padding.get(name, True)
            sizes = found.tokens.setdefault(name, [])
            given = floating((args, kwargs))
            if given and given[0].dim():
                sizes.append(given[0].numel() // max(1, given[0].shape[-1]))
            if isinstance(output, torch.Tensor) and not output.is_floating_point():
                found.selects.add(name)
            several = [t for t in floating(output) if t.requires_grad]
            if len(several) > 1 or (thorough and several):
                for tensor in several:
                    tensor.retain_grad()
                results.append(several)

        return record

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield results
    finally:
        for handle in handles:
            handle.remove()


class _Reads(TorchFunctionMode):
    """Collects the names of parameters that any torch function makes a tensor of."""

    def __init__(self, model: torch.nn.Module, used: set[str]) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.used = used
        self.unregistered: dict[int, torch.nn.Parameter] = {}
        self.cut = False
        self.as_one: set[tuple[str, str]] = set()
        self._linear: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}

    def take_unregistered(self) -> int:
        """How many parameters got a gradient without being the model's; it is taken away."""
        found = [p for p in self.unregistered.values() if p.grad is not None]
        for parameter in found:
            parameter.grad = None
        return len(found)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in CUTS and args[0].requires_grad:
            self.cut = True
        if func is torch.nn.functional.linear and not result.is_inference():
            self._note_linear(result, *args, **(kwargs or {}))
        if isinstance(result, torch.Tensor | tuple | list):
            self._note(args)
            self._note((kwargs or {}).values())
        return result

    def _note_linear(
        self, result: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: Any = None
    ) -> None:
        """The arguments of ``torch.nn.functional.linear``, with what it gave."""
        made, version, first = self._linear.get(id(input), (None, 0, weight))
        if made and made() is input and version == input._version:
            one, two = self.names.get(id(first)), self.names.get(id(weight))
            wide = weight.shape[1] > max(first.shape[1], weight.shape[0])
            if one is not None and two is not None and wide:
                self.as_one.add((one, two))
        self._linear[id(result)] = weakref.ref(result), result._version, weight

    def _note(self, values: Any) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                name = self.names.get(id(value))
                if name is not None:
                    self.used.add(name)
                elif isinstance(value, torch.nn.Parameter) and value.is_leaf:
                    self.unregistered[id(value)] = value
            elif isinstance(value, tuple | list):
                self._note(value)


def plain_gradients(probe: Probe, *, training: bool = False) -> Gradients:
    """``gradients`` with the parameters as they are now, not remembered."""
    return _gradients(probe, _shapes(probe), training=training, thorough=False)
