"""Texts whose source is padded, and told to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.subject.masks import SOURCE

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch


def masked_source(probe: Probe, text: Batch) -> Batch:
    """The text with i tokens of padding (up to 4) behind the source of row i, and what tells of
    them; as it is where nothing does."""
    way = probe.padding.tells(SOURCE)
    if way is None:
        return text
    ids = text[SOURCE]
    steps = torch.arange(ids.shape[1], device=ids.device)
    pads = torch.arange(text.rows, device=ids.device).clamp(max=min(4, ids.shape[1] - 2))
    keep = steps[None] < ids.shape[1] - pads[:, None]
    filler = probe.subject.pad_id
    padded = ids if filler is None else ids.masked_fill(~keep, filler)
    return way.tell(text.with_(**{SOURCE: padded}), keep)
