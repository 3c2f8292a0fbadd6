"""How a model is told which tokens of a batch are padding."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_transformer_validate.subject import asked
from pytest_transformer_validate.subject.declared import PADDING
from pytest_transformer_validate.subject.signature import forward_of

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

SOURCE, TARGET = "input_ids", "decoder_input_ids"
# Roles that carry a mask, the most telling first, by the ids that they cover.
_ROLES = {
    SOURCE: ("attention_mask", "padding_mask", "mask"),
    TARGET: ("decoder_attention_mask", "decoder_padding_mask"),
}
# Masks that have to say the same as another one: cross attention reads the source's.
_TOGETHER = {
    "attention_mask": ("encoder_attention_mask",),
    "padding_mask": ("memory_padding_mask",),
}
_TRUE_IGNORES = {"padding_mask", "decoder_padding_mask", "memory_padding_mask"}
# What torch documents: True is padding.
_TORCH = frozenset(f"{over}key_padding_mask" for over in ("", "src_", "tgt_", "memory_"))
_NAMES = frozenset(PADDING)
_CALLED = {each for name in (*PADDING, "pad") for each in (name, name.upper())}
_AXES = (0, 1, 2)  # (B, T), (B, 1, T), (B, 1, 1, T)


@dataclass(frozen=True)
class Way:
    """A mask argument and how it is filled in.

    ``role`` is the input that carries the mask and ``covers`` the ids that it is about; ``keeps``
    says that 1 (or True) marks what is kept, ``axes`` how many axes of size 1 stand behind B,
    ``dtype`` what it is made of; ``pairs`` that it has a value for every pair of positions, and
    ``causal`` that it hides later ones too; ``together`` names masks that have to say the same.
    ``counts`` says that it is no mask but the number of real tokens of each row, (B,): that can
    tell of padding on the right alone; ``adds`` that it is added to scores.
    """

    role: str
    covers: str
    keeps: bool
    dtype: torch.dtype
    axes: int = 0
    together: tuple[str, ...] = ()
    pairs: bool = False
    causal: bool = False
    counts: bool = False
    adds: bool = False

    def __str__(self) -> str:
        return self.role

    def mask(self, keep: torch.Tensor) -> torch.Tensor:
        """The mask that says what ``keep`` (B, T; True keeps) says."""
        if self.counts:
            return keep.sum(1)
        rows, length = keep.shape
        if self.pairs:
            keep = keep[:, None].expand(rows, length, length)
        if self.causal:
            keep = keep.tril()
        values = (keep if self.keeps else ~keep).to(self.dtype)
        if self.adds:
            values = torch.zeros_like(values).masked_fill(~keep, torch.finfo(self.dtype).min)
        return values.reshape(rows, *(1,) * self.axes, *keep.shape[1:])

    def tell(self, batch: Batch, keep: torch.Tensor) -> Batch:
        """The batch with this mask."""
        return batch.with_(**dict.fromkeys((self.role, *self.together), self.mask(keep)))

    def inverted(self) -> Way:
        """The same argument, read the other way round."""
        return replace(self, keeps=not self.keeps)

    @property
    def ones(self) -> bool:
        """Whether it is a mask of ones and zeros."""
        return not self.counts and not self.adds

    @property
    def fixed(self) -> bool:
        """Whether the name says which value keeps: everybody's ``attention_mask`` has 1 there,
        while True of a ``mask`` or ``padding_mask`` keeps in one half of public code and hides in
        the other. Lengths have one meaning, and so has what is added."""
        return not self.ones or self.role in {"attention_mask", "decoder_attention_mask"}


def ways(subject: Subject, covers: str) -> list[Way]:
    """What forward could take as a mask over ``covers``, the likeliest first."""
    found = _given(subject, covers)
    for role in _ROLES[covers]:
        if not subject.signature.takes(role) or role in subject.given.forms:
            continue
        crossing = _TOGETHER.get(role, ()) if subject.decodes else ()
        together = tuple(r for r in crossing if subject.signature.takes(r))
        whole = role.endswith("attention_mask")
        kinds = (torch.int64, torch.bool) if whole else (torch.bool, torch.int64)
        found += [
            Way(role, covers, role not in _TRUE_IGNORES, kind, axes, together)
            for axes in _AXES
            for kind in (*kinds, subject.dtype)
        ]
    return found


def counts(subject: Subject, covers: str) -> list[Way]:
    """What forward could take as the lengths of ``covers``."""
    side = asked.SOURCE if covers == SOURCE else asked.TARGET
    sides = {side} if subject.decodes else {side, asked.OWN}
    found = []
    for role, name in subject.signature.names.items():
        form = subject.given.forms.get(role)
        named = form.counts if isinstance(form, asked.Value) else None
        if form is None and role not in subject.signature.required:
            named = asked.lengths_of(name)
        if named in sides:
            found.append(Way(role, covers, True, torch.int64, counts=True))
    return found


def added(subject: Subject, covers: str) -> list[Way]:
    """What forward could add to the scores of attention, to hide ``covers``."""
    optional = subject.signature.names.keys() - subject.given.forms.keys()
    names = [role for role in optional if asked.is_bias(role) or role == "mask"]
    if subject.decodes:
        return []
    shapes = ((2, False), (1, True), (0, True))  # (B, 1, 1, T), (B, 1, T, T), (B, T, T)
    return [
        Way(name, covers, True, subject.dtype, axes, pairs=pairs, adds=True)
        for name in names
        for axes, pairs in shapes
    ]


def against_its_name(subject: Subject, way: Way) -> str:
    """What the name of a mask says where the model reads it the other way round, else empty."""
    name = subject.signature.names[way.role]
    if way.keeps and name in _TORCH:
        return "torch documents True as padding"
    if not way.keeps and asked.says_real(name):
        return "a mask of that name has 1 at real tokens"
    return ""


def _given(subject: Subject, covers: str) -> list[Way]:
    """The masks over ``covers`` that forward requires, in the form in which it takes them.

    None where one of them cannot say what is padding: it has no axis of rows.
    """
    given = subject.given
    own = asked.SOURCE if covers == SOURCE else asked.TARGET
    masks = {role: form for role, form in given.forms.items() if isinstance(form, asked.Mask)}
    kinds = {role: form.layout for role, form in masks.items() if _tells(form)}
    crossing = [r for r, form in masks.items() if form.side == asked.CROSS and own != asked.TARGET]
    told = [r for r in kinds if masks[r].side == own]
    told.sort(key=lambda role: masks[role].pairs)
    if not told or (crossing and not any(r in kinds and not masks[r].pairs for r in crossing)):
        return []
    first = masks[told[0]]
    like = (first.layout, first.values)
    others = [r for r in (*told[1:], *crossing) if (masks[r].layout, masks[r].values) == like]
    if any(r in kinds and r not in others for r in crossing):
        return []
    return [
        Way(
            role=told[0],
            covers=covers,
            keeps=not first.values.startswith("block"),
            dtype=subject.dtype if first.values.endswith(("number", "add")) else torch.bool,
            axes=first.layout.count("1"),
            together=tuple(others),
            pairs=first.pairs,
            causal=first.pairs and given.causal and own == given.own,
            adds=first.values == "add",
        )
    ]


def _tells(form: asked.Mask) -> bool:
    """Whether a mask can say for each row what is padding."""
    return form.layout.startswith("b")


def takes_anything(subject: Subject) -> bool:
    """Whether forward takes whatever it is given: what it names may be there for the interface."""
    parameters = inspect.signature(forward_of(subject.model)).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def padding_id(subject: Subject) -> int | None:
    """The id that fills up texts: as declared, else an attribute of a module that is called so,
    else what the forward compares its ids with and its file calls so, or 0 where that is it."""
    found = _named_padding(subject, tables=False)
    if found is not None or not subject.facts.compared:
        return found
    called = _called_padding(subject) & subject.facts.compared
    if len(called) == 1:
        return called.pop()
    return 0 if subject.facts.compared == {0} else None


def _called_padding(subject: Subject) -> set[int]:
    """The numbers that modules, or the files in which they are written, call padding."""
    modules = list(subject.model.modules())
    forwards = {inspect.unwrap(type(module).forward) for module in modules}
    kept = [*map(vars, modules), *(getattr(f, "__globals__", {}) for f in forwards)]
    found = (holder.get(name) for holder in kept for name in _CALLED)
    return {value for value in found if type(value) is int}


def declared_padding(subject: Subject) -> int | None:
    """The id that fills up texts, as the configuration, an attribute of a module or else the
    embeddings say; ``None`` where nothing does, or not all say the same."""
    found = _named_padding(subject, tables=False)
    return _named_padding(subject, tables=True) if found is None else found


def _named_padding(subject: Subject, *, tables: bool) -> int | None:
    rows = min(subject.vocab_size, subject.facts.vocabulary.get(SOURCE, subject.vocab_size))
    named = {
        value
        for module in subject.model.modules()
        if not _NAMES.isdisjoint(vars(module)) and isinstance(module, nn.Embedding) == tables
        for name in PADDING
        if type(value := vars(module).get(name)) is int
    }
    found = subject.pad_id
    if found is None and len(named) == 1:
        found = named.pop()
    return found if found is not None and 0 <= found < rows else None
