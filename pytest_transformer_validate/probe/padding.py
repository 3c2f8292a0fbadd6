"""How a model is told about padding, and what ids under a mask do to the outputs of real tokens.

Axes: B batch, T positions of the ids that are padded, V outputs. ``keep`` (B, T) is True at real
tokens. A *layout* says where the padding is: ``right`` (rows of different lengths), ``hole`` (some
tokens in the middle, what a causal model has to be given: nothing looks at padding on the right),
``counted`` (where lengths tell: one text without padding, as some models ask for),
``equal_right`` and ``equal_hole`` (all rows alike), ``full_right`` and ``full_hole`` (nothing in
the first row), ``left``. ``blank`` passes have zeros in front of every convolution where padding
is: see ``blanked``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_transformer_validate.errors import Blocked, NotApplicable, error_line
from pytest_transformer_validate.probe.compare import difference, finite_logits
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.real_tokens import blanked, real_positions
from pytest_transformer_validate.subject.declared import declared, special_ids
from pytest_transformer_validate.subject.masks import (
    SOURCE,
    TARGET,
    Way,
    added,
    counts,
    declared_padding,
    padding_id,
    ways,
)
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.batch import Batch

COUNTED = "counted"
HIDDEN = 3  # tokens in a hole; shorter texts than two of them are not padded


@dataclass(frozen=True)
class Content:
    """Ids under a mask replaced, everything else as it was.

    ``moved`` is how far the worst output of a real token moved, ``reference`` holds these outputs
    as they were ``before``.
    """

    way: Way
    layout: str
    condition: str
    moved: float
    reference: torch.Tensor
    keep: torch.Tensor
    before: Batch
    after: Batch


class Padding(Passes):
    """What the model takes, and passes with ids under a mask, for the ids called ``covers``."""

    # What the model takes...

    @property
    def sequences(self) -> tuple[str, ...]:
        """The roles of ids that can be padded."""
        return (SOURCE, TARGET) if self.probe.subject.decodes else (SOURCE,)

    @remembered
    def accepted(self, covers: str) -> tuple[Way | None, str]:
        """The first mask argument that forward takes, else its lengths, and what the first
        refusal said."""
        _ = self.probe.subject.facts  # the forms of what forward requires are found there
        refused, layout = "", self._hiding(covers)
        for way in ways(self.probe.subject, covers):
            try:
                self.logits(way, layout)
            except Exception as error:  # noqa: BLE001 - a model need not take every form
                shape = tuple(way.mask(self.text(covers, layout)[1]).shape)
                refused = refused or f"{way.role} {shape} raised {error_line(error, 150)}"
                continue
            return way, refused
        counted = self.counted(covers)
        if counted is None and layout == "right":
            return self._added(covers), refused
        if counted is None or layout == "right":
            return counted, refused
        seen = "forward looks for its id" if self.compares(covers) else "nothing looks at it"
        return (
            None,
            refused or f"{counted} can tell of padding on the right alone, and there {seen}",
        )

    def _added(self, covers: str) -> Way | None:
        """What hides these ids when it is added to the scores: nothing else tells what a bias,
        or a ``mask`` that hides in no other way, is there for."""
        for way in added(self.probe.subject, covers):
            try:
                found = self.content(way, "right", "plain")
                if self.holds(found) and self.effect(found) > 0:
                    return way
            except Exception:  # noqa: BLE001 - a model need not take every form
                continue
        return None

    @remembered
    def counted(self, covers: str) -> Way | None:
        """The lengths of these ids, where forward takes them."""
        for way in counts(self.probe.subject, covers):
            try:
                self.logits(way, COUNTED)
            except Exception:  # noqa: BLE001 - then it is something else
                continue
            return way
        return None

    def tells(self, covers: str) -> Way | None:
        """What a caller tells of padding on the right by: the mask argument, else lengths."""
        way, _ = self.way(covers)
        return self.counted(covers) if way is None else way

    @remembered
    def way(self, covers: str) -> tuple[Way | None, bool]:
        """The mask argument over ``covers`` as the model reads it, and whether it reads it the
        other way round than its default.

        Judged by what is measured: where ids under the mask leak, and do not when the mask is
        inverted, that is its reading, and so it is where a ``mask`` hides when it is added.
        """
        way, _ = self.accepted(covers)
        if way is None or not way.ones:
            return way, False
        found = self.content(way, self.layout(covers), "plain")
        if self.holds(found):
            return way, False
        other = self.content(way.inverted(), self.layout(covers), "plain")
        if self.holds(other) and self.effect(other) > 0:
            return way.inverted(), True
        named = way.role == "mask" and self.layout(covers) == "right"
        return (self._added(covers) if named else None) or way, False

    def holds(self, content: Content) -> bool:
        """Whether the ids under a mask move nothing (16 u)."""
        u = torch.finfo(content.reference.dtype).eps * float(content.reference.abs().max())
        return content.moved <= 16 * u

    @remembered
    def compares(self, covers: str) -> bool:
        """Whether forward compares these ids with the padding id."""
        pad = padding_id(self.probe.subject)
        if pad is None or pad not in self.probe.subject.facts.compared:
            return False
        return pad in self._compared(covers)

    @remembered
    def _compared(self, covers: str) -> set[int]:
        """The numbers that forward compares these ids with."""
        subject = self.probe.subject
        if not subject.decodes or not subject.facts.compared:
            return set(subject.facts.compared)
        batch = self.texts()
        with (
            self.probe.running("compares"),
            TableReader(subject.model, {covers: batch[covers]}, subject.sizes[1]) as reader,
        ):
            subject.call(batch, {})
        return reader.compared

    @remembered
    def mistaken(self, covers: str) -> tuple[int | None, list[int]]:
        """The declared padding id and, where forward does not look for it, the numbers that it
        looks for instead and that nothing declares to be something else (end, separator, mask)."""
        subject = self.probe.subject
        pad, compared = declared_padding(subject), self._compared(covers)
        if pad is None or pad in compared:
            return pad, []
        begin = declared(subject.config, ("bos_token_id",))
        others = special_ids(subject.config) | {subject.end_id}
        known = {i for i in others if i is not None and i != begin}
        return pad, [i for i in sorted(compared - known) if 0 <= i < subject.vocab_size]

    @remembered
    def told(self, *, lengths: bool = False) -> list[tuple[str, Way | None]]:
        """The roles of ids whose padding can be told, with the mask argument (``None``: by the
        padding id in them); with ``lengths`` also those that lengths tell of.

        What a ``mask`` means is known only where it hides what it covers.
        """
        found: list[tuple[str, Way | None]] = []
        for covers in self.sequences:
            try:
                way, _ = self.accepted(covers)
                if way is not None and not way.fixed:
                    way, _ = self.way(covers)
                if way is not None and way.role == "mask" and not self._hides(way):
                    way = None
                if way is None or not way.ones:
                    way = self.counted(covers) if lengths else None
            except (NotApplicable, Blocked):
                continue
            if way is not None or self.compares(covers):
                found.append((covers, way))
        return found

    def _hides(self, way: Way) -> bool:
        return self.holds(self.content(way, self.layout(way.covers), "plain"))

    @property
    def takes_positions(self) -> bool:
        """Whether forward takes the positions of the tokens."""
        return self.probe.subject.signature.takes("position_ids")

    @property
    def causal(self) -> bool:
        """Whether the task forbids later tokens to matter."""
        return self.probe.subject.task.task_type == "causal_lm"

    def layout(self, covers: str) -> str:
        """Where padding has to stand to show a leak, and the model can know that it is there."""
        way, _ = self.accepted(covers)
        if way is None:
            return self._hiding(covers)
        if way.counts:
            return COUNTED
        ended = self._finds_end(covers) and self._marks_end(way)
        return "right" if ended else self._hiding(covers)

    @remembered
    def _marks_end(self, way: Way) -> bool:
        """Whether a mask tells where texts end and nothing else, as where no token looks at later
        ones and the last real one is read: it hides all that follows, and a hole is nothing, or
        so much less text."""
        hole = self.content(way, "hole", "plain")
        if self.effect(hole) and not self.probe.masks.reads_lengths(way):
            return False
        found = self.content(way, "right", "plain")
        return self.holds(found) and self.effect(found) > 0

    def _hiding(self, covers: str) -> str:
        """The layout for masks.

        Where tokens look back, padding has to stand in front of some. Classifiers that find the
        last token by the padding id take ordinary ids at the end of a row, masked or not, for
        text.
        """
        back = self.causal or self.probe.subject.decoder_type is not None
        hole = back or covers == TARGET or self._finds_end(covers)
        return "hole" if hole else "right"

    def _finds_end(self, covers: str) -> bool:
        return self.probe.subject.task.task_type == "classification" and self.compares(covers)

    def keep(self, ids: torch.Tensor, layout: str) -> torch.Tensor:
        """(B, T) of real tokens."""
        rows, length = ids.shape
        steps = torch.arange(length, device=ids.device).expand(rows, length)
        row = torch.arange(rows, device=ids.device)[:, None]
        if layout.startswith("equal"):
            row = torch.zeros_like(row)
        if layout == "left":
            # nothing in the first row, so that its mask does not do for the others
            return steps >= torch.tensor([0, 3, 1, 2], device=ids.device)[(row + (rows == 1)) % 4]
        if layout.endswith("hole"):
            # from behind the first token in the first row to before the last two in the last row:
            # a classifier whose padding id is its end id reads the one before the end
            start = 1 + row * max(0, length - HIDDEN - 3) // max(1, rows - 1)
            keep = (steps < start) | (steps >= start + HIDDEN)
        elif layout.endswith(COUNTED):
            padding = torch.tensor([1, 0, 3, length // 2], device=ids.device)
            keep = steps < length - padding[row.clamp(max=3)]
        else:
            padding = torch.tensor([3, 1, length // 2, 0], device=ids.device)
            keep = steps < length - padding[row % 4]
        return keep | (row == 0) if layout.startswith("full") and rows > 1 else keep

    # ... and ids under a mask.

    def texts(self) -> Batch:
        """A few texts, of which nothing is hidden yet."""
        rows, length = self.probe.subject.sizes
        return self.probe.batch(min(rows, self.probe.subject.other_sizes[0]), length, "padding")

    def text(self, covers: str, layout: str) -> tuple[Batch, torch.Tensor]:
        """The texts as they are to be padded, and what of them is real."""
        batch = self.texts()
        keep = self.keep(batch[covers], layout)
        batch = self._ended(batch, covers, keep)
        if layout == "left" and self.takes_positions:
            batch = batch.with_(position_ids=real_positions(keep))
        return batch, keep

    @remembered
    def logits(
        self, way: Way, layout: str, condition: str = "plain", *, hides: bool = True
    ) -> torch.Tensor:
        """What forward gives with a mask: of the layout, or of ones where it ``hides`` nothing."""
        batch, keep = self.text(way.covers, layout)
        with self.under(condition):
            told = way.tell(batch, keep if hides else torch.ones_like(keep))
            return self.probe.forward(told).logits

    @remembered
    def content(self, way: Way, layout: str, condition: str, *, blank: bool = False) -> Content:
        """Replace the ids under the mask; ``condition`` is ``plain`` or ``noised``."""
        probe, covers, length = self.probe, way.covers, self.probe.subject.sizes[1]
        if length < 2 * HIDDEN:
            raise NotApplicable("texts are too short to be padded")
        batch, keep = self.text(covers, layout)
        before = way.tell(batch, keep)
        other = probe.batch(batch.rows, length, "padding", "other")[covers].clone()
        other[:, -1] = other[:, 0]  # no end id among them
        after = before.with_(**{covers: torch.where(keep, batch[covers], other)})
        known = self.logits(way, layout) if condition == "plain" and not blank else None
        with self.under(condition), blanked(keep if blank else None):
            reference = self.outputs(before, covers, keep, known)
            moved = gap(reference, self.outputs(after, covers, keep))
        found = Content(
            way=way,
            layout=layout,
            condition=condition,
            moved=moved,
            reference=reference,
            keep=keep,
            before=before,
            after=after,
        )
        if moved != moved:
            self.unmasked(found)
        return found

    def unmasked(self, found: Content) -> torch.Tensor:
        """(n, V): the outputs of real tokens with a mask of ones; Blocked where they hold NaN
        without a mask too, which is then not to blame."""
        covers = found.way.covers
        logits = self.logits(found.way, found.layout, found.condition, hides=False)
        outputs = self.outputs(found.before, covers, found.keep, logits)
        if bool(outputs.isnan().any()):
            with self.under(found.condition):
                finite_logits(self.probe, self.text(covers, found.layout)[0])
        return outputs

    def effect(self, found: Content) -> float:
        """How far the mask itself moves the outputs of real tokens, against a mask of ones."""
        return gap(self.unmasked(found), found.reference)

    def repeats(self, batch: Batch, condition: str) -> float:
        """How far the logits move when the very same batch is run again."""
        logits = []
        for time in ("once", "again"):
            with self.probe.under(condition), self.probe.running(time) as subject:
                logits.append(subject(batch).logits)
        return float(difference(*logits).nan_to_num(0).max())

    @contextlib.contextmanager
    def under(self, condition: str) -> Iterator[None]:
        """The condition, with the rows of padding in embeddings as they are: they never train;
        torch's own layers take the path on which modes see them."""
        tables = [
            module
            for module in (self.probe.subject.model.modules() if condition == "noised" else ())
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        ]
        rows = [table.weight.data[table.padding_idx].clone() for table in tables]
        with self.probe.under(condition), blanked(None):
            for table, row in zip(tables, rows, strict=True):
                table.weight.data[table.padding_idx] = row
            yield

    def _ended(self, batch: Batch, covers: str, keep: torch.Tensor) -> Batch:
        """The batch with an end id at the last real token, where texts have one."""
        if not self.probe.subject.ends:
            return batch
        ids = batch[covers].clone()
        last = torch.where(keep, torch.arange(ids.shape[1], device=ids.device), 0).amax(1)
        ends = ids[:, -1:].clone()
        ids[:, -1] = ids[:, 0]
        ids.scatter_(1, last[:, None], ends)
        return batch.with_(**{covers: ids})

    def by_row(self, batch: Batch, covers: str, known: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, V), or (B, 1, K) where there is one output a text; of ``known`` logits."""
        logits = self.probe.forward(batch).logits if known is None else known
        if logits.dim() == 2:
            return logits[:, None]
        if covers == SOURCE and self.probe.subject.decodes:
            return logits.flatten(2)
        length = batch[covers].shape[1]
        if logits.shape[1] < length:
            shape = tuple(logits.shape)
            raise NotApplicable(f"outputs are {shape} for {length} tokens: not one for each token")
        return logits[:, :length].flatten(2)

    def outputs(
        self,
        batch: Batch,
        covers: str,
        keep: torch.Tensor | None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(n, V): outputs of real tokens, or all there are where they do not follow ``covers``;
        from ``known`` logits where the batch was run."""
        logits = self.by_row(batch, covers, known)
        follow = not (self.probe.subject.decodes and covers == SOURCE)
        if keep is None or not follow or logits.shape[:2] != keep.shape:
            return logits.flatten(0, 1)
        return logits[keep]


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; NaN where one is NaN."""
    moved = difference(a, b)
    return float("nan") if bool(moved.isnan().any()) else float(moved.max())


def nan_first(value: float) -> float:
    """A key that sorts NaN behind every number."""
    return value if value == value else float("inf")
