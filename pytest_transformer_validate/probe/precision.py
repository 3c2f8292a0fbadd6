"""The model in another precision, and how far that should be from where it is now.

Half precision is held against an error model: the same weights and buffers, rounded, run in
float32 (the reference), and the same once more with the output of every module, the ends of
every softmax and what every choice is made by rounded on the way (the emulation). What the real
run adds to that is what the model's own code does to its numbers.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, error_line, first_line
from pytest_transformer_validate.probe.copies import duplicate, probe_beside, twin_of
from pytest_transformer_validate.probe.forwards import padded_halves
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import (
    ROOT,
    Call,
    first_not_finite,
    traced,
    where_raised,
)
from pytest_transformer_validate.subject.dispatch import Operations
from pytest_transformer_validate.subject.outputs import floating
from pytest_transformer_validate.subject.source import reads_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default
_CHOICES = {
    _aten.topk.default,
    _aten.sort.default,
    _aten.sort.stable,
    _aten.argmax.default,
    _aten.max.dim,
}
_MIXED = ("same dtype", "scalar type", "dtypes to match", "the same type")
_STAY = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
_ROUNDS = {_aten.round, _aten.round_, _aten.floor, _aten.sign, _aten.ceil, _aten.trunc}
_HALVES = {torch.bfloat16, torch.float16}
_SOFTMAX = {_aten._softmax.default, _aten._log_softmax.default}
# bfloat16 tells neighbouring whole numbers apart up to 256, float16 up to 2048.
_LONGEST = 512
_UNDECLARED = _EXACT = 256
_LONGEST_LOOP = 128
_SHORT = 64
_PARTS = 4
_GAIN = 2.0


@dataclass(frozen=True)
class Run:
    """One forward in a precision: logits (B, T, ...) in float32, and their own dtype."""

    logits: torch.Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class Rounding:
    """Errors of one run in half precision, by part of the text.

    ``real`` and ``emulated`` are the usual differences to the reference in each quarter of the
    positions, ``scale`` the size of the reference; ``largest`` is the largest number on the way,
    ``finite`` whether the real logits are finite where the reference is.
    """

    real: tuple[float, ...]
    emulated: tuple[float, ...]
    scale: float
    largest: float
    finite: bool
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class Traits:
    """``rounds`` says that the forward rounds to whole numbers (quantisation), so that small
    errors become steps, ``narrows`` that it computes in half precision whatever the model is
    in (autocast)."""

    rounds: bool
    narrows: bool


class Precision(Passes):
    """Passes of converted copies; each copy is released at the end of its pass."""

    def batch(self, draw: int) -> Batch:
        """The inputs of a draw: long enough for half precision to bite, where that is cheap."""
        probe, subject = self.probe, self.probe.subject
        rows, length = subject.sizes
        if subject.small and not subject.vision:
            wanted = min(subject.max_length or _UNDECLARED, _LONGEST)
            # Positions below 256 are exact in half precision: there is no need for all of them.
            longest = self._longest(wanted) if wanted > _EXACT else min(wanted, _SHORT)
            length = min(longest, _LONGEST_LOOP) if longest > _SHORT and self._loops() else longest
        rows = 1 if length > _SHORT or not subject.small else min(rows, 2)
        return probe.batch(rows, length, "precision", draw)

    @remembered
    def _longest(self, wanted: int) -> int:
        """The wanted length, or a short one where the model does not take as much."""
        if wanted <= _SHORT:
            return wanted
        try:
            self.probe.forward(self.probe.batch(1, wanted, "longest"))
        except Exception:  # noqa: BLE001 - full lengths are for shape_robustness to judge
            return _SHORT
        return wanted

    @remembered
    def _loops(self) -> bool:
        """Whether the forward goes through a text token by token: twice as many operations for
        twice the length."""
        counts = []
        for length in (self.probe.subject.sizes[1], max(1, self.probe.subject.sizes[1] // 2)):
            batch = self.probe.batch(1, length, "loops")
            with self.probe.running("loops") as subject, _TraitReader() as reader:
                subject.call(batch, {})
            counts.append(reader.count)
        return counts[0] > 1.5 * counts[1]

    @remembered
    def half(self, name: str, draw: int) -> Rounding:
        """The model in ``bfloat16`` or ``float16`` against its error model."""
        dtype: torch.dtype = getattr(torch, name)
        batch = self.batch(draw)
        twin = self._rounded(dtype)
        reference = _run(self.probe, twin, batch)
        with _rounding(twin.model, dtype) as sizes:
            emulated = _run(self.probe, twin, batch)
        # Converted in place: the weights are those of a conversion already.
        real = self._in(dtype, batch, lambda: twin.model)
        known = reference.logits.isfinite() & emulated.logits.isfinite()
        return Rounding(
            real=_parts(real.logits - reference.logits, known),
            emulated=_parts(emulated.logits - reference.logits, known),
            scale=max(_parts(reference.logits, known)),
            largest=max(sizes, default=0.0),
            finite=bool(real.logits[known].isfinite().all()),
            dtype=real.dtype,
            length=batch.main.shape[-1],
        )

    @remembered
    def finite_as_it_is(self, name: str) -> bool:
        """Whether the logits in half precision are finite without moving any weight: some
        parametrisations have weights that may not be moved."""
        batch = self.batch(0)
        real = self.converted(getattr(torch, name), batch).logits
        known = self.probe.forward(batch).logits.isfinite()
        return bool(real[known].isfinite().all())

    @remembered
    def double(self, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of one batch in float64 and in the model's own dtype, as it is."""
        rows, length = self.probe.subject.sizes
        rows = min(rows, 2) if self.probe.subject.small else 1
        batch = self.probe.batch(rows, length, "float64", draw)
        own = self.probe.forward(batch).logits
        return self.converted(torch.float64, batch).logits, own

    def converted(self, dtype: torch.dtype, batch: Batch) -> Run:
        """A forward of a copy, as it is, in ``dtype``; see ``_in``."""
        return self._in(dtype, batch, lambda: duplicate(self.probe.subject.model))

    def _in(self, dtype: torch.dtype, batch: Batch, made: Callable[[], torch.nn.Module]) -> Run:
        """A forward of what is ``made``, in ``dtype``. NotApplicable where that raises, and for
        complex weights or buffers, which a conversion makes real."""
        subject = self.probe.subject
        tensors = (*subject.model.named_parameters(), *subject.model.named_buffers())
        unreal = [name for name, tensor in tensors if tensor.is_complex()]
        if unreal:
            raise NotApplicable(f"{unreal[0]} is complex, and .to(dtype) would make it real")
        try:
            return _run(self.probe, _twin(subject, made().to(dtype), dtype), batch)
        except Exception as error:
            name = str(dtype).removeprefix("torch.")
            text = f"does not run in {name}: {error_line(error, 160)}"
            raise NotApplicable(text) from error

    @remembered
    def mixed(self) -> tuple[str | None, str] | None:
        """Where a conversion to bfloat16 leaves numbers of another dtype behind, and what torch
        says. ``None`` where it does not, where the model names modules that stay in float32, or
        where its code never asks for a dtype: then it was written for one alone."""
        subject = self.probe.subject
        kept = any(getattr(subject.model, name, None) for name in _STAY)
        if kept or not any(reads_dtype(module) for module in subject.model.modules()):
            return None
        twin = self._narrowed(torch.bfloat16, as_it_is=True)
        try:
            _run(self.probe, twin, self.batch(0))
        except RuntimeError as error:
            if any(words in str(error) for words in _MIXED):
                line = first_line(error, 160)
                return where_raised(twin.model, error), line
        except Exception:  # noqa: BLE001 - a model need not run in half precision
            return None
        return None

    @remembered
    def padded(self, name: str) -> str | None:
        """The first module that makes the logits of real tokens in half padded texts NaN or
        infinite where float32 does not; ``None`` where they stay finite."""
        probe = self.probe
        if probe.subject.vision:
            return None
        copy = functools.cache(lambda: duplicate(probe.subject.model))
        for batch, finite in self._padded_halves():
            keep = batch["attention_mask"].bool()
            real = self._in(getattr(torch, name), batch, copy).logits.isfinite()
            lost = finite & ~real
            if bool((lost[keep] if lost.shape[:2] == keep.shape else lost).any()):
                twin = self._narrowed(getattr(torch, name), as_it_is=True)
                return first_not_finite(self._calls(twin, batch)) or ROOT
        return None

    @remembered
    def _padded_halves(self) -> list[tuple[Batch, torch.Tensor]]:
        """Half padded texts, and where their logits are finite in float32."""
        probe = self.probe
        batches = padded_halves(probe, probe.batch(2, probe.subject.sizes[1], "padded half"))
        return [(batch, probe.forward(batch).logits.isfinite()) for batch in batches.values()]

    @remembered
    def traits(self) -> Traits:
        """What the forward does to the precision of its numbers by itself."""
        probe = self.probe
        with probe.running("traits") as subject, _TraitReader() as reader:
            subject.call(probe.batch(*subject.sizes, "traits"), {})
        return Traits(reader.rounds, reader.narrows)

    def _narrowed(self, dtype: torch.dtype, *, as_it_is: bool = False) -> Subject:
        """A copy in ``dtype``."""
        subject = self.probe.subject
        model = duplicate(subject.model) if as_it_is else self._copy()
        return _twin(subject, model.to(dtype), dtype)

    def _copy(self) -> torch.nn.Module:
        """A copy; that of a small model has its weights moved at random and made larger, because
        the attention of a model at its start is the same everywhere, whatever the positions."""
        probe = self.probe
        if not probe.subject.small:
            return duplicate(probe.subject.model)
        with probe.noised():
            model = duplicate(probe.subject.model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and parameter.is_floating_point():
                    parameter.mul_(_GAIN)
        return model

    def _rounded(self, dtype: torch.dtype) -> Subject:
        """A copy whose weights and buffers went through ``dtype`` and back."""
        subject = self.probe.subject
        model = self._copy()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point() and not torch.nn.parameter.is_lazy(tensor):
                    tensor.data = tensor.data.to(dtype).to(torch.float32)
        return _twin(subject, model, torch.float32)

    def where_differs(self, name: str, draw: int, factor: float) -> str | None:
        """The first module whose output in half precision is further from the reference than
        ``factor`` times the emulation, though its inputs are not."""
        dtype: torch.dtype = getattr(torch, name)
        batch = self.batch(draw)
        real = self._calls(self._narrowed(dtype), batch)
        twin = self._rounded(dtype)
        reference = self._calls(twin, batch)
        with _rounding(twin.model, dtype):
            emulated = self._calls(twin, batch)
        eps = torch.finfo(dtype).eps
        for a, b, c in zip(real, reference, emulated, strict=False):
            if a.name != b.name:
                return None
            if _further(a.outputs, b.outputs, c.outputs, factor, eps) and not _further(
                a.inputs, b.inputs, c.inputs, factor, eps
            ):
                return a.name
        return None

    def _calls(self, twin: Subject, batch: Batch) -> list[Call]:
        with traced(twin.model) as calls:
            _run(self.probe, twin, batch)
        return calls


def _twin(subject: Subject, model: torch.nn.Module, dtype: torch.dtype) -> Subject:
    twin = twin_of(subject, model)
    twin.dtype = dtype
    return twin


def _run(probe: Probe, twin: Subject, batch: Batch) -> Run:
    mended = MaskDtype() if twin.dtype is torch.float64 else contextlib.nullcontext()
    with mended:
        logits = probe_beside(probe, twin).forward(batch.to(twin.device, twin.dtype)).logits
    wide = logits if logits.dtype is torch.float64 else logits.float()
    return Run(wide, logits.dtype)


def _parts(error: torch.Tensor, known: torch.Tensor) -> tuple[float, ...]:
    """The usual size of an error (B, T, ...) in each quarter of the positions, of one (B, K) in
    all rows: the median of the root mean squares of the positions. A few positions at which a
    choice (an expert, a top-k) falls otherwise are no error of arithmetic."""
    squares = error.masked_fill(~known, 0).double().square()
    flat = squares.reshape(squares.shape[0], squares.shape[1] if squares.dim() > 2 else 1, -1)
    sizes = flat.mean(2).sqrt()
    pieces = sizes.chunk(_PARTS, 1) if sizes.shape[1] >= _PARTS else (sizes,)
    return tuple(float(piece.median()) for piece in pieces)


class MaskDtype(Operations):
    """Gives attention masks the dtype of the queries: with a float32 mask, attention in float64
    silently reads wrong numbers from 16 tokens on (torch 2.13, CPU)."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        mask = named.get("attn_mask")
        if func is _ATTENTION and isinstance(mask, torch.Tensor) and mask.is_floating_point():
            named["attn_mask"] = mask.to(args[0].dtype)
        return func(*args, **named)


class _TraitReader(Operations):
    """Counts operations, and sees roundings and numbers in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = self.narrows = False
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.rounds |= func.overloadpacket in _ROUNDS
            self.narrows |= result.dtype in _HALVES
        return result


class _Softmaxes(Operations):
    """Rounds what goes into a softmax and what comes out, and what a choice is made by."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _CHOICES:
            args = (args[0].to(self.dtype).to(args[0].dtype), *args[1:])
        if func in _SOFTMAX:
            args = (args[0].to(self.dtype).to(args[0].dtype), *args[1:])
            return func(*args, **(kwargs or {})).to(self.dtype).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _rounding(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[list[float]]:
    """Round the floating point outputs of every module; yields their largest magnitudes."""
    sizes: list[float] = []

    def leave(_module: Any, _args: Any, output: Any) -> None:
        for tensor in floating(output):
            if tensor.numel() and tensor.dtype is torch.float32 and tensor.dim():
                finite = tensor.nan_to_num(0.0, 0.0, 0.0)
                # The smallest number of float32, as a mask has it, is no magnitude.
                size = float(finite.abs().max())
                sizes.append(size if size < 1e30 else 0.0)
                if all(tensor.stride()) or tensor.numel() == 1:
                    inference = tensor.is_inference()  # off, the mode records gradients again
                    with torch.inference_mode() if inference else contextlib.nullcontext():
                        tensor.copy_(tensor.to(dtype))

    handles = [
        module.register_forward_hook(leave)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with _Softmaxes(dtype):
            yield sizes
    finally:
        for handle in handles:
            handle.remove()


def _further(
    real: list[torch.Tensor],
    reference: list[torch.Tensor],
    emulated: list[torch.Tensor],
    factor: float,
    eps: float,
) -> bool:
    for narrow, b, c in zip(real, reference, emulated, strict=False):
        if not narrow.shape == b.shape == c.shape or narrow.dim() < 2 or not narrow.numel():
            continue
        a = narrow.float()
        known = b.isfinite() & c.isfinite()
        if not bool(a[known].isfinite().all()):
            return True
        sizes = [_size, _usual] if a.dim() > 2 else [_size]
        for size in sizes:
            if size(a - b, known) > factor * max(size(c - b, known), eps * size(b, known)):
                return True
    return False


def _usual(error: torch.Tensor, known: torch.Tensor) -> float:
    return max(_parts(error, known))


def _size(tensor: torch.Tensor, known: torch.Tensor) -> float:
    return float(tensor.masked_fill(~known, 0).double().square().mean().sqrt())
