"""Which tokens each output, and each module, depends on: by gradient, nothing replaced.

Axes: B batch, T positions of the sequence that the output follows, S positions of an encoder's
input, V outputs, K positions looked at.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import cast

import torch

from pytest_transformer_validate.errors import Blocked
from pytest_transformer_validate.probe.compare import (
    difference,
    finite,
    finite_logits,
    over,
    projection,
    sequence,
    text_logits,
    trace,
)
from pytest_transformer_validate.probe.footprints import Footprint, Found, Memory, footprints_of
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.positions import copies, single_gradient
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.images import patch_side
from pytest_transformer_validate.subject.sizes import longer_than


class Mixing(Passes):
    """Dependencies of outputs, and of modules, on tokens. ``condition`` is that of
    ``Probe.under``: ``eval``, or ``noised``."""

    def tokens(self, condition: str) -> torch.Tensor:
        """(T, T): how much the output at k (row) depends on token s (column), by gradient, or,
        where none can be read or none arrives (a part runs under ``no_grad``), by replacing
        tokens."""
        try:
            matrix = self.probe.position_gradients(condition)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            matrix = None
        if matrix is not None and bool(matrix.isfinite().all() and matrix.any()):
            return matrix
        return self._by_swaps(condition)

    @remembered
    def _by_swaps(self, condition: str) -> torch.Tensor:
        length = self.probe.subject.sizes[1]
        before, after = self.swapped(length)
        with self.probe.under(condition):
            old, new = (text_logits(self.probe, b, length) for b in (before, after))
        return difference(old, new).amax(-1).T.double().cpu()

    @remembered
    def text(self, length: int, condition: str, *, topped: bool = False) -> torch.Tensor | None:
        """(T,): gradient of a classifier's outputs at every token, the largest of several
        texts (a maximum over time reads few tokens of one text). ``None`` where no lookup by the
        ids is seen. ``topped`` texts end with the largest id, where some models look."""
        probe = self.probe
        rows = min(8 if probe.subject.small else 2, probe.subject.most_rows)
        batch = probe.batch(rows, length, "mixing", length)
        if topped:
            ids = batch["input_ids"].clone()
            ids[:, -1] = probe.subject.vocab_size - 1
            batch = batch.with_(input_ids=ids)
        with probe.under(condition), probe.running("mixing", grad=True) as subject:
            with TokenLookup(batch["input_ids"]) as lookup:
                logits = subject(batch).logits
            if not lookup:
                return None
            loss = finite(logits).mul(projection(probe, logits.shape[-1]).to(logits)).sum()
            torch.autograd.backward(loss, inputs=lookup.leaves)
            found: torch.Tensor = lookup.gradient().amax(0)
            return found

    @remembered
    def text_swaps(self, length: int, condition: str) -> torch.Tensor:
        """(T,): how far a classifier's outputs move when one token is replaced."""
        probe = self.probe
        before, after = self.swapped(length)
        with probe.under(condition):
            old, new = (finite_logits(probe, b) for b in (before, after))
        return difference(old, new).flatten(1).amax(1).double().cpu()

    def swapped(self, length: int, source: int | None = None) -> tuple[Batch, Batch]:
        """Copies of one text, and the same with another token at position k of row k: of the
        sequence that the output follows, or of an encoder's input of ``source`` tokens."""
        probe, size = self.probe, length if source is None else source
        role = sequence(probe) if source is None else "input_ids"
        before = copies(probe, length, size, source)
        ids = before[role]
        other = ids.clone()
        for trial in range(8):
            same = other == ids
            fresh = probe.batch(size, length, "mixing swaps", trial, source=source)[role]
            other = torch.where(same, fresh.to(ids.device), other)
        own = torch.eye(size, dtype=torch.bool, device=ids.device)
        return before, before.with_(**{role: torch.where(own, other, ids)})

    def losing_patch(self, row: int, column: int) -> str | None:
        """The first module that loses a patch of the image."""
        batch = self.probe.batch(2, 1, "mixing")
        pixels = batch["pixel_values"].clone()
        high, wide = (slice(n * self.patch, (n + 1) * self.patch) for n in (row, column))
        pixels[:, :, high, wide] = pixels[:, :, high, wide].flip(0)
        return self.first_losing(batch, batch.with_(pixel_values=pixels))

    def losing_channel(self, channel: int) -> str | None:
        """The first module that loses a channel of an image."""
        batch = self.probe.batch(2, 1, "mixing")
        pixels = batch["pixel_values"].clone()
        pixels[:, channel] = pixels[:, channel].flip(0)
        return self.first_losing(batch, batch.with_(pixel_values=pixels))

    def first_losing(self, before: Batch, after: Batch) -> str | None:
        """The first module that is given something that differs between two batches and gives
        what does not; ``(model)`` where nothing that a module gives ever differs."""
        seen = False
        for old, new in zip(trace(self.probe, before), trace(self.probe, after), strict=False):
            if old.name != new.name:
                return None
            moved = [
                _any_over(a, b) for a, b in ((old.inputs, new.inputs), (old.outputs, new.outputs))
            ]
            if moved[0] and not moved[1] and old.outputs:
                return old.name
            seen = seen or any(moved)
        return None if seen else ROOT

    @remembered
    def source(self, condition: str) -> torch.Tensor | None:
        """(T, S): gradient of the output at k (row) at token s of the encoder's input."""
        probe = self.probe
        length = probe.subject.sizes[1]
        batch = copies(probe, length, length + 1, self.source_length)
        with probe.under(condition), probe.running("mixing", grad=True) as subject:
            with TokenLookup(batch["input_ids"]) as lookup:
                logits = subject(batch).logits.flatten(2)
            if logits.shape[1] != length:
                raise Blocked(f"logits are {tuple(logits.shape)}: see shape_robustness")
            if not lookup:
                return None
            diagonal = logits.diagonal(dim1=0, dim2=1).T
            weight = projection(probe, logits.shape[-1]).to(logits)
            torch.autograd.backward(finite(diagonal).mul(weight).sum(), inputs=lookup.leaves)
            found: torch.Tensor = lookup.gradient()[:length]
            return found

    @remembered
    def source_swaps(self, condition: str) -> torch.Tensor:
        """(T, S): how far the output at k (row) moves when token s of the encoder's input is
        replaced."""
        before, after = self.swapped(self.probe.subject.sizes[1], self.source_length)
        with self.probe.under(condition):
            old, new = (finite_logits(self.probe, b).flatten(2) for b in (before, after))
        return difference(old, new).amax(-1).T.double().cpu()

    @functools.cached_property
    def source_length(self) -> int:
        """S: a length of which no other axis is; above that of the decoder's text where the
        maximum allows, so that a source cut to that length shows."""
        subject = self.probe.subject
        short, other = subject.sizes[1], subject.other_sizes[1]
        longer = longer_than(subject.model, short, subject.max_length, subject.multiple)
        if longer is not None:
            return longer
        return other if other != short else other + 1

    @remembered
    def last(self, length: int, condition: str) -> torch.Tensor:
        """(T,): gradient of the last output of a text of ``length`` at every token."""
        return single_gradient(self.probe, length, length - 1, condition)

    @remembered
    def pixels(self, condition: str) -> torch.Tensor:
        """(C, H, W): gradient of a few images' outputs at every pixel, the largest."""
        probe = self.probe
        batch = probe.batch(min(4, probe.subject.most_rows), 1, "mixing")
        with probe.under(condition), probe.running("mixing", grad=True) as subject:
            pixels = batch["pixel_values"].requires_grad_()
            logits = subject(batch).logits.flatten(1)
            loss = finite(logits).mul(projection(probe, logits.shape[-1]).to(logits)).sum()
            torch.autograd.backward(loss, inputs=[pixels])
            return cast("torch.Tensor", pixels.grad).abs().amax(0).double().cpu()

    def swaps_of_pixels(self, size: int) -> int:
        """How many forwards ``pixel_swaps`` takes."""
        channels, high, wide = self.probe.batch(2, 1, "mixing")["pixel_values"].shape[1:]
        return int(channels * (high // size) * (wide // size))

    @remembered
    def pixel_swaps(self, size: int, condition: str) -> torch.Tensor:
        """(C, H, W): how far the outputs move when a channel of the patch around a pixel is
        replaced."""
        probe = self.probe
        image, other = probe.batch(2, 1, "mixing")["pixel_values"]
        found = torch.zeros(image.shape, dtype=torch.float64)
        with probe.under(condition):
            old = finite_logits(probe, Batch({"pixel_values": image[None]}))
            corners = (range(0, length - size + 1, size) for length in image.shape[1:])
            for y, x in product(*corners):
                patch = (slice(y, y + size), slice(x, x + size))
                for channel in range(len(image)):
                    changed = image.clone()
                    changed[channel, *patch] = other[channel, *patch]
                    new = finite_logits(probe, Batch({"pixel_values": changed[None]}))
                    found[channel, *patch] = float(difference(old, new).max())
        return found

    def footprints(self, length: int, condition: str) -> list[Footprint]:
        """The footprint of every call of every module, in the order in which calls end; empty
        where no gradient can be read."""
        return self._footprints(length, condition).modules

    def memory(self, condition: str) -> Memory | None:
        """How the encoder's output is used; ``None`` where it cannot be told."""
        return self._footprints(self.probe.subject.sizes[1], condition).memory

    def dependencies(self, condition: str) -> torch.Tensor | None:
        """See ``positions.position_gradients``; ``None`` where the run for the footprints does
        not tell."""
        return self._footprints(self.probe.subject.sizes[1], condition).tokens

    @remembered
    def _footprints(self, length: int, condition: str) -> Found:
        probe = self.probe
        source = self.source_length if probe.subject.decodes else length
        try:
            with probe.under(condition):
                return footprints_of(probe, length, source)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            return Found()

    @functools.cached_property
    def patch(self) -> int:
        """Side of the patches of an image: the stride of the first convolution that has a large
        one, else what is declared or kept as one, else a quarter of the image."""
        probe, model = self.probe, self.probe.subject.model
        side = min(probe.batch(1, 1, "mixing")["pixel_values"].shape[2:])
        strides = [int(m.stride[0]) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
        sides = (*strides, patch_side(model, probe.subject.config) or 0)
        first = next((n for n in sides if 4 <= n <= side // 2), None)
        return first or max(1, side // 4)

    def kind(self, module: str) -> tuple[object, ...]:
        """What modules that are built alike have in common: class, parameters and their
        shapes."""
        found = self.probe.subject.model.get_submodule("" if module == ROOT else module)
        shapes = ((name, tuple(p.shape)) for name, p in found.named_parameters())
        return (type(found), *shapes)


def _any_over(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return any(x.shape != y.shape or over(x, y) for x, y in zip(a, b, strict=False))
