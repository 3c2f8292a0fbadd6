"""Causal masks that a model with a cache asks its caller for.

They have a row for each new token (S) and a column for each place in the cache, of which there are
as many as it has room for, or as were filled (L).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.subject.setup import room_for

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.subject import Subject


@dataclass(frozen=True)
class CacheMask:
    """The form of such a mask: its columns reach over the whole ``room`` or what is filled;
    ``axes`` are (S, L), (B, S, L) or (B, 1, S, L); ``values`` say what True or 0 means."""

    room: bool
    axes: int
    values: str

    def make(self, subject: Subject, rows: int, length: int, done: int, size: int) -> torch.Tensor:
        """The mask of ``size`` tokens behind ``done`` cached ones, in caches that were set up for
        a text of ``length``."""
        columns = room_for(subject, length) if self.room else done + size
        steps = torch.arange(done, done + size, device=subject.device)
        keep = torch.arange(columns, device=subject.device) <= steps[:, None]
        if self.axes > 2:
            keep = keep.expand(rows, *(1,) * (self.axes - 3), size, columns)
        if self.values == "add":
            return (
                torch.zeros(keep.shape)
                .masked_fill(~keep.cpu(), float("-inf"))
                .to(subject.device, subject.dtype)
            )
        return keep if self.values == "keep" else ~keep


FORMS = tuple(
    CacheMask(room, axes, values)
    for room, values, axes in itertools.product((True, False), ("keep", "block", "add"), (3, 2, 4))
)
