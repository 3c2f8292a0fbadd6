"""Whether the output head and the embedding are one tensor, and what is declared about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from pytest_transformer_validate.probe.compare import few_rows
from pytest_transformer_validate.probe.copies import duplicate
from pytest_transformer_validate.probe.holders import named_tensors, storage_of
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.subject.dispatch import operation
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from pytest_transformer_validate.sources.config import ModelConfig


_aten = torch.ops.aten


_PRODUCTS = {
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.linear,
    _aten._addmm_activation,
}


_TIE = re.compile(r"(^|_)(tie|tied|tying)(_|$)|share\w*_emb")
_TIES_OUTPUT = re.compile(r"emb|weight|output|head|input|^tie$|^tied$|decoder")
_TIES_OTHERS = re.compile(r"encoder_decoder|layers?|blocks?|2nd|qk|attention|experts?|lora")


# What a class may have of its own to be copied or converted.
_CHANGES = frozenset(
    {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "_apply", "to"}
)


@dataclass(frozen=True)
class Ends:
    """What the ids index and what makes the logits: names of parameters, buffers or attributes.

    A tensor that several modules share has several names. ``shared`` says whether the table and
    the head lie in one storage, ``copied`` that they do not and hold the same numbers, ``apart``
    the names of two parameters over one storage, ``undone`` what ends the sharing.
    """

    table: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    shared: bool = False
    copied: bool = False
    apart: tuple[str, ...] = ()
    undone: str | None = None


class Tying(Passes):
    """Passes about the table that ids index and the head that makes the logits."""

    @remembered
    def ends(self) -> Ends:
        """The table that the ids index and the tensor that makes the logits, compared."""
        probe, subject = self.probe, self.probe.subject
        batch = probe.batch(*few_rows(probe), "ends")
        roles = {role: t for role, t in batch.inputs.items() if role.endswith("input_ids")}
        with probe.running("ends"), _EndsReader(subject.model, roles) as reader:
            subject.call(batch, {})
        named = _named_storages(subject.model)
        head = _head(reader, subject.facts.width)
        tables = reader.tables
        if head is None or not tables:
            return Ends(table=_names(named, tables[0]) if tables else ())
        table = next((t for t in tables if storage_of(t) == storage_of(head)), None)
        if table is None:
            twin = next((t for t in tables if _same_numbers(t, head)), None)
            alike = (t for t in reversed(tables) if set(t.shape) == set(head.shape[-2:]))
            table = next(alike, tables[-1]) if twin is None else twin
            return Ends(_names(named, table), _names(named, head), copied=twin is not None)
        names = _names(named, table)
        return Ends(names, names, True, False, _apart(subject.model, names), self._undone(names))

    def declares_tie(self) -> tuple[str, bool] | None:
        """The configuration's word on tying the head to the embedding, the key and its value, or
        a plain attribute of the model that is on and says so.

        A model may list what it ties, or a part of it whose configuration this is: where the head
        is not in that list, the key, which many models share, is not about it.
        """
        config = self.probe.subject.config
        lists = _lists_of_ties(self.probe.subject.model, config)
        if lists and not any(_lists(listed, self.ends().head) for listed in lists):
            return None
        for key in filter(_ties_output, _keys(config)):
            value = config.get(key)
            if isinstance(value, bool):
                return key, value
        if self.probe.subject.decodes:  # which of the three are one, a flag does not say
            return None
        flags = (n for n, value in vars(self.probe.subject.model).items() if value is True)
        return next(((name, True) for name in flags if _ties_output(name)), None)

    def _undone(self, names: tuple[str, ...]) -> str | None:
        """What of a copy and a conversion ends the sharing of storage, for a small model."""
        model = self.probe.subject.model
        if not self.probe.subject.small or len(names) < 2 or _stays_one(model, names):
            return None
        try:
            twin = duplicate(model)
        except Exception:  # noqa: BLE001 - a model need not support being copied
            return None
        for what, change in (("copy.deepcopy", None), (".to(dtype)", torch.float64)):
            if change is not None:
                convert(twin, change)
            places = {storage_of(t) for n, t in named_tensors(twin) if n in names}
            if len(places) > 1:
                return what
        return None


class _EndsReader(TableReader):
    """Notes the tables that ids index, and the products of the model's own tensors."""

    def __init__(self, model: torch.nn.Module, ids: dict[str, torch.Tensor]) -> None:
        super().__init__(model, ids, 1)
        self.tables: list[torch.Tensor] = []
        self.products: list[tuple[torch.Tensor, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if operation(func) in _PRODUCTS:
            for factor in args:
                if isinstance(factor, torch.Tensor) and factor.dim() > 1 and self._owns(factor):
                    self.products.append((factor, result.shape[-1]))
        return result

    def _lookup(self, table: torch.Tensor, index: torch.Tensor) -> None:
        role = self._role(index) if isinstance(index, torch.Tensor) else None
        if role is not None and self._owns(table) and table.dim() == 2:
            self.tables.append(table)


def _head(reader: _EndsReader, width: int) -> torch.Tensor | None:
    """The tensor whose product makes the logits: the last one as wide as they are, else the last
    one with the shape of a table (a padded vocabulary is cut off behind it)."""
    for factor, wide in reversed(reader.products):
        if wide == width:
            return factor
    shapes = [set(table.shape) for table in reader.tables]
    return next((f for f, _ in reversed(reader.products) if set(f.shape[-2:]) in shapes), None)


def _same_numbers(table: torch.Tensor, head: torch.Tensor) -> bool:
    """Whether a table (V, d) and a head (V, d) or (d, V) hold the same numbers, no constant."""
    matrix = head[0] if head.dim() == 3 else head
    for other in (matrix, matrix.T):
        rows = min(table.shape[0], other.shape[0])
        if other.shape[1] == table.shape[1] and rows > 1:
            mine = table[:rows]
            if bool((mine == other[:rows]).all()) and bool((mine != mine[:1, :1]).any()):
                return True
    return False


def _named_storages(model: torch.nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        if not is_lazy(tensor) and tensor.numel():
            found.setdefault(storage_of(tensor), []).append(name)
    return found


def _names(named: dict[int, list[str]], tensor: torch.Tensor) -> tuple[str, ...]:
    return tuple(named.get(storage_of(tensor), ()))


def _apart(model: torch.nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Two of the names that are different parameters over one storage, if there are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {id(parameters[n]): n for n in names if n in parameters}
    return tuple(held.values()) if len(held) > 1 else ()


def _stays_one(model: torch.nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the names are one parameter of a model whose copy and conversion are torch's."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = [parameters.get(name) for name in names]
    if type(found[0]) is not torch.nn.Parameter or any(each is not found[0] for each in found):
        return False
    modules = list(model.modules())
    kinds = {kind for module in modules for kind in type(module).__mro__}
    own = [vars(kind) for kind in kinds if not kind.__module__.startswith(("torch.", "builtins"))]
    return all(_CHANGES.isdisjoint(named) for named in (*own, *map(vars, modules)))


def _lists_of_ties(model: torch.nn.Module, config: ModelConfig) -> list[Any]:
    """What the model lists as tied; without a list, what those of its parts list that have the
    very same configuration."""
    if hasattr(model, "_tied_weights_keys"):
        return [model._tied_weights_keys]
    parts = (m for m in model.modules() if getattr(m, "config", None) is config.raw)
    return [m._tied_weights_keys for m in parts if hasattr(m, "_tied_weights_keys")]


def _lists(listed: Any, names: tuple[str, ...]) -> bool:
    """Whether a list of tied parameters, by name or pattern, has one of the names."""
    entries = [*listed, *listed.values()] if isinstance(listed, dict) else list(listed or ())
    patterns = [entry for entry in entries if isinstance(entry, str)]
    return any(re.search(f"(^|\\.)(?:{p})$", name) for p in patterns for name in names)


def _ties_output(name: str) -> bool:
    """Whether the name of a key or attribute is about tying the head to the embedding."""
    return bool(_TIE.search(name) and _TIES_OUTPUT.search(name) and not _TIES_OTHERS.search(name))


def _keys(config: ModelConfig) -> list[str]:
    """The keys of a configuration; reading a foreign one can raise anything."""
    try:
        own = list(config)
    except Exception:  # noqa: BLE001 - see above
        own = []
    return list(dict.fromkeys([*own, "tie_word_embeddings", "tie_weights", "weight_tying"]))
