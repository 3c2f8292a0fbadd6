"""What a model knows about the order of its tokens, and where it knows it from.

T is the length of the text, D the width of what a module is given.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.compare import (
    axis_of,
    difference,
    finite_logits,
    sequence,
    trace,
)
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.positions import copies
from pytest_transformer_validate.probe.scores import ScoreReader, Scores, along
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.dispatch import uncompiled
from pytest_transformer_validate.subject.outputs import floating
from pytest_transformer_validate.subject.sizes import long_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch


@dataclass(frozen=True)
class Moves:
    """How far a result moved, in units of its largest number, when an order changed."""

    module: str
    relative: float


@dataclass(frozen=True)
class Constant:
    """A text that repeats one token: what differs between positions comes from positions.

    ``entering`` (T, D) is what the first module that mixes positions is given, and ``scores``
    those of every attention; ``module`` is that module.
    """

    module: str
    entering: torch.Tensor
    scores: tuple[Scores, ...]


class _Enough(Exception):
    """Ends a forward of which the rest is not needed."""


class Order(Passes):
    """Runs in which tokens, or positions, change places."""

    @property
    def sides(self) -> dict[str, tuple[str, int]]:
        """Role and length of each sequence: ``text``, and ``source`` where an encoder reads
        one."""
        own = {"text": (sequence(self.probe), self.probe.subject.sizes[1])}
        if not self.probe.subject.decodes:
            return own
        return {"source": ("input_ids", self.probe.mixing.source_length), **own}

    @remembered
    def by_tokens(self, side: str, module: str, condition: str) -> Moves:
        """How far the last position in ``module``'s result moves when all tokens before it
        change places."""
        batch = self._text()
        with self.probe.under(condition):
            before = self._last(side, module, batch)
            after = self._last(side, module, self._reversed(side, batch))
        return Moves(module, _relative(before, after))

    @remembered
    def by_modules(self, side: str, modules: tuple[str, ...], condition: str) -> list[Moves]:
        """The same inside each module: the vectors that it is given change places before the
        last, everything else it is given (positions, masks) stays."""
        found: list[Moves] = []
        probe = self.probe
        role, length = self.sides[side]
        batch = self._text()
        busy = False

        def again(name: str) -> Any:
            def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
                nonlocal busy
                if busy:
                    return
                busy = True
                try:
                    with contextlib.suppress(Exception):  # a module may keep count of its calls
                        given = _rearranged((args, kwargs), length)
                        after = module.forward(*given[0], **given[1])
                        old, new = (_last_of(o, length) for o in (output, after))
                        if old is not None and new is not None:
                            found.append(Moves(name, _relative(old, new)))
                finally:
                    busy = False

            return record

        model = probe.subject.model
        handles = [
            model.get_submodule(name).register_forward_hook(again(name), with_kwargs=True)
            for name in modules
            if name != ROOT
        ]
        try:
            with (
                probe.under(condition),
                probe.running("order", grad=True) as subject,
                uncompiled(),
            ):
                for parameter in subject.model.parameters():
                    parameter.requires_grad_(False)
                with TokenLookup(batch[role]):
                    subject(batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    @remembered
    def by_outputs(self, condition: str) -> float:
        """How far the logits at the last position, or of a text, move when all tokens but the
        first and the last change places, in units of the largest logit."""
        probe = self.probe
        batch = self._text()
        with probe.under(condition):
            before = finite_logits(probe, batch)
            after = finite_logits(probe, self._reversed("text", batch, first=1))
        if before.dim() > 2:
            before, after = before[:, -1], after[:, -1]
        return _relative(before, after)

    @remembered
    def by_patches(self, size: int, condition: str) -> float:
        """How far the logits of images move when their tiles of ``size`` change places, in units
        of the largest logit."""
        probe = self.probe
        batch = probe.batch(min(3, probe.subject.most_rows), 1, "order")
        pixels = batch["pixel_values"]
        high, wide = (n // size for n in pixels.shape[2:])
        order = torch.randperm(high * wide, generator=_generator(probe))
        inner = pixels[:, :, : high * size, : wide * size]
        tiles = inner.unfold(2, size, size).unfold(3, size, size).flatten(2, 3)[:, :, order]
        moved = tiles.unflatten(2, (high, wide)).permute(0, 1, 2, 4, 3, 5)
        changed = pixels.clone()
        changed[:, :, : high * size, : wide * size] = moved.reshape(inner.shape)
        with probe.under(condition):
            before = finite_logits(probe, batch)
            after = finite_logits(probe, batch.with_(pixel_values=changed))
        return _relative(before, after)

    @remembered
    def constant(self, side: str, module: str, condition: str) -> Constant | None:
        """See Constant; ``None`` where the module is not given (T, D)."""
        probe = self.probe
        length = self.sides[side][1]
        batch = self._repeated(side, length)
        reader = ScoreReader(probe.subject.model, length)
        with (
            probe.under(condition),
            probe.running("order", grad=True) as subject,
            _entering(subject.model, module, length) as entered,
            reader.watching(),
        ):
            subject(batch)
        if not entered:
            return None
        return Constant(module, entered[0], tuple(reader.found))

    def scores(self, side: str) -> tuple[Scores, ...]:
        """The scores of every self-attention over one text; none where the model does not run
        that way."""
        return self._read(side)[0]

    @property
    def long_length(self) -> int:
        """Length of the text for ``long_scores``."""
        subject = self.probe.subject
        most = 128 if subject.small else 48
        return long_text(subject.model, subject.max_length, most, subject.multiple)

    @remembered
    def long_scores(self, length: int, condition: str) -> tuple[Scores, ...]:
        """``scores`` over one text of another length."""
        probe = self.probe
        reader = ScoreReader(probe.subject.model, length)
        try:
            with (
                probe.under(condition),
                probe.running("order", grad=True) as subject,  # else torch's layers fuse it all
                reader.watching(),
            ):
                subject(copies(probe, length, 1))
        except Exception:  # noqa: BLE001 - causality says what a long text raises
            return ()
        return tuple(reader.found)

    def compares(self, side: str) -> bool:
        """Whether anything compares positions with each other; yes where that cannot be seen."""
        return self._read(side)[1]

    @remembered
    def _read(self, side: str) -> tuple[tuple[Scores, ...], bool]:
        reader = ScoreReader(self.probe.subject.model, self.sides[side][1])
        try:
            with self.probe.running("order", grad=True) as subject, reader.watching():
                subject(self._text())
        except Exception:  # noqa: BLE001 - an operation need not run while it is watched
            return (), True
        return tuple(reader.found), reader.compares

    @remembered
    def entering(self, side: str, module: str, length: int) -> torch.Tensor | None:
        """(T, D): what ``module`` is given of a text of ``length`` that repeats one token; the
        rest of the forward is not run."""
        probe = self.probe
        batch = self._repeated(side, length)
        with (
            probe.running("order") as subject,
            _entering(subject.model, module, length, stop=True) as entered,
            contextlib.suppress(_Enough),
        ):
            subject(batch)
        return entered[0] if entered else None

    @remembered
    def shifted(self, by: int) -> tuple[float, torch.Tensor]:
        """How far the logits move when all ``position_ids`` are larger by ``by``; and the
        logits."""
        probe = self.probe
        batch = self._text()
        ids = batch[sequence(probe)]
        steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        before = finite_logits(probe, batch.with_(position_ids=steps))
        after = finite_logits(probe, batch.with_(position_ids=steps + by))
        return float(difference(before, after).max()), before

    def first_same(self, side: str, module: str, length: int, one: int, two: int) -> str:
        """The first module that is given nothing that depends on tokens alone and gives two
        positions one vector (a table of positions); else ``module``."""
        probe = self.probe
        for call in trace(probe, self._repeated(side, length)):
            if call.name == module:
                break
            for tensor in call.outputs:
                axis = axis_of(tensor, length)
                if axis is None:
                    continue
                apart = (tensor.select(axis, one) - tensor.select(axis, two)).abs().max()
                varies = (tensor - tensor.narrow(axis, 0, 1)).abs().max()
                if float(apart) <= 1e-7 * float(tensor.abs().max()) < float(varies):
                    return call.name
        return module

    def promised_module(self, promise: str) -> str | None:
        """The module of that name, or that holds a tensor of it."""
        model = self.probe.subject.model
        modules = dict(model.named_modules())
        name = promise.partition(",")[0]
        if name in modules:
            return name
        holder, _, own = name.rpartition(".")
        return (holder or ROOT) if hasattr(modules.get(holder), own) else None

    def _text(self) -> Batch:
        probe = self.probe
        source = self.sides["source"][1] if probe.subject.decodes else None
        return probe.batch(1, probe.subject.sizes[1], "order", source=source)

    def _repeated(self, side: str, length: int) -> Batch:
        """A text that repeats one token, of ``length`` tokens on that side."""
        probe = self.probe
        role = self.sides[side][0]
        if side == "source":
            batch = probe.batch(1, probe.subject.sizes[1], "order", source=length)
        else:
            source = self.sides["source"][1] if probe.subject.decodes else None
            batch = probe.batch(1, length, "order", source=source)
        return batch.with_(**{role: batch[role][:, :1].expand(1, length).clone()})

    def _reversed(self, side: str, batch: Batch, first: int = 0) -> Batch:
        role = self.sides[side][0]
        ids = batch[role].clone()
        ids[:, first:-1] = ids[:, first:-1].flip(1)
        return batch.with_(**{role: ids})

    def _last(self, side: str, module: str, batch: Batch) -> torch.Tensor:
        """The last position of what ``module`` gives."""
        length = self.sides[side][1]
        found: list[torch.Tensor] = []

        def record(_module: Any, _args: Any, output: Any) -> None:
            last = _last_of(output, length)
            if last is not None:
                found.append(last)
                raise _Enough

        with self.probe.running("order", grad=True) as subject, uncompiled():
            place = subject.model.get_submodule("" if module == ROOT else module)
            handle = place.register_forward_hook(record)
            try:
                with contextlib.suppress(_Enough):
                    subject(batch)
            finally:
                handle.remove()
        return found[0]


@contextlib.contextmanager
def _entering(
    model: torch.nn.Module, module: str, length: int, *, stop: bool = False
) -> Iterator[list[torch.Tensor]]:
    """What ``module`` is given first, (T, D)."""
    found: list[torch.Tensor] = []

    def record(_module: Any, args: Any, kwargs: Any) -> None:
        given = (along(t, length) for t in floating((args, kwargs)))
        first = next((t for t in given if t is not None), None)
        if first is not None and not found:
            found.append(first.clone())
        if stop:
            raise _Enough

    place = model.get_submodule("" if module == ROOT else module)
    handle = place.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with uncompiled():
            yield found
    finally:
        handle.remove()


def _rearranged(value: Any, length: int) -> Any:
    """The same nest with every (1, T, D) that depends on tokens in another order, but the last."""
    if isinstance(value, torch.Tensor):
        axis = axis_of(value, length)
        if not value.requires_grad or value.dim() != 3 or axis is None or axis > 1:
            return value
        order = [*range(length - 2, -1, -1), length - 1]
        return value.detach().index_select(axis, torch.tensor(order, device=value.device))
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_rearranged(item, length) for item in value)
    if isinstance(value, dict):
        return {name: _rearranged(item, length) for name, item in value.items()}
    return value


def _last_of(output: Any, length: int) -> torch.Tensor | None:
    tensors = (t for t in floating(output) if t.dim() > 1)
    found = next((t for t in tensors if axis_of(t, length) is not None), None)
    axis = None if found is None else axis_of(found, length)
    if found is None or axis is None:
        return None
    return found.detach().select(axis, length - 1).clone()


def _relative(before: torch.Tensor, after: torch.Tensor) -> float:
    numbers = before[before.isfinite()]
    scale = float(numbers.abs().max()) if numbers.numel() else 0.0
    if before.shape != after.shape or scale == 0.0:
        return 0.0
    moved = difference(before, after)
    return float(moved[moved.isfinite()].max()) / scale if bool(moved.isfinite().any()) else 0.0


def _generator(probe: Probe) -> torch.Generator:
    return torch.Generator().manual_seed(probe.seed_for("patches"))
