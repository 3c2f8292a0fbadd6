"""What padding does to the outputs of real tokens, and whether a mask is read at all.

Axes: B batch, T positions of the ids that are padded, V outputs. ``keep`` (B, T) is True at real
tokens. A *layout* says where the padding is: ``right`` (rows of different lengths), ``hole`` (some
tokens in the middle, what a causal model has to be given: nothing looks at padding on the right),
``equal_right`` and ``equal_hole`` (all rows alike), ``full_right`` and ``full_hole`` (nothing in
the first row), ``left``. ``blank`` passes have zeros in front
of every convolution where padding is: see ``Blanked``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_transformer_validate.errors import Blocked, NotApplicable, error_line
from pytest_transformer_validate.probe.compare import difference, over, trace
from pytest_transformer_validate.probe.lookup import OtherVectors
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import (
    ROOT,
    Call,
    first_to_differ,
    running_module,
)
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared, special_ids
from pytest_transformer_validate.subject.masks import (
    SOURCE,
    TARGET,
    Way,
    declared_padding,
    padding_id,
    takes_anything,
    ways,
)
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from collections.abc import Iterator

_HIDDEN = 3  # tokens in a hole
_LONGEST = 512
_NEAR = 8  # tokens that an n-gram may span


@dataclass(frozen=True)
class Content:
    """Ids under a mask replaced, everything else as it was.

    ``moved`` is how far the worst output of a real token moved, over the fillings ``after``
    (other ids, the padding id), and ``filling`` the worst of them; ``effect`` how far the mask
    itself moves the outputs of real tokens, against a mask of ones.
    """

    way: Way
    condition: str
    moved: float
    filling: int
    effect: float
    reference: torch.Tensor
    keep: torch.Tensor
    before: Batch
    after: tuple[Batch, ...]
    open: Batch


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


@dataclass(frozen=True)
class Place:
    """Where padding first matters, and what kind of module that is: one that reads nothing but
    ``ids`` (n-grams, ids shifted by one), one that ``pools`` neighbouring tokens, or any."""

    where: str | None
    kind: str | None


class Padding(Passes):
    """Passes with padding, for the ids called ``covers``."""

    # What the model takes...

    @property
    def sequences(self) -> tuple[str, ...]:
        """The roles of ids that can be padded."""
        return (SOURCE, TARGET) if self.probe.subject.decodes else (SOURCE,)

    @remembered
    def accepted(self, covers: str) -> tuple[Way | None, str]:
        """The first mask argument that forward takes, and what the first refusal said."""
        refused = ""
        rows, length = self.probe.subject.sizes
        for way in ways(self.probe.subject, covers):
            batch = self.probe.batch(rows, length, "padding")
            keep = self.keep(batch[covers], "right")
            try:
                self.probe.forward(way.tell(batch, keep))
            except Exception as error:  # noqa: BLE001 - a model need not take every form
                line = error_line(error, 150)
                refused = refused or f"{way.role} {tuple(way.mask(keep).shape)} raised {line}"
                continue
            return way, refused
        return None, refused

    @remembered
    def way(self, covers: str) -> tuple[Way | None, bool]:
        """The mask argument over ``covers`` as the model reads it, and whether it reads it the
        other way round than its default.

        Judged by what is measured: where ids under the mask leak, and do not when the mask is
        inverted, that is its reading.
        """
        way, _ = self.accepted(covers)
        if way is None:
            return None, False
        found = self.content(way, self.layout(covers), "plain")
        if self.holds(found):
            return way, False
        other = self.content(way.inverted(), self.layout(covers), "plain")
        if self.holds(other) and other.effect > 0:
            return way.inverted(), True
        return way, False

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
        batch = self.probe.batch(*subject.sizes, "padding")
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
    def told(self) -> list[tuple[str, Way | None]]:
        """The roles of ids whose padding can be told, with the mask argument (``None``: by the
        padding id in them).

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
            except (NotApplicable, Blocked):
                continue
            if way is not None or self.compares(covers):
                found.append((covers, way))
        return found

    def _hides(self, way: Way) -> bool:
        return self.holds(self.content(way, self.layout(way.covers), "plain"))

    @property
    def causal(self) -> bool:
        """Whether the task forbids later tokens to matter."""
        return self.probe.subject.task.task_type == "causal_lm"

    @remembered
    def pads_left(self) -> bool:
        """Whether a text padded on the left gives what the text alone gives: then a classifier
        may read its last column."""
        found = self.lengths(SOURCE, "mixed", "left", "plain")
        u = torch.finfo(found.reference.dtype).eps * float(found.reference.abs().max())
        return max(found.moved, key=_nan_first) <= 64 * u

    def layout(self, covers: str) -> str:
        """Where padding has to stand to show a leak, and the model can know that it is there.

        Classifiers that find the last token by the padding id take ordinary ids at the end of a
        row, masked or not, for text.
        """
        finds_end = self.probe.subject.task.task_type == "classification" and self.compares(covers)
        return "hole" if self.causal or covers == TARGET or finds_end else "right"

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
            start = 1 + row % max(1, length - _HIDDEN - 1)
            keep = (steps < start) | (steps >= start + _HIDDEN)
        else:
            padding = torch.tensor([3, 0, 1, length // 2], device=ids.device)
            keep = steps < length - padding[row % 4]
        return keep | (row == 0) if layout.startswith("full") and rows > 1 else keep

    # ... ids under a mask...

    @remembered
    def content(self, way: Way, layout: str, condition: str, *, blank: bool = False) -> Content:
        """Replace the ids under the mask; ``condition`` is ``plain`` or ``noised``."""
        probe, subject = self.probe, self.probe.subject
        if subject.sizes[1] < 2 * _HIDDEN:
            raise NotApplicable("texts are too short to be padded")
        covers = way.covers
        batch = probe.batch(*subject.sizes, "padding")
        keep = self.keep(batch[covers], layout)
        batch = self._ended(batch, covers, keep)
        if layout == "left" and self.takes_positions:
            batch = batch.with_(position_ids=_positions(keep))
        before = way.tell(batch, keep)
        other = probe.batch(*subject.sizes, "padding", "other")[covers].clone()
        other[:, -1] = other[:, 0]  # no end id among them
        fillings = [torch.where(keep, batch[covers], other)]
        pad = padding_id(subject)
        if pad is not None and not self.compares(covers) and condition == "plain":
            fillings.append(batch[covers].masked_fill(~keep, pad))
        after = tuple(before.with_(**{covers: ids}) for ids in fillings)
        everything = way.tell(batch, torch.ones_like(keep))
        with self._under(condition), Blanked(keep if blank else None):
            reference = self._outputs(before, covers, keep)
            moved = [self._gap(reference, self._outputs(a, covers, keep)) for a in after]
            unmasked = self._outputs(everything, covers, keep)
            if bool(unmasked.isnan().any()):
                self._require_finite(batch)
        return Content(
            way=way,
            condition=condition,
            moved=max(moved, key=_nan_first),
            filling=moved.index(max(moved, key=_nan_first)),
            effect=self._gap(unmasked, reference),
            reference=unmasked,
            keep=keep,
            before=before,
            after=after,
            open=everything,
        )

    @remembered
    def vectors(self, way: Way, layout: str, condition: str) -> float | None:
        """How far the outputs of real tokens move when other vectors are read for the ids under
        the mask, and the ids stay as they are (padding, where the model looks for its id);
        ``None`` where no lookup by these ids is seen.

        What reads ids with their neighbours (n-grams, a shift) sees no difference, what reads
        the tokens does.
        """
        batch, keep = self._kept_ids(way, layout, condition)
        with self._under(condition):
            reference = self._outputs(batch, way.covers, keep)
            with OtherVectors(batch[way.covers], keep) as other:
                moved = self._outputs(batch, way.covers, keep)
        return self._gap(reference, moved) if other else None

    def _kept_ids(self, way: Way, layout: str, condition: str) -> tuple[Batch, torch.Tensor]:
        """A batch with a mask that leaves no doubt where its padding is, and what is real."""
        finds = self.compares(way.covers)
        found = self.content(way, layout.replace("hole", "right") if finds else layout, condition)
        pad = padding_id(self.probe.subject)
        if pad is None or not finds:
            return found.before, found.keep
        ids = found.before[way.covers].masked_fill(~found.keep, pad)
        return found.before.with_(**{way.covers: ids}), found.keep

    @remembered
    def without_mask(self, way: Way, layout: str, condition: str) -> float:
        """How far the outputs of real tokens move when the tokens that the mask would hide are
        replaced and nothing is masked: 0 shows that no token reaches another."""
        found = self.content(way, layout, condition)
        changed = found.open.with_(**{way.covers: found.after[0][way.covers]})
        with self._under(condition):
            moved = self._outputs(changed, way.covers, found.keep)
        return self._gap(found.reference, moved)

    @remembered
    def reads_lengths(self, way: Way) -> bool:
        """Whether a hole means the same as as much padding on the right: the mask is added up."""
        hole = self.content(way, "hole", "plain")
        last = hole.keep.sort(dim=1, descending=True).values
        logits = self.probe.forward(way.tell(hole.before, last)).logits
        same = logits == self.probe.forward(hole.before).logits
        return hole.effect > 0 and bool(same.all())

    def silent(self, found: Content) -> list[str]:
        """The roles, of several masks that go together, that have no effect: outputs are the
        same when that one alone keeps everything."""
        way = found.way
        with self._under(found.condition):
            told = self._outputs(found.before, way.covers, found.keep)
            roles = []
            for role in (way.role, *way.together):
                without = found.before.with_(**{role: found.open[role]})
                if not self._gap(told, self._outputs(without, way.covers, found.keep)):
                    roles.append(role)
        return roles

    @remembered
    def touched(self, way: Way, role: str) -> bool:
        """Whether any operation reads the mask called ``role``."""
        batch = self.probe.batch(*self.probe.subject.sizes, "padding")
        told = way.tell(batch, self.keep(batch[way.covers], "right"))
        told = told.with_(**{role: told[role].clone()})
        with self.probe.running("touched") as subject, _Reader(told[role]) as reader:
            subject.call(told, {})
        return bool(reader.read)

    @property
    def takes_anything(self) -> bool:
        """See ``masks.takes_anything``."""
        return takes_anything(self.probe.subject)

    @remembered
    def no_mask(self, way: Way) -> tuple[float, torch.Tensor]:
        """How far the outputs move between a mask of ones and none, and those without one."""
        batch = self.probe.batch(*self.probe.subject.sizes, "padding")
        ones = torch.ones_like(batch[way.covers], dtype=torch.bool)
        reference = _finite(self._outputs(batch, way.covers, None))
        given = self._outputs(way.tell(batch, ones), way.covers, None)
        return self._gap(reference, given), reference

    @remembered
    def other_dtypes(self, way: Way) -> dict[str, float | str]:
        """How far the outputs of real tokens move when the mask is of another dtype, or the
        exception that forward raises then."""
        found = self.content(way, self.layout(way.covers), "plain")
        reference = self._outputs(found.before, way.covers, found.keep)
        moved: dict[str, float | str] = {}
        for dtype in (torch.int64, torch.bool, self.probe.subject.dtype):
            if dtype == way.dtype:
                continue
            told = replace(way, dtype=dtype).tell(found.before, found.keep)
            name = str(dtype).removeprefix("torch.")
            try:
                moved[name] = self._gap(reference, self._outputs(told, way.covers, found.keep))
            except Exception as error:  # noqa: BLE001 - a model need not take every dtype
                moved[name] = error_line(error, 100)
        return moved

    # ... texts of several lengths...

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
    ) -> Lengths:
        """Pad texts on one ``side`` and compare with the texts alone.

        ``plan`` is ``mixed`` (rows of different lengths), ``equal`` (all rows alike) or ``long``
        (near the longest text). Lengths that the model cannot take alone are left out. With a
        ``filler`` that id fills them up, and no mask tells of it.
        """
        if self.probe.subject.sizes[1] < 2 * _HIDDEN:
            raise NotApplicable("texts are too short to be padded")
        way = self.way(covers)[0] if filler is None else None
        given = self._given(covers, plan)
        size = given[covers].shape[1]
        sizes = {
            "mixed": [size - 1, size // 2 + 1, size, 3],
            "equal": [size - 3],
            "long": [size - 2, size // 2],
        }[plan]
        lengths = [sizes[row % len(sizes)] for row in range(given.rows)]
        padded, keep = self._padded(given, covers, lengths, side, way, filler)
        moved = [0.0] * given.rows
        groups: dict[int, Batch] = {}
        references = []
        with self._under(condition):
            with Blanked(keep if blank else None):
                outputs = self._by_row(padded, covers)
            for length in dict.fromkeys(lengths):
                rows = [row for row, own in enumerate(lengths) if own == length]
                groups[length] = self._alone(given, covers, rows, length, side, way)
                told = side if self.takes_positions else ""
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
                    moved[row] = self._gap(own, real)
        worst = moved.index(max(moved, key=_nan_first))
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
            pad = padding_id(self.probe.subject)
            filler = int(ids[0, 0]) if pad is None else pad
        told = self._with_ids(given, covers, texts.masked_fill(~keep, filler))
        return self._told(told, keep, covers, side, way), keep

    def _alone(
        self, given: Batch, covers: str, rows: list[int], length: int, side: str, way: Way | None
    ) -> Batch:
        """The texts of one length, without padding."""
        chosen = Batch({role: t[rows] for role, t in given.inputs.items()})
        texts = self._cut(chosen[covers], [length] * len(rows))[:, :length].contiguous()
        told = self._with_ids(chosen, covers, texts)
        keep = torch.ones_like(texts, dtype=torch.bool)
        return self._told(told, keep, covers, side, way)

    def _as_it_is(self, alone: Batch, covers: str, *case: object) -> torch.Tensor:
        """The outputs of texts without padding, once for each ``case``."""
        key = ("Padding.as_it_is", covers, *case)
        return self.probe.remember(key, lambda: _finite(self._by_row(alone, covers)))

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
        roles = {role: given[role] for role in self.sequences}
        return self.probe.subject.complete(Batch({**roles, covers: ids})).to(ids.device)

    def _told(
        self, batch: Batch, keep: torch.Tensor, covers: str, side: str, way: Way | None
    ) -> Batch:
        if side == "left" and self.takes_positions:
            batch = batch.with_(position_ids=_positions(keep))
        return batch if way is None else way.tell(batch, keep)

    @property
    def takes_positions(self) -> bool:
        """Whether forward takes the positions of the tokens."""
        return self.probe.subject.signature.takes("position_ids")

    # ... where a leak begins, run on a failure only...

    def locate_comparison(self, covers: str, number: int) -> str | None:
        """The module whose code compares ids with a number."""
        subject = self.probe.subject
        batch = self.probe.batch(*subject.sizes, "padding")
        reader = _Comparer(subject.model, {covers: batch[covers]}, subject.sizes[1], number)
        with self.probe.running("compares"), reader:
            subject.call(batch, {})
        return reader.place

    def locate_content(self, found: Content) -> Place:
        """The first module in which a real token sees what is under the mask."""
        with self._under(found.condition):
            before = trace(self.probe, found.before)
            after = trace(self.probe, found.after[found.filling])
        where = _first_real(before, after, found.keep)
        kind = self._kind(before, where)
        if kind == "ids" and not _near(_call(before, where), _call(after, where), found.keep):
            kind = None
        return Place(where, kind)

    def locate_vectors(self, way: Way, layout: str, condition: str) -> Place:
        """The first module in which a real token sees other vectors under the mask."""
        batch, keep = self._kept_ids(way, layout, condition)
        with self._under(condition):
            before = trace(self.probe, batch)
            with OtherVectors(batch[way.covers], keep):
                after = trace(self.probe, batch)
        where = _first_real(before, after, keep)
        return Place(where, self._kind(before, where))

    def locate_no_mask(self, way: Way) -> str | None:
        """The first module that a mask of ones changes."""
        batch = self.probe.batch(*self.probe.subject.sizes, "padding")
        told = way.tell(batch, torch.ones_like(batch[way.covers], dtype=torch.bool))
        return first_to_differ(trace(self.probe, batch), trace(self.probe, told), _far)

    def locate_lengths(self, found: Lengths) -> Place:
        """The first module in which a padded text differs from the same text alone."""
        with self._under(found.condition):
            padded = trace(self.probe, found.padded)
            alone = trace(self.probe, found.alone)
        length = found.alone[found.covers].shape[1]
        start = 0 if found.side == "right" else found.size - length
        rows = found.padded.rows

        def part(tensor: torch.Tensor) -> torch.Tensor:
            return _narrowed(tensor, rows, found.rows, found.size, start, length)

        cut = [
            Call(call.name, [part(t) for t in call.inputs], [part(t) for t in call.outputs])
            for call in padded
        ]
        where = first_to_differ(cut, alone, _far)
        kind = self._kind(padded, where)
        way, _ = self.way(found.covers)
        if kind == "ids" and way is not None:
            kind = self.locate_content(self.content(way, found.side, found.condition)).kind
        return Place(where, None if way is None else kind)

    def repeats(self, batch: Batch, condition: str) -> float:
        """How far the logits move when the very same batch is run again."""
        logits = []
        for time in ("once", "again"):
            with self.probe.under(condition), self.probe.running(time) as subject:
                logits.append(subject(batch).logits)
        return float(difference(*logits).nan_to_num(0).max())

    # ... and helpers.

    def _kind(self, calls: list[Call], where: str | None) -> str | None:
        """What is special about the module called ``where``: see ``Place``.

        It pools neighbours where what it gives has fewer places than there are tokens, and more
        of them for a longer text.
        """
        call = _call(calls, where)
        if call is None or where == ROOT:
            return None
        if not call.inputs:
            return "ids"
        rows, length = self.probe.subject.sizes
        most = min(4 * length, self.probe.subject.max_length or 4 * length)
        longer = _call(trace(self.probe, self.probe.batch(rows, most, "padding")), where)
        if longer is None:
            return None
        fewer = any(
            a.dim() == b.dim() > 2
            and any(m < n < most for m, n in zip(a.shape, b.shape, strict=True))
            for a, b in zip(call.outputs, longer.outputs, strict=False)
            if length not in a.shape
        )
        return "pools" if fewer else None

    def _require_finite(self, batch: Batch) -> None:
        """Raise Blocked where the logits hold NaN without a mask (or with the one that forward
        requires): then the mask is not to blame."""
        _finite(self.probe.forward(batch).logits)

    @contextlib.contextmanager
    def _under(self, condition: str) -> Iterator[None]:
        """The condition, with the rows of padding in embeddings as they are: they never train."""
        tables = [
            module
            for module in self.probe.subject.model.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        ]
        rows = [table.weight.data[table.padding_idx].clone() for table in tables]
        with self.probe.under(condition):
            if condition == "noised":
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

    def _by_row(self, batch: Batch, covers: str) -> torch.Tensor:
        """(B, T, V), or (B, 1, K) where there is one output a text."""
        logits = self.probe.forward(batch).logits
        if logits.dim() == 2:
            return logits[:, None]
        if covers == SOURCE and self.probe.subject.decodes:
            return logits.flatten(2)
        length = batch[covers].shape[1]
        if logits.shape[1] < length:
            shape = tuple(logits.shape)
            raise NotApplicable(f"outputs are {shape} for {length} tokens: not one for each token")
        return logits[:, :length].flatten(2)

    def _outputs(self, batch: Batch, covers: str, keep: torch.Tensor | None) -> torch.Tensor:
        """(n, V): outputs of real tokens, or all there are where they do not follow ``covers``."""
        logits = self.probe.forward(batch).logits
        if logits.dim() == 2 or (self.probe.subject.decodes and covers == SOURCE):
            return logits.flatten(0, -2)
        length = batch[covers].shape[1]
        if logits.dim() < 3 or logits.shape[1] < length:
            shape = tuple(logits.shape)
            raise NotApplicable(f"outputs are {shape} for {length} tokens: not one for each token")
        logits = logits[:, :length].flatten(2)
        return logits.flatten(0, 1) if keep is None else logits[keep]

    @staticmethod
    def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
        moved = difference(a, b)
        return float("nan") if bool(moved.isnan().any()) else float(moved.max())


class Blanked(TorchFunctionMode):
    """While inside, what a convolution reads at padding is zero, as it is where a text ends.

    A convolution has no mask; some healthy encoders let it read over the edge. What still leaks
    when it reads zeros there leaks elsewhere. ``None`` changes nothing.
    """

    def __init__(self, keep: torch.Tensor | None) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.keep is not None and func in _NEIGHBOURS and isinstance(args[0], torch.Tensor):
            real = _real(args[0], self.keep)
            if real is not None:
                args = (args[0].masked_fill(~real, 0), *args[1:])
        return func(*args, **(kwargs or {}))


_NEIGHBOURS = {
    torch.conv1d,
    torch.conv2d,
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.unfold,
    nn.functional.pad,
    torch._C._nn.pad,
}


def _positions(keep: torch.Tensor) -> torch.Tensor:
    """Positions of the real tokens, 0 at padding in front."""
    return (keep.cumsum(1) - 1).clamp(min=0)


class _Comparer(TableReader):
    """Notices in which module ids are compared with ``number``."""

    def __init__(
        self, model: nn.Module, ids: dict[str, torch.Tensor], length: int, number: int
    ) -> None:
        super().__init__(model, ids, length)
        self.model, self.number = model, number
        self.place: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.place is None and self.number in self.compared:
            self.place = running_module(self.model)
        return result


class _Reader(TorchDispatchMode):
    """Notices whether anything computes with a tensor (or with a view of it)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storage = tensor.untyped_storage().data_ptr()
        self.read = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
        self.read |= any(t.untyped_storage().data_ptr() == self.storage for t in given)
        return func(*args, **(kwargs or {}))


def _real(tensor: torch.Tensor, keep: torch.Tensor) -> torch.Tensor | None:
    """Which entries of a tensor belong to real tokens only: every axis of positions counts.
    ``None`` where no axis of rows is found."""
    rows, length = keep.shape
    axis = next((i for i, size in enumerate(tensor.shape) if size == rows), None)
    if axis is None:
        if not tensor.dim() or not tensor.shape[0] or tensor.shape[0] % rows:
            return None
        real = _real(tensor.unflatten(0, (rows, -1)), keep)
        return (
            None
            if real is None
            else real.expand(tensor.unflatten(0, (rows, -1)).shape).flatten(0, 1)
        )
    real = torch.ones_like(tensor, dtype=torch.bool)
    for position, size in enumerate(tensor.shape):
        if size == length and position != axis:
            shape = [1] * tensor.dim()
            shape[axis], shape[position] = rows, length
            own = keep if axis < position else keep.T
            real = real & own.reshape(shape)
    return real


def _first_real(before: list[Call], after: list[Call], keep: torch.Tensor) -> str | None:
    """The first module whose output at real tokens differs."""

    def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
        real = _real(a, keep)
        return real is not None and over(a.masked_fill(~real, 0), b.masked_fill(~real, 0))

    return first_to_differ(before, after, moved)


def _narrowed(
    tensor: torch.Tensor, rows: int, chosen: list[int], size: int, start: int, length: int
) -> torch.Tensor:
    """The part of a tensor that belongs to some rows and to ``length`` positions."""
    axis = next((i for i, n in enumerate(tensor.shape) if n == rows), None)
    folded = axis is None and tensor.dim() > 0 and tensor.shape[0] > 0
    if folded and tensor.shape[0] % rows == 0:
        parts = tensor.unflatten(0, (rows, -1))
        return _narrowed(parts, rows, chosen, size, start, length).flatten(0, 1)
    if axis is not None:
        tensor = tensor.index_select(axis, torch.tensor(chosen, device=tensor.device))
    for position, n in enumerate(tensor.shape):
        if n == size and position != axis:
            tensor = tensor.narrow(position, start, length)
    return tensor


def _call(calls: list[Call], name: str | None) -> Call | None:
    return next((call for call in calls if call.name == name), None)


def _near(before: Call | None, after: Call | None, keep: torch.Tensor) -> bool:
    """Whether what a module gives moves at most ``_NEAR`` positions from a masked token: n-grams
    and shifts do, a statistic over the text does not stop there."""
    if before is None or after is None:
        return False
    steps = torch.arange(keep.shape[1], device=keep.device)
    gap = (steps[:, None] - steps).abs().masked_fill(keep[:, None], keep.shape[1]).amin(-1)
    for a, b in zip(before.outputs, after.outputs, strict=False):
        if a.dim() < 3 or a.shape[:2] != keep.shape:
            return False
        moved = difference(a, b).flatten(2).amax(-1) > 0
        if bool((moved & (gap > _NEAR)).any()):
            return False
    return True


def _far(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ by more than rounding may between two shapes (256 u)."""
    if not a.numel():
        return False
    numbers = b[b.isfinite()]
    scale = float(numbers.abs().max()) if numbers.numel() else 0.0
    moved = torch.where(a.isnan() & b.isnan(), 0, difference(a, b))
    return not float(moved.max()) <= 256 * torch.finfo(a.dtype).eps * scale


def _finite(logits: torch.Tensor) -> torch.Tensor:
    if bool(logits.isnan().any()):
        raise Blocked("logits hold NaN: see output_stability")
    return logits


def _nan_first(value: float) -> float:
    return value if value == value else float("inf")
