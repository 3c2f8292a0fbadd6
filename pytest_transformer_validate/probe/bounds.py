"""Ids and positions just outside of what a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.compare import difference, finite
from pytest_transformer_validate.probe.holders import storage_of
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.declared import (
    PADDING,
    TARGET_VOCABULARY,
    VOCABULARY,
    declared,
    declared_size,
    special_ids,
)
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch

_aten = torch.ops.aten
# Operations that bring positions back into a range.
_FOLDS = {
    _aten.remainder.Scalar,
    _aten.remainder.Tensor,
    _aten.fmod.Scalar,
    _aten.clamp.default,
    _aten.clamp_max.default,
    _aten.clamp_.default,
    _aten.clamp_max_.default,
    _aten.minimum.default,
    _aten.where.self,
}
_SMALL_LENGTH, _LARGE_LENGTH = 2049, 1025


@dataclass(frozen=True)
class Read:
    """What became of a text with an id outside: the id, the row of the table that was read in its
    place, in which module; all ``None`` where nothing read the table there."""

    given: int
    row: int | None
    where: str | None
    plain: bool


@dataclass(frozen=True)
class Longer:
    """What became of a text with one token more than the maximum ``length``.

    ``error`` is what it raised; ``shape`` that of the logits; ``seen`` how far the logits move
    when the last token changes, ``seen_before`` the same at the maximum; ``same`` two positions
    that read the same row of a table or get the same number, ``where`` the module that does.
    """

    length: int
    error: str | None = None
    shape: tuple[int, ...] = ()
    seen: float = 0.0
    seen_before: float = 0.0
    scale: float = 0.0
    same: tuple[int, int] | None = None
    how: str = ""
    where: str | None = None


class Bounds(Passes):
    """Passes at the edges of vocabulary and length."""

    def roles(self) -> list[str]:
        """The inputs that hold ids and index a table."""
        return list(self.probe.subject.facts.vocabulary)

    def rows(self, role: str) -> int:
        """Rows of the (smallest) table that the ids of a role index."""
        return self.probe.subject.facts.vocabulary[role]

    def declared(self, role: str) -> int | None:
        """The size of the vocabulary of a role as the configuration has it."""
        subject = self.probe.subject
        if role == "input_ids":
            return subject.declared_vocabulary
        target = declared_size(subject.config, TARGET_VOCABULARY)
        return target or declared_size(subject.config, VOCABULARY)

    def declares_target(self) -> bool:
        """Whether the configuration names a vocabulary that outputs are chosen from."""
        return declared_size(self.probe.subject.config, TARGET_VOCABULARY) is not None

    def last(self, role: str) -> int:
        """The largest id without a special meaning."""
        subject = self.probe.subject
        size = self.declared(role) or self.rows(role)
        special = special_ids(subject.config)
        return next((i for i in range(size - 1, 0, -1) if i not in special), size - 1)

    def fallbacks(self) -> set[int]:
        """Ids that stand for others: padding, and the unknown token."""
        subject = self.probe.subject
        named = (subject.pad_id, subject.config.get("unk_token_id"))
        tokenizer = getattr(subject.tokenizer, "unk_token_id", None)
        return {i for i in (*named, tokenizer) if isinstance(i, int)}

    def unlearned(self, role: str) -> tuple[str, int, int] | None:
        """A table that the ids index whose ``padding_idx`` is an id of texts, while another one is
        declared to be padding: its name, that id, whose row gets no gradient, and the declared
        one. A table that is shared with the head learns there."""
        subject = self.probe.subject
        pad = declared(subject.config, PADDING)
        pad = getattr(subject.tokenizer, "pad_token_id", None) if pad is None else pad
        if type(pad) is not int:
            return None
        special = special_ids(subject.config) | {pad}
        special |= set(getattr(subject.tokenizer, "all_special_ids", ()))
        tables, modules = self._known(role), dict(subject.model.named_modules())
        kept = [id(p) for module in modules.values() for p in vars(module)["_parameters"].values()]
        for name, module in modules.items():
            row = module.padding_idx if isinstance(module, torch.nn.Embedding) else None
            if row is None or row in special:
                continue
            weight = module.weight
            alone = weight.requires_grad and kept.count(id(weight)) == 1
            if alone and storage_of(weight) in tables:
                return name, row, pad
        return None

    @remembered
    def largest(self, role: str, given: int) -> tuple[str, str | None] | None:
        """What a text with the largest id raises and where, if it does."""
        self._known(role)
        try:
            self.probe.forward(self._with(role, given))
        except Exception as error:  # noqa: BLE001 - what it raises is the finding
            return error_line(error), self.probe.where_raised(error)
        return None

    @remembered
    def outside(self, role: str, given: int) -> Read | None:
        """The row that an id outside of the table reads; ``None`` where it raises."""
        tables = self._known(role)
        if not tables:
            raise NotApplicable("no table is indexed by the ids as they are")
        batch = self._with(role, given)
        try:
            self.probe.forward(batch)
        except Exception:  # noqa: BLE001 - raising is what it should do
            return None
        return self._row(role, given, batch, tables)

    @remembered
    def folded(self, role: str) -> Read | None:
        """The id whose row and logits, bit by bit, the largest one has, where ids index a table
        only while they are small."""
        tables = frozenset() if self._known(role) else self._known(role, self.rows(role) // 2)
        if not tables:
            return None
        last = self.last(role)
        batch = self._with(role, last)
        read = self._row(role, last, batch, tables)
        if read.row is None or read.plain:
            return None
        logits = (self.probe.forward(b).logits for b in (batch, self._with(role, read.row)))
        return read if torch.equal(*logits) else None

    def _row(self, role: str, given: int, batch: Batch, tables: frozenset[int]) -> Read:
        """The row that is read in the place of the odd id."""
        found = self._read(role, given, batch, tables)
        place = self._place(role)
        for index, where in found.read:
            if index.numel() == self._plain(role)[role].numel():
                row = int(index.reshape(-1)[place])
                return Read(given, row, where, plain=row == given)
        return Read(given, None, None, plain=False)

    @remembered
    def _known(self, role: str, below: int | None = None) -> frozenset[int]:
        """The storages of the tables that ids of a plain text index, if it has ids ``below`` a
        number alone."""
        batch = self._plain(role)
        if below:
            batch = batch.with_(**{role: batch[role] % below})
        reader = _Indexed(self.probe.subject.model, {role: batch[role]}, batch[role].shape[1])
        with self.probe.running("bounds") as subject, reader:
            subject.call(batch, {})
        return frozenset(reader.tables)

    def _read(self, role: str, given: int, batch: Batch, tables: frozenset[int]) -> _RowReader:
        ids = {r: t for r, t in batch.inputs.items() if r == role}
        reader = _RowReader(self.probe.subject.model, ids, tables, given)
        with self.probe.running("bounds") as subject, reader:
            subject.call(batch, {})
        return reader

    def _size(self) -> tuple[int, int]:
        return 2, min(self.probe.subject.sizes[1], 11)

    def _place(self, role: str) -> int:
        """The place of the odd id among all of the first text."""
        return self._size()[1] // 2

    def _plain(self, role: str) -> Batch:
        batch = self.probe.batch(*self._size(), "bounds", source=self._size()[1])
        return batch.with_(**{role: batch[role] % self.rows(role)})

    def _with(self, role: str, given: int) -> Batch:
        batch = self._plain(role)
        ids = batch[role].clone()
        ids[0, min(self._place(role), ids.shape[1] - 1)] = given
        return batch.with_(**{role: ids})

    @remembered
    def longer(self) -> Longer:
        """A text with one token more than the maximum length, and what tells that it is one."""
        probe, subject = self.probe, self.probe.subject
        longest = subject.max_length
        if longest is None:
            raise NotApplicable("neither the configuration nor a table bounds the length")
        if longest >= (_SMALL_LENGTH if subject.small else _LARGE_LENGTH):
            raise NotApplicable(f"{longest} tokens are too many to be run here")
        role = "decoder_input_ids" if subject.decodes else "input_ids"
        source = longest if subject.decodes else None
        longer = probe.batch(1, longest + 1, "longer", source=source)
        within = probe.batch(1, longest, "longer", source=source)
        outside = _Positions(subject.model, longer.inputs, longest + 1)
        try:
            with probe.running("longer") as running, outside:
                running.call(longer, {})
            logits = probe.forward(longer).logits
        except Exception as error:  # noqa: BLE001 - raising is one of the two right answers
            return Longer(longest, error=error_line(error))
        inside = _Positions(subject.model, longer.inputs, longest)
        with probe.running("longer") as running, inside:
            running.call(within, {})
        found = outside.folded(inside)
        return Longer(
            longest,
            shape=tuple(logits.shape),
            scale=float(finite(logits).abs().max()),
            seen=_last_effect(probe, role, longer) or _seen_when_moved(probe, role, longer),
            seen_before=_last_effect(probe, role, within),
            same=None if found is None else found[0],
            how="" if found is None else found[1],
            where=None if found is None else found[2],
        )


def _seen_when_moved(probe: Probe, role: str, batch: Batch) -> float:
    """``_last_effect`` with all parameters moved at random."""
    with probe.noised():
        return _last_effect(probe, role, batch)


class _Places(TableReader):
    """A reader of tables that knows in which module it is."""

    def __init__(self, model: torch.nn.Module, ids: Mapping[str, Any], length: int) -> None:
        super().__init__(model, ids, length)
        self._model = model
        self._inside: list[str] = []
        self._inputs: list[list[torch.Tensor]] = []
        self._hooks: list[Any] = []

    @property
    def where(self) -> str:
        """The innermost module that is running."""
        return self._inside[-1] if self._inside else ROOT

    def __enter__(self) -> Any:
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            self._hooks += [
                module.register_forward_pre_hook(self._enter(name or ROOT), with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, name: str) -> Any:
        def enter(_module: Any, args: Any, kwargs: Any) -> None:
            self._inside.append(name)
            given = (*args, *kwargs.values())
            self._inputs.append([a for a in given if isinstance(a, torch.Tensor)])

        return enter

    def _leave(self, *_: Any) -> None:
        self._inside.pop()
        self._inputs.pop()

    def given(self, number: int) -> str:
        """The innermost module that is running and was given the number."""
        for name, inputs in zip(reversed(self._inside), reversed(self._inputs), strict=True):
            if any(bool((t == number).any()) for t in inputs):
                return name
        return self.where


class _Indexed(TableReader):
    """Notes the storages of the model's tables that ids index."""

    def __init__(self, model: torch.nn.Module, ids: Mapping[str, Any], length: int) -> None:
        super().__init__(model, ids, length)
        self.tables: set[int] = set()

    def _lookup(self, table: torch.Tensor, index: torch.Tensor) -> None:
        if isinstance(index, torch.Tensor) and self._owns(table) and self._role(index) is not None:
            self.tables.add(storage_of(table))

    def _found(self, index: torch.Tensor, rows: int) -> bool:
        return False


class _RowReader(_Places):
    """Notes all that is read from tables, and in which module."""

    def __init__(
        self,
        model: torch.nn.Module,
        ids: Mapping[str, Any],
        tables: frozenset[int],
        number: int,
    ) -> None:
        super().__init__(model, ids, 1)
        self.tables = tables
        self.number = number
        self.read: list[tuple[torch.Tensor, str]] = []

    def _lookup(self, table: torch.Tensor, index: torch.Tensor) -> None:
        if not isinstance(index, torch.Tensor) or not self._owns(table):
            return
        if storage_of(table) in self.tables:
            self.read.append((index.detach().clone(), self.given(self.number)))

    def _found(self, index: torch.Tensor, rows: int) -> bool:
        return False


class _Positions(_Places):
    """Notes what is read from the model's tables at consecutive positions, and where positions
    are brought back into a range."""

    def __init__(self, model: torch.nn.Module, ids: Mapping[str, Any], length: int) -> None:
        super().__init__(model, {}, length)
        self.reads: list[tuple[int, torch.Tensor, str]] = []
        self.folds: list[tuple[torch.Tensor, str, str]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = [a.clone() for a in args if _counts(a, self.length)] if func in _FOLDS else []
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if before and isinstance(result, torch.Tensor) and result.shape == before[0].shape:
            self.folds.append((result.clone(), func.overloadpacket.__name__, self.where))
        return result

    def _lookup(self, table: torch.Tensor, index: torch.Tensor) -> None:
        whole = isinstance(index, torch.Tensor) and not index.is_floating_point()
        if whole and index.dim() and index.shape[-1] == self.length and self._owns(table):
            row = index.reshape(-1, self.length)[0].clone()
            self.reads.append((storage_of(table), row, self.where))

    def folded(self, within: _Positions) -> tuple[tuple[int, int], str, str] | None:
        """Two positions that are one, in this run and not in the shorter one ``within``."""
        distinct = {place for place, row, _ in within.reads if _same(row) is None}
        for place, row, where in self.reads:
            same = _same(row)
            if place in distinct and same is not None and _rising(row[:-1]):
                return same, f"read row {int(row[same[1]])} of one table", where
        kept = [_same(values) is None for values, _, _ in within.folds]
        for (values, name, where), was in zip(self.folds, kept, strict=False):
            same = _same(values.reshape(-1, self.length)[0])
            if was and same is not None:
                return same, f"get the same number from {name}", where
        return None


def _counts(value: Any, length: int) -> bool:
    """Whether a tensor counts up by one over ``length`` positions, the same in
    every row."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[-1] != length:
        return False
    if value.dtype is torch.bool or value.numel() == 0:
        return False
    rows = value.reshape(-1, length)
    return bool((rows == rows[0, 0] + torch.arange(length, device=rows.device)).all())


def _rising(row: torch.Tensor) -> bool:
    return bool((row[1:] - row[:-1] == 1).all())


def _same(row: torch.Tensor) -> tuple[int, int] | None:
    """The first two places that hold the same number."""
    values = row.reshape(-1).tolist()
    first: dict[int, int] = {}
    for place, value in enumerate(values):
        if value in first:
            return first[value], place
        first[value] = place
    return None


def _last_effect(probe: Probe, role: str, batch: Batch) -> float:
    """How far the logits move when the last token (before an end) is another one; infinitely far
    where the model takes no other one there."""
    ids = batch[role].clone()
    place = -2 if probe.subject.ends else -1
    taken = {*probe.subject.text_ids, int(ids[0, place])}
    ids[:, place] = next((i for i in range(probe.subject.vocab_size) if i not in taken), 0)
    before = probe.forward(batch).logits
    try:
        after = probe.forward(batch.with_(**{role: ids})).logits
    except Exception:  # noqa: BLE001 - a classifier may ask for its end token
        return float("inf")
    return float(difference(before, after).max())
