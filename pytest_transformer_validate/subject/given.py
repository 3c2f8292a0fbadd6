"""What a caller gives beside ids: the forms that were found, filled in for a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.subject.asked import SOURCE, TARGET, Form, Frame, Mask

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject


@dataclass(frozen=True)
class Given:
    """What the caller gives, by role; ``causal`` says that the task asks for a causal mask where
    one is taken, ``own`` the side that the outputs follow, and ``time_major`` that ids are read
    (T, B) (``None``: nothing tells)."""

    forms: dict[str, Form] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    own: str = SOURCE
    causal: bool = False
    time_major: bool | None = None

    def values(self, subject: Subject, batch: Batch) -> dict[str, Any]:
        """Everything that is given beside ``batch``, in its sizes."""
        if not self.forms:
            return {}
        frame = frame_of(subject, batch, self.causal)
        return {role: form.make(frame) for role, form in self.forms.items()}

    @property
    def causal_mask(self) -> str | None:
        """The mask that hides later tokens, where the caller gives it."""
        found = (
            role
            for role, form in self.forms.items()
            if self.causal and isinstance(form, Mask) and form.pairs and form.side == self.own
        )
        return next((self._words(role) for role in found), None)

    @property
    def of_length(self) -> str:
        """Names of what is another one for another length, or behind a cache."""
        found = (
            self.names[role]
            for role, form in self.forms.items()
            if isinstance(form, Mask) or form.of_length
        )
        return ", ".join(found)

    @property
    def text(self) -> str:
        """In words, for reports."""
        return "; ".join(map(self._words, self.forms))

    def _words(self, role: str) -> str:
        return f"{self.names[role]} {self.forms[role].words(self.own)}"


def frame_of(subject: Subject, batch: Batch, causal: bool) -> Frame:
    """The sizes of a batch, and what else the forms are made from."""
    text = not subject.vision
    source = batch.main.shape[1] if text else 1
    target = batch.inputs.get("decoder_input_ids", batch.main).shape[1] if text else 1
    return Frame(
        rows=batch.rows,
        source=source,
        target=target,
        own=TARGET if subject.decodes else SOURCE,
        causal=causal,
        device=subject.device,
        dtype=subject.dtype,
        model=subject.model,
    )
