"""Texts of several lengths, padded to one, against the same texts as they are.

Axes: B batch, T positions of the ids that are padded, V outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.probe.compare import without_nan
from pytest_transformer_validate.probe.padding import HIDDEN, Padding, gap, nan_first
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.real_tokens import blanked, real_positions
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import complete
from pytest_transformer_validate.subject.masks import SOURCE, Way, padding_id

_LONGEST = 512


@dataclass(frozen=True)
class Lengths:
    """Texts of several lengths, padded to one, against the same texts as they are.

    ``moved[i]`` is how far the outputs of row ``i`` (real tokens) are from those of the unpadded
    text; ``reference`` holds the unpadded outputs (n, V); ``padded`` and ``alone`` are the batches
    of the worst row's comparison.
    """

    condition: str
    covers: str
    side: str
    moved: list[float]
    lengths: list[int]
    size: int
    reference: torch.Tensor
    padded: Batch
    alone: Batch
    rows: list[int]


class PaddedTexts(Passes):
    """Passes with padded texts, for the ids called ``covers``."""

    @property
    def filler(self) -> int | None:
        """The id that fills up texts, if one is known."""
        return padding_id(self.probe.subject)

    @property
    def padding(self) -> Padding:
        """How the model is told about padding."""
        return self.probe.padding

    @remembered
    def lengths(
        self,
        covers: str,
        plan: str,
        side: str,
        condition: str,
        *,
        blank: bool = False,
        filler: int | None = None,
        positions: bool = True,
    ) -> Lengths:
        """Pad texts on one ``side`` and compare with the texts alone.

        ``plan`` is ``mixed`` (rows of different lengths), ``few`` of them, ``equal`` (all rows
        alike: where a mask says so, what is under it is asked about alone) or ``long``
        (near the longest text). Lengths that the model cannot take alone are left out. With a
        ``filler`` that id fills them up, and no mask tells of it. Where forward takes positions
        they are given for texts padded on the left, unless ``positions`` says not to.
        """
        if self.probe.subject.sizes[1] < 2 * HIDDEN:
            raise NotApplicable("texts are too short to be padded")
        way = self.padding.tells(covers) if filler is None else None
        given = self._given(covers, plan)
        size = given[covers].shape[1]
        lengths = {
            "mixed": [size - 1, 3, size],
            "few": [size // 2 + 1, size],
            "equal": [size - 3] * 3,
            "long": [size - 2, size // 2],
        }[plan][: given.rows]
        if way is not None and way.counts and given.rows > 1:
            lengths = [size, *sorted(lengths, reverse=True)[1:]]
        places = positions and side == "left" and self.padding.takes_positions
        padded, keep = self._padded(given, covers, lengths, side, way, filler, places)
        moved = [0.0] * given.rows
        groups: dict[int, Batch] = {}
        references = []
        with self.padding.under(condition):
            with blanked(keep if blank else None):
                outputs = self.padding.by_row(padded, covers)
            for length in dict.fromkeys(lengths):
                rows = [row for row, own in enumerate(lengths) if own == length]
                groups[length] = self._alone(given, covers, rows, length, way, places)
                told = side if places else ""
                try:
                    reference = self._as_it_is(
                        groups[length], covers, plan, length, told, condition, filler is None
                    )
                except Exception:
                    if length == size or len(set(lengths)) == 1:
                        raise
                    continue  # which lengths a model has to take is not asked here
                references.append(reference.flatten(0, 1))
                for row, own in zip(rows, reference, strict=True):
                    real = outputs[row]
                    if len(real) == size != len(own):
                        real = real[keep[row]]
                    moved[row] = gap(own, real)
        worst = moved.index(max(moved, key=nan_first))
        return Lengths(
            condition=condition,
            side=side,
            moved=moved,
            lengths=lengths,
            size=size,
            reference=torch.cat(references),
            covers=covers,
            padded=padded,
            alone=groups[lengths[worst]],
            rows=[row for row, own in enumerate(lengths) if own == lengths[worst]],
        )

    @remembered
    def pads_left(self, plan: str, *, positions: bool) -> bool:
        """Whether texts padded on the left give what the texts alone give, with ``positions`` or
        with nothing but a mask to tell of it."""
        found = self.lengths(SOURCE, plan, "left", "plain", positions=positions)
        u = torch.finfo(found.reference.dtype).eps * float(found.reference.abs().max())
        return max(found.moved, key=nan_first) <= 64 * u

    @property
    def longest(self) -> int | None:
        """The longest text that is worth padding, where there is one."""
        subject = self.probe.subject
        most = subject.max_length
        near = subject.small and most is not None and subject.sizes[1] < most <= _LONGEST
        return most if near else None

    def _given(self, covers: str, plan: str) -> Batch:
        """The texts before they are cut."""
        subject = self.probe.subject
        rows, length = subject.sizes
        if plan != "long" or self.longest is None:
            rows = min(rows, 2 if plan == "few" else 3)
            return self.probe.batch(rows, length, "lengths", plan)
        source = self.longest if covers == SOURCE else None
        length = length if subject.decodes and covers == SOURCE else self.longest
        return self.probe.batch(min(2, rows), length, "lengths", plan, source=source)

    def _padded(
        self,
        given: Batch,
        covers: str,
        lengths: list[int],
        side: str,
        way: Way | None,
        filler: int | None,
        places: bool,
    ) -> tuple[Batch, torch.Tensor]:
        """Every text cut to its length and padded to the size of all, and what is real."""
        ids = given[covers]
        size = ids.shape[1]
        steps = torch.arange(size, device=ids.device).expand_as(ids)
        count = torch.tensor(lengths, device=ids.device)[:, None]
        keep = steps < count if side == "right" else steps >= size - count
        source = steps if side == "right" else steps - (size - count)
        texts = self._cut(ids, lengths).gather(1, source.clamp(min=0))
        if filler is None:
            filler = int(ids[0, 0]) if self.filler is None else self.filler
        told = self._with_ids(given, covers, texts.masked_fill(~keep, filler))
        return self._told(told, keep, way, places), keep

    def _alone(
        self,
        given: Batch,
        covers: str,
        rows: list[int],
        length: int,
        way: Way | None,
        places: bool,
    ) -> Batch:
        """The texts of one length, without padding."""
        chosen = Batch({role: t[rows] for role, t in given.inputs.items()})
        texts = self._cut(chosen[covers], [length] * len(rows))[:, :length].contiguous()
        told = self._with_ids(chosen, covers, texts)
        keep = torch.ones_like(texts, dtype=torch.bool)
        return self._told(told, keep, way, places)

    def _as_it_is(self, alone: Batch, covers: str, *case: object) -> torch.Tensor:
        """The outputs of texts without padding, once for each ``case``."""
        key = ("PaddedTexts.as_it_is", covers, *case)
        return self.probe.remember(key, lambda: without_nan(self.padding.by_row(alone, covers)))

    def _cut(self, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Texts that end where they are cut, with an end id where there is one."""
        if not self.probe.subject.ends:
            return ids
        ids, ends = ids.clone(), ids[:, -1].clone()
        for row, length in enumerate(lengths):
            ids[row, -1] = ids[row, 0]
            ids[row, length - 1] = ends[row]
        return ids

    def _with_ids(self, given: Batch, covers: str, ids: torch.Tensor) -> Batch:
        roles = {role: given[role] for role in self.padding.sequences}
        return complete(self.probe.subject, Batch({**roles, covers: ids})).to(ids.device)

    def _told(self, batch: Batch, keep: torch.Tensor, way: Way | None, places: bool) -> Batch:
        if places:
            batch = batch.with_(position_ids=real_positions(keep))
        return batch if way is None else way.tell(batch, keep)
