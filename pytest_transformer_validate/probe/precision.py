"""The model in another precision, and how far that should be from where it is now.

Half precision is held against an error model: the same weights and buffers, rounded, run in
float32 (the reference), and the same once more with the output of every module, the ends of
every softmax and what every choice is made by rounded on the way (the emulation). What the real
run adds to that is what the model's own code does to its numbers.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from pytest_transformer_validate.errors import NotApplicable, error_line, first_line
from pytest_transformer_validate.probe.compare import joined, some_rows
from pytest_transformer_validate.probe.copies import convertible, probe_beside
from pytest_transformer_validate.probe.forwards import padded_halves
from pytest_transformer_validate.probe.moved_weights import data_kept
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.rounding import MaskDtype, Squares, TraitReader, rounding
from pytest_transformer_validate.probe.settings import settings_kept, settings_of, tell
from pytest_transformer_validate.probe.trace import (
    ROOT,
    Call,
    first_not_finite,
    traced,
    where_raised,
)
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.subject.source import reads_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_MIXED = ("same dtype", "scalar type", "dtypes to match", "the same type")
_ABSENT = "only supported for"  # what torch has not in half precision mixes nothing
_STAY = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
# bfloat16 tells neighbouring whole numbers apart up to 256, float16 up to 2048.
_LONGEST = 512
_UNDECLARED = _EXACT = 256
_LONGEST_LOOP = 128
_SHORT = 64
_PARTS = 4
_COLUMNS = 4096
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
    """Passes of the converted model, which is given back at the end of each."""

    def batch(self, draw: int) -> Batch:
        """The inputs of a draw: long enough for half precision to bite, where that is cheap."""
        probe, subject = self.probe, self.probe.subject
        rows, length = subject.sizes
        if subject.small and not subject.vision:
            wanted = min(subject.max_length or _UNDECLARED, _LONGEST)
            # Positions below 256 are exact in half precision: there is no need for all of them.
            longest = self._longest(wanted) if wanted > _EXACT else min(wanted, _SHORT)
            length = min(longest, _LONGEST_LOOP) if longest > _SHORT and self._loops() else longest
        rows = 1 if length >= _SHORT or not subject.small else min(rows, 2)
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
            with self.probe.running("loops") as subject, TraitReader() as reader:
                subject.call(batch, {})
            counts.append(reader.count)
        return counts[0] > 1.5 * counts[1]

    @remembered
    def half(self, name: str, draw: int, moved: bool = True) -> Rounding:
        """The model in ``bfloat16`` or ``float16`` against its error model, with weights moved as
        ``_convertible`` says, or as it is."""
        dtype: torch.dtype = getattr(torch, name)
        batch = self.batch(draw)
        with self._convertible(rounded=dtype, moved=moved) as beside:
            reference = _run(beside, batch)
            with rounding(beside.subject.model, dtype) as sizes:
                emulated = _run(beside, batch)
            real = self._in(dtype, beside, batch)
        exact, rounded, run = (_some_columns(r.logits) for r in (reference, emulated, real))
        known = exact.isfinite() & rounded.isfinite()
        return Rounding(
            real=_parts(run - exact, known),
            emulated=_parts(rounded - exact, known),
            scale=max(_parts(exact, known)),
            largest=max(sizes, default=0.0),
            finite=_finite_where(real.logits, reference.logits, emulated.logits),
            dtype=real.dtype,
            length=batch.main.shape[-1],
        )

    @remembered
    def largest_square(self, name: str) -> float:
        """The largest square that the code of the model takes of its numbers, in float32 with the
        weights of ``half``."""
        with self._convertible(rounded=getattr(torch, name)) as beside, Squares() as squares:
            _run(beside, self.batch(0))
        return squares.largest

    @remembered
    def finite_as_it_is(self, name: str) -> bool:
        """Whether the logits in half precision are finite without moving any weight: some
        parametrisations have weights that may not be moved."""
        batch = self.batch(0)
        with self._convertible() as beside:
            real = self._in(getattr(torch, name), beside, batch).logits
        known = self.probe.forward(batch).logits.isfinite()
        return bool(real[known].isfinite().all())

    @remembered
    def double(self, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of one batch in float64 and in the model's own dtype, as it is."""
        rows, length = self.probe.subject.sizes
        rows = min(rows, 2) if self.probe.subject.small else 1
        batch = self.probe.batch(rows, length, "float64", draw)
        own = self.probe.forward(batch).logits
        with self._convertible() as beside:
            return self._in(torch.float64, beside, batch).logits, own

    def _in(self, dtype: torch.dtype, beside: Probe, batch: Batch) -> Run:
        """A forward of the model ``beside``, converted to ``dtype``. NotApplicable where that
        raises, and in half precision for complex weights or buffers, of which ``.to(dtype)``
        leaves half."""
        unreal = None if dtype is torch.float64 else self._unreal()
        if unreal is not None:
            raise NotApplicable(f"{unreal} is complex, and .to(dtype) would make it real")
        try:
            _convert(beside.subject, dtype)
            return _run(beside, batch)
        except Exception as error:
            name = str(dtype).removeprefix("torch.")
            text = f"does not run in {name}: {error_line(error, 160)}"
            raise NotApplicable(text) from error

    @remembered
    def _unreal(self) -> str | None:
        """The name of a complex parameter or buffer, if there is one."""
        model = self.probe.subject.model
        tensors = (*model.named_parameters(), *model.named_buffers())
        return next((name for name, tensor in tensors if tensor.is_complex()), None)

    @remembered
    def mixed(self) -> tuple[str | None, str] | None:
        """Where a conversion to bfloat16 leaves numbers of another dtype behind, and what torch
        says. ``None`` where it does not, where the model names modules that stay in float32, or
        where its code never asks for a dtype: then it was written for one alone."""
        subject = self.probe.subject
        kept = any(getattr(subject.model, name, None) for name in _STAY)
        if kept or not any(reads_dtype(module) for module in subject.model.modules()):
            return None
        with self._convertible() as beside:
            try:
                _convert(beside.subject, torch.bfloat16)
                _run(beside, self.batch(0))
            except RuntimeError as error:
                text = str(error)
                if any(words in text for words in _MIXED) and _ABSENT not in text:
                    return where_raised(beside.subject.model, error), first_line(error, 160)
            except Exception:  # noqa: BLE001 - a model need not run in half precision
                return None
        return None

    @remembered
    def padded(self, name: str) -> str | None:
        """The first module that makes the logits of real tokens in half padded texts NaN or
        infinite where float32 does not; ``None`` where they stay finite."""
        padded = None if self.probe.subject.vision else self._half_padded()
        if padded is None:
            return None
        batch, finite = padded
        keep = batch["attention_mask"].bool()
        with self._convertible() as beside:
            real = self._in(getattr(torch, name), beside, batch).logits.isfinite()
            lost = finite & ~real
            if bool((lost[keep] if lost.shape[:2] == keep.shape else lost).any()):
                return first_not_finite(_calls(beside, batch)) or ROOT
        return None

    @remembered
    def _half_padded(self) -> tuple[Batch, torch.Tensor] | None:
        """Texts half of which is padded, right in one and left in the other, and where their
        logits are finite in float32; ``None`` where the model takes no attention mask."""
        probe = self.probe
        batches = padded_halves(probe, probe.batch(2, probe.subject.sizes[1], "padded half"))
        rows = [some_rows(each, row, row + 1) for row, each in enumerate(batches.values())]
        if not rows:
            return None
        batch = joined(*rows)
        return batch, probe.forward(batch).logits.isfinite()

    @remembered
    def traits(self) -> Traits:
        """What the forward does to the precision of its numbers by itself."""
        probe = self.probe
        with probe.running("traits") as subject, TraitReader() as reader:
            subject.call(probe.batch(*subject.sizes, "traits"), {})
        return Traits(reader.rounds, reader.narrows)

    @contextlib.contextmanager
    def _convertible(
        self, *, rounded: torch.dtype | None = None, moved: bool = True
    ) -> Iterator[Probe]:
        """A probe over the model itself, which may be converted: all of it is given back.

        With its weights and buffers ``rounded`` to a dtype, if one is given; those of a small
        model are ``moved`` at random and made larger before that, because the attention of a
        model at its start is the same everywhere, whatever the positions.
        """
        probe, model = self.probe, self.probe.subject.model
        moved = moved and rounded is not None and probe.subject.small
        with probe.noised() if moved else contextlib.nullcontext(), data_kept(model) as kept:
            for tensor, data in kept if rounded else ():
                if data.is_floating_point() and not torch.nn.parameter.is_lazy(tensor):
                    larger = moved and tensor.dim() > 1 and isinstance(tensor, Parameter)
                    numbers = data * _GAIN if larger else data
                    tensor.data = numbers.to(rounded).to(torch.float32)
            told = settings_kept(model, torch.dtype)
            with told, convertible(probe, "precision") as twin:
                yield probe_beside(probe, twin)

    def where_differs(self, name: str, draw: int, factor: float) -> str | None:
        """The first module whose output in half precision is further from the reference than
        ``factor`` times the emulation, though its inputs are not."""
        dtype: torch.dtype = getattr(torch, name)
        batch = self.batch(draw)
        with self._convertible(rounded=dtype) as beside:
            reference = _calls(beside, batch)
            with rounding(beside.subject.model, dtype):
                emulated = _calls(beside, batch)
            _convert(beside.subject, dtype)
            real = _calls(beside, batch)
        eps = torch.finfo(dtype).eps
        for a, b, c in zip(real, reference, emulated, strict=False):
            if a.name != b.name:
                return None
            if _further(a.outputs, b.outputs, c.outputs, factor, eps) and not _further(
                a.inputs, b.inputs, c.inputs, factor, eps
            ):
                return a.name
        return None


def _convert(subject: Subject, dtype: torch.dtype) -> None:
    """Convert the model, and what it was told of its dtype, which ``_convertible`` gives back."""
    convert(subject.model, dtype)
    tell(settings_of(subject.model, torch.dtype), dtype)
    subject.dtype = dtype


def _run(beside: Probe, batch: Batch) -> Run:
    twin = beside.subject
    mended = MaskDtype() if twin.dtype is torch.float64 else contextlib.nullcontext()
    with mended:
        logits = beside.forward(batch.to(twin.device, twin.dtype)).logits
    wide = logits if logits.dtype is torch.float64 else logits.float()
    return Run(wide, logits.dtype)


def _calls(beside: Probe, batch: Batch) -> list[Call]:
    with traced(beside.subject.model) as calls:
        _run(beside, batch)
    return calls


def _some_columns(logits: torch.Tensor) -> torch.Tensor:
    """Every n-th column of wide logits: as good for a mean of squares, in a fraction of the
    time."""
    return logits[..., :: max(1, logits.shape[-1] // _COLUMNS)]


def _finite_where(logits: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether logits are finite wherever all others are."""
    if bool(logits.isfinite().all()):
        return True
    known = torch.stack([other.isfinite() for other in others]).all(0)
    return bool(logits[known].isfinite().all())


def _parts(error: torch.Tensor, known: torch.Tensor) -> tuple[float, ...]:
    """The usual size of an error (B, T, ...) in each quarter of the positions, of one (B, K) in
    all rows: the median of the root mean squares of the positions. A few positions at which a
    choice (an expert, a top-k) falls otherwise are no error of arithmetic."""
    squares = error.masked_fill(~known, 0).double().square()
    flat = squares.reshape(squares.shape[0], squares.shape[1] if squares.dim() > 2 else 1, -1)
    sizes = flat.mean(2).sqrt()
    pieces = sizes.chunk(_PARTS, 1) if sizes.shape[1] >= _PARTS else (sizes,)
    return tuple(float(piece.median()) for piece in pieces)


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
