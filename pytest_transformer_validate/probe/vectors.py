"""The model as a function of the vectors that its tokens are looked up as, or of pixels.

Axes: N rows, T tokens, D width, V outputs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.dispatch import uncompiled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from pytest_transformer_validate.subject.subject import Subject

PIXELS = "pixel_values"
_IDS = ("input_ids", "decoder_input_ids")


class VectorLookup(TokenLookup):
    """While inside, ``given`` vectors (N, T, D) are read in place of those that are looked up by
    ``ids``, in the order of the lookups; without any, ``found`` holds those that were read."""

    def __init__(self, ids: torch.Tensor, given: Sequence[torch.Tensor] = ()) -> None:
        super().__init__(ids)
        self.given = given
        self.found: list[torch.Tensor] = []

    def looked_up(self, vectors: torch.Tensor, turned: bool) -> torch.Tensor:
        place = len(self.found)
        # a copy: what was looked up may be written to in place
        self.found.append((vectors.transpose(0, 1) if turned else vectors).detach().clone())
        if not self.given:
            return vectors
        if place >= len(self.given):
            raise NotApplicable("the model looks tokens up another number of times each time")
        given = self.given[place].to(vectors.dtype) * 1
        return given.transpose(0, 1) if turned else given

    @contextlib.contextmanager
    def anew(self, subject: Subject) -> Iterator[None]:
        """Begin again at each call of the model: some are called several times for one output, to
        find what else they have to be given."""
        handle = subject.model.register_forward_pre_hook(lambda *_: self.found.clear())
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class Reader:
    """A text, or an image, of one row, as a function of vectors.

    ``roles`` names, for each tensor of vectors, the ids that it was looked up by, or
    ``pixel_values``. ``position`` is the output that is read; ``None`` where there is one a text.
    """

    batch: Batch
    roles: tuple[str, ...]
    position: int | None

    def logits(self, subject: Subject, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, V) from tensors (N, T, D), or from pixels (N, C, H, W)."""
        rows = len(vectors[0])
        batch = Batch(
            {r: t.expand(rows, *t.shape[1:]).clone() for r, t in self.batch.inputs.items()}
        )
        if self.roles == (PIXELS,):
            return self._read(subject, batch.with_(pixel_values=vectors[0]))
        with contextlib.ExitStack() as lookups:
            lookups.enter_context(uncompiled())
            for role in dict.fromkeys(self.roles):
                given = [v for r, v in zip(self.roles, vectors, strict=True) if r == role]
                lookup = lookups.enter_context(VectorLookup(batch[role], given))
                lookups.enter_context(lookup.anew(subject))
            return self._read(subject, batch)

    def _read(self, subject: Subject, batch: Batch) -> torch.Tensor:
        logits = subject(batch).logits
        if self.position is None:
            return logits.flatten(1)
        length = batch[_sequence(batch)].shape[1]
        if logits.dim() < 3 or logits.shape[1] != length:
            shape = tuple(logits.shape)
            raise NotApplicable(f"logits are {shape} for {length} tokens: not one a token")
        return logits[:, self.position].flatten(1)


def read(subject: Subject, batch: Batch) -> dict[str, list[torch.Tensor]]:
    """The vectors that one row's ids are looked up as, by role; its pixels where it is an image.

    Raises NotApplicable where no lookup by the ids is seen (a product with one-hot rows).
    """
    if subject.vision:
        return {PIXELS: [batch[PIXELS]]}
    with contextlib.ExitStack() as stack:
        stack.enter_context(uncompiled())
        lookups = {
            role: stack.enter_context(VectorLookup(batch[role]))
            for role in _IDS
            if role in batch.inputs
        }
        for lookup in lookups.values():
            stack.enter_context(lookup.anew(subject))
        subject(batch)
    found = {role: lookup.found for role, lookup in lookups.items()}
    if not found.get(_sequence(batch)):
        raise NotApplicable("no lookup of vectors by the ids is seen")
    return {role: vectors for role, vectors in found.items() if vectors}


def each_token(subject: Subject) -> bool:
    """Whether there is one output a token."""
    return subject.task.per_token and subject.facts.rank > 2


def _sequence(batch: Batch) -> str:
    return _IDS[1] if _IDS[1] in batch.inputs else _IDS[0]
