"""What a mask argument does to the outputs, and which code reads it.

``Way``, ``layout`` and the conditions are those of ``padding``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.probe.compare import without_nan
from pytest_transformer_validate.probe.holders import storage_of
from pytest_transformer_validate.probe.lookup import OtherVectors
from pytest_transformer_validate.probe.padding import Padding, gap
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.subject.masks import (
    Way,
    against_its_name,
    padding_id,
    takes_anything,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.padding import Content
    from pytest_transformer_validate.subject.batch import Batch


class Masks(Passes):
    """Passes with one mask argument."""

    @property
    def padding(self) -> Padding:
        """How the model is told about padding."""
        return self.probe.padding

    @remembered
    def vectors(self, way: Way, layout: str, condition: str) -> float | None:
        """How far the outputs of real tokens move when other vectors are read for the ids under
        the mask, and the ids stay as they are (padding, where the model looks for its id);
        ``None`` where no lookup by these ids is seen.

        What reads ids with their neighbours (n-grams, a shift) sees no difference, what reads
        the tokens does.
        """
        batch, keep = self.kept_ids(way, layout, condition)
        with self.padding.under(condition):
            reference = self.padding.outputs(batch, way.covers, keep)
            with OtherVectors(batch[way.covers], keep) as other:
                moved = self.padding.outputs(batch, way.covers, keep)
        return gap(reference, moved) if other else None

    def kept_ids(self, way: Way, layout: str, condition: str) -> tuple[Batch, torch.Tensor]:
        """A batch with a mask that leaves no doubt where its padding is, and what is real."""
        finds = self.padding.compares(way.covers)
        found = self.padding.content(
            way, layout.replace("hole", "right") if finds else layout, condition
        )
        pad = padding_id(self.probe.subject)
        if pad is None or not finds:
            return found.before, found.keep
        ids = found.before[way.covers].masked_fill(~found.keep, pad)
        return found.before.with_(**{way.covers: ids}), found.keep

    @remembered
    def without_mask(self, way: Way, layout: str, condition: str) -> float:
        """How far the outputs of real tokens move when the tokens that the mask would hide are
        replaced and nothing is masked: 0 shows that no token reaches another."""
        found = self.padding.content(way, layout, condition)
        changed = way.tell(found.after, torch.ones_like(found.keep))
        with self.padding.under(condition):
            moved = self.padding.outputs(changed, way.covers, found.keep)
        return gap(self.padding.unmasked(found), moved)

    @remembered
    def reads_lengths(self, way: Way) -> bool:
        """Whether a hole means the same as as much padding on the right: the mask is added up."""
        hole = self.padding.content(way, "hole", "plain")
        last = hole.keep.sort(dim=1, descending=True).values
        with self.padding.under("plain"):
            logits = self.probe.forward(way.tell(hole.before, last)).logits
        same = logits == self.padding.logits(way, "hole")
        return self.padding.effect(hole) > 0 and bool(same.all())

    def silent(self, found: Content) -> list[str]:
        """The roles, of several masks that go together, that have no effect: outputs are the
        same when that one alone keeps everything."""
        way = found.way
        everything = way.mask(torch.ones_like(found.keep))
        roles = []
        with self.padding.under(found.condition):
            for role in (way.role, *way.together):
                without = found.before.with_(**{role: everything})
                outputs = self.padding.outputs(without, way.covers, found.keep)
                if not gap(found.reference, outputs):
                    roles.append(role)
        return roles

    @remembered
    def touched(self, way: Way, role: str) -> bool:
        """Whether any operation reads the mask called ``role``."""
        batch = self.padding.texts()
        told = way.tell(batch, self.padding.keep(batch[way.covers], "right"))
        told = told.with_(**{role: told[role].clone()})
        with (
            self.padding.under("plain"),
            self.probe.running("touched") as subject,
            _Reader(told[role]) as reader,
        ):
            subject.call(told, {})
        return bool(reader.read)

    @property
    def takes_anything(self) -> bool:
        """See ``masks.takes_anything``."""
        return takes_anything(self.probe.subject)

    def against_its_name(self, way: Way) -> str:
        """See ``masks.against_its_name``."""
        return against_its_name(self.probe.subject, way)

    @remembered
    def no_mask(self, way: Way) -> tuple[float, torch.Tensor]:
        """How far the outputs move between a mask of ones and none, and those without one."""
        layout = self.padding.layout(way.covers)
        batch, _ = self.padding.text(way.covers, layout)
        with self.padding.under("plain"):
            reference = without_nan(self.padding.outputs(batch, way.covers, None))
        ones = self.padding.logits(way, layout, hides=False)
        return gap(reference, self.padding.outputs(batch, way.covers, None, ones)), reference

    @remembered
    def other_dtypes(self, way: Way) -> dict[str, float | str]:
        """How far the outputs of real tokens move when the mask is of another dtype, or the
        exception that forward raises then."""
        found = self.padding.content(way, self.padding.layout(way.covers), "plain")
        moved: dict[str, float | str] = {}
        for dtype in (torch.int64, torch.bool, self.probe.subject.dtype):
            if dtype == way.dtype:
                continue
            told = replace(way, dtype=dtype).tell(found.before, found.keep)
            name = str(dtype).removeprefix("torch.")
            try:
                with self.padding.under("plain"):
                    outputs = self.padding.outputs(told, way.covers, found.keep)
                moved[name] = gap(found.reference, outputs)
            except Exception as error:  # noqa: BLE001 - a model need not take every dtype
                moved[name] = error_line(error, 100)
        return moved


class _Reader(TorchDispatchMode):
    """Notices whether anything computes with a tensor (or with a view of it)."""

    supports_higher_order_operators = True

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storage = storage_of(tensor)
        self.read = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
        self.read |= any(storage_of(t) == self.storage for t in given)
        return func(*args, **(kwargs or {}))
