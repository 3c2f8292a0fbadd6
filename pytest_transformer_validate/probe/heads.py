"""Heads of one attention beside each other: which give the same, and which share what.

Axes: R rows of one and the same text, H heads, T and S positions, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.attention import Footprints

_MASKED = 1e4  # scores beyond this are masked ones


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding; infinities where the other has them."""
    both = a.isfinite() & b.isfinite()
    if not torch.equal(a[~both], b[~both]):
        return False
    limit = 16 * torch.finfo(a.dtype).eps * float(a[both].abs().max()) if bool(both.any()) else 0.0
    return bool(((a - b)[both].abs() <= limit).all())


def note_twins(
    module: str, kind: str, tensors: dict[str, torch.Tensor], found: Footprints
) -> None:
    """Note two heads that look for the same and give the same numbers."""
    result = tensors["result"]
    looks = tensors["query" if kind == "sdpa" else "scores"]
    if result.dim() != 4 or looks.dim() != 4 or looks.shape[:2] != result.shape[:2]:
        return
    apart = (result[0] - result[0, :1]).abs().flatten(1).amax(1)
    near = ~(apart > 1e-3 * result[0, 0].abs().max())  # no number counts as near
    for head in near.nonzero().flatten().tolist()[1:]:
        a, b = result[0, 0], result[0, head]
        same = _alike(a, b) and _alike(looks[0, 0], looks[0, head])
        shown = looks[0, 0][looks[0, 0].isfinite() & (looks[0, 0].abs() < _MASKED)]
        varied = bool(shown.numel()) and float(shown.std(correction=0)) > 0
        if same and varied and float(a.std(correction=0)) > 0:
            if all(module != other for other, _, _ in found.twins):
                found.twins.append((module, 0, head))
            return


def note_crossed(module: str, tensors: dict[str, torch.Tensor], found: Footprints) -> None:
    """Note keys and values of as many heads each, which are repeated in another order."""
    keys, values = tensors.get("key"), tensors["value"]
    if keys is None or keys.dim() != 4 or keys.shape[:3] != values.shape[:3]:
        return
    of_keys, of_values = (_shared_heads(t[0, :, -1]) for t in (keys, values))
    groups = len(set(of_keys))
    if 1 < groups < len(of_keys) and groups == len(set(of_values)) and of_keys != of_values:
        keyed, valued = ([h for h, one in enumerate(of) if not one] for of in (of_keys, of_values))
        found.crossed.append((module, keyed, valued))


def _shared_heads(vectors: torch.Tensor) -> list[int]:
    """For each head of (H, D) the first one that has the same numbers."""
    same = (vectors[:, None] == vectors[None]).all(-1)
    return [int(row.nonzero()[0]) if bool(row.any()) else -1 for row in same]
