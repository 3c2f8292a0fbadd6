"""Where the weights live: who shares them, what a checkpoint keeps, what moves with the model."""

from __future__ import annotations

import contextlib
import copy
import inspect
import linecache
import re
import tempfile
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import error_line, text_of
from pytest_transformer_validate.optional import find
from pytest_transformer_validate.probe.compare import difference, trace
from pytest_transformer_validate.probe.elsewhere import (
    MADE,
    PRETENDED,
    Mixed,
    Pretence,
    held_tensors,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT, first_to_differ, where_raised
from pytest_transformer_validate.sources.directory import quiet
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.sources.config import ModelConfig
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_aten = torch.ops.aten
STATE, SAFE, PRETRAINED = "state_dict", "safetensors", "save_pretrained"
_EMPTY = {dict, OrderedDict}
FROM_CONFIG = "built from its configuration"
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


@dataclass(frozen=True)
class Trip:
    """A checkpoint, taken after a forward and loaded into a fresh instance.

    ``way`` is how (state_dict, safetensors, save_pretrained) and ``fresh`` what the instance is:
    built again by its source, from its configuration, or a copy with all weights blanked.
    ``error`` is what loading raised, ``lost`` the tensors that still are blank after it.
    """

    way: str
    fresh: str
    value: float = 0.0
    reference: torch.Tensor | None = None
    error: str | None = None
    lost: tuple[str, ...] = ()
    where: str | None = None


@dataclass(frozen=True)
class Stays:
    """What does not follow the model to another device: the operation, what met it, and where;
    ``aware`` says whether the code that did so names devices elsewhere."""

    operation: str
    shape: tuple[int, ...]
    origin: str
    where: str | None
    aware: bool
    line: str


class Storage(Passes):
    """Passes about tensors as things that are shared, saved and moved."""

    def declares_tie(self) -> tuple[str, bool] | None:
        """The configuration's word on tying the head to the embedding: the key and its value.

        A model may list what it ties: where the head is not in that list, the key, which many
        models share, is not about it.
        """
        config = self.probe.subject.config
        listed = getattr(self.probe.subject.model, "_tied_weights_keys", "no list")
        if listed != "no list" and not _lists(listed, self.ends().head):
            return None
        for key in _keys(config):
            if _TIE.search(key) and _TIES_OUTPUT.search(key) and not _TIES_OTHERS.search(key):
                value = config.get(key)
                if isinstance(value, bool):
                    return key, value
        return None

    @remembered
    def ends(self) -> Ends:
        """The table that the ids index and the tensor that makes the logits, compared."""
        probe, subject = self.probe, self.probe.subject
        batch = probe.batch(*_few(probe), "ends")
        roles = {role: t for role, t in batch.inputs.items() if role.endswith("input_ids")}
        with probe.running("ends"), _EndsReader(subject.model, roles) as reader:
            subject.call(batch, {})
        named = _named_storages(subject.model)
        head = _head(reader, subject.facts.width)
        tables = reader.tables
        if head is None or not tables:
            return Ends(table=_names(named, tables[0]) if tables else ())
        table = next((t for t in tables if _storage(t) == _storage(head)), None)
        if table is None:
            twin = next((t for t in tables if _same_numbers(t, head)), None)
            alike = (t for t in reversed(tables) if set(t.shape) == set(head.shape[-2:]))
            table = next(alike, tables[-1]) if twin is None else twin
            return Ends(_names(named, table), _names(named, head), copied=twin is not None)
        names = _names(named, table)
        return Ends(names, names, True, False, _apart(subject.model, names), self._undone(names))

    def _undone(self, names: tuple[str, ...]) -> str | None:
        """What of a copy and a conversion ends the sharing of storage, for a small model."""
        if not self.probe.subject.small or len(names) < 2:
            return None
        try:
            twin = duplicate(self.probe.subject.model)
        except Exception:  # noqa: BLE001 - a model need not support being copied
            return None
        for what, change in (("copy.deepcopy", None), (".to(dtype)", torch.float64)):
            if change is not None:
                twin.to(change)
            places = {_storage(t) for n, t in _named_tensors(twin) if n in names}
            if len(places) > 1:
                return what
        return None

    def _another(self, *, copied: bool) -> tuple[torch.nn.Module, str]:
        probe, model = self.probe, self.probe.subject.model
        makers = {"built again": probe.rebuild, FROM_CONFIG: self._remake()}
        for how, make in makers.items():
            if make is None or copied:
                continue
            made = make(probe.seed + 1)
            if made is not None and _is_another(made, model):
                device, dtype = probe.subject.device, probe.subject.dtype
                return made.to(device, dtype).eval(), how
        return duplicate(model).eval(), "a copy"

    def ways(self) -> list[str]:
        """How a checkpoint of this model can be made: see Trip."""
        model = self.probe.subject.model
        ways = [STATE]
        if self.probe.subject.small:
            ways += [SAFE] if find("safetensors.torch") else []
            both = hasattr(model, "save_pretrained") and hasattr(type(model), "from_pretrained")
            ways += [PRETRAINED] if both else []
        return ways

    def _remake(self) -> Any:
        """How to make the model from the configuration that it keeps, where that is enough."""
        model = self.probe.subject.model
        config = getattr(model, "config", None)
        if config is None or self.probe.rebuild is not None or not _takes_config(type(model)):
            return None

        def make(seed: int) -> torch.nn.Module | None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                try:
                    return type(model)(copy.deepcopy(config))
                except Exception:  # noqa: BLE001 - then it is judged on a copy
                    return None

        return make

    @remembered
    def round_trip(self, way: str) -> Trip:
        """A checkpoint of the used model in a fresh instance; ``way`` as in Trip.

        A small model has all parameters moved at random first, because a gate that starts at zero
        hides what is behind it. What ``safetensors`` and ``save_pretrained`` raise comes through.
        """
        trip = self._trip(way, copied=False)
        remade = trip.fresh == FROM_CONFIG and not _intact(trip)
        # The object may have been changed after it was built: then fresh instances agree with
        # each other on another model, and the checkpoint is judged on a copy.
        return self._trip(way, copied=True) if remade and self._remade_agree() else trip

    def _trip(self, way: str, *, copied: bool) -> Trip:
        probe = self.probe
        batch = probe.batch(*_few(probe), "round trip")
        # What save_pretrained leaves out, a sinusoidal table for one, is computed again as it was.
        condition = "noised" if probe.subject.small and way != PRETRAINED else "as loaded"
        with probe.under(condition):
            twin, how = self._loaded(batch, way, copied=copied)
            if isinstance(twin, str):
                return Trip(way, how, error=twin, where=_place_of(twin, probe.subject.model))
            lost = tuple(_blanks(twin.model))
            if lost:
                return Trip(way, how, lost=lost, where=lost[0].rpartition(".")[0] or ROOT)
            logits, again = (
                probe.forward(batch).logits,
                probe_beside(probe, twin).forward(batch).logits,
            )
            trip = Trip(way, how, value=_distance(logits, again), reference=logits)
            if _intact(trip):
                return trip
            where = first_to_differ(
                trace(probe, batch), trace(probe_beside(probe, twin), batch), _moved
            )
            return replace(trip, where=where)

    def _loaded(self, batch: Batch, way: str, *, copied: bool) -> tuple[Subject | str, str]:
        """A fresh instance with a checkpoint taken after a forward, or what loading raised, and
        how the instance was made."""
        probe = self.probe
        if way == PRETRAINED:
            with probe.running("forward") as subject:
                return twin_of(subject, _from_pretrained(subject)), "from_pretrained"
        model, how = self._another(copied=copied)
        _blank(model)
        with probe.running("forward") as subject:
            subject(batch)
            try:
                _load_into(model, subject.model, way)
            except Exception as error:
                if way != STATE:
                    raise
                return f"{type(error).__name__}: {text_of(error)}", how
        return twin_of(probe.subject, model), how

    def _remade_agree(self) -> bool:
        """Whether two instances built from the configuration agree once they hold one
        checkpoint."""
        probe, make = self.probe, self._remake()
        batch = probe.batch(*_few(probe), "round trip")
        found = []
        for seed in (probe.seed + 1, probe.seed + 2):
            model = None if make is None else make(seed)
            if model is None:
                return True
            model.to(probe.subject.device, probe.subject.dtype).eval()
            try:
                model.load_state_dict(probe.subject.model.state_dict())
            except Exception:  # noqa: BLE001 - the finding is what loading the used model raised
                return False
            found.append(probe_beside(probe, twin_of(probe.subject, model)).forward(batch).logits)
        return _distance(*found) <= 1e-6 * max(1.0, float(found[0].abs().max()))

    @remembered
    def stays(self) -> tuple[Stays | None, str | None]:
        """What does not follow the model to another device, and what kept that from being tried.

        The device is a pretended one: see ``elsewhere``.
        """
        probe, subject = self.probe, self.probe.subject
        batch = probe.batch(*_few(probe), "elsewhere")
        try:
            model = _light_copy(subject.model)
        except Exception as error:  # noqa: BLE001 - a model need not support being copied
            return None, f"it cannot be copied: {error_line(error, 160)}"
        held = dict(self.held(model))
        twin = twin_of(subject, model)
        twin.device = PRETENDED
        beside = probe_beside(probe, twin)
        try:
            with torch.no_grad(), Pretence(held):
                model.to(PRETENDED)
                given = batch.to(PRETENDED)
                with _seeded(beside):
                    twin.call(given, {})
        except Mixed as mixed:
            if mixed.origin == MADE and "meta" in _code_of(_owner(mixed)):
                return None, "its code treats the device that is pretended apart from others"
            where = where_raised(model, mixed)
            aware, line = _names_device(_owner(mixed)), _code_line(mixed)
            return Stays(mixed.operation, mixed.shape, mixed.origin, where, aware, line), None
        except Exception as error:  # noqa: BLE001 - not every operation can be pretended
            if "same device" not in str(error):
                return None, error_line(error, 160)
            aware, line = _names_device(_owner(error)), _code_line(error)
            return Stays("torch", (), MADE, where_raised(model, error), aware, line), None
        return None, None

    def held(self, model: torch.nn.Module | None = None) -> list[tuple[str, torch.Tensor]]:
        """Tensors in plain attributes that are no parameters, buffers or views of them."""
        model = self.probe.subject.model if model is None else model
        own = {_storage(t) for t in (*model.parameters(), *model.buffers()) if not _lazy(t)}
        found = []
        for name, module in model.named_modules():
            for path, tensor in held_tensors(module, name):
                if not _lazy(tensor) and _storage(tensor) not in own and tensor.numel():
                    found.append((path, tensor))
        return found


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
        if func.overloadpacket in _PRODUCTS:
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


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for name, module in model.named_modules():
        yield from held_tensors(module, name)


def _named_storages(model: torch.nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, tensor in _named_tensors(model):
        if not _lazy(tensor) and tensor.numel():
            found.setdefault(_storage(tensor), []).append(name)
    return found


def _names(named: dict[int, list[str]], tensor: torch.Tensor) -> tuple[str, ...]:
    return tuple(named.get(_storage(tensor), ()))


def _apart(model: torch.nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Two of the names that are different parameters over one storage, if there are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {id(parameters[n]): n for n in names if n in parameters}
    return tuple(held.values()) if len(held) > 1 else ()


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _lazy(tensor: torch.Tensor) -> bool:
    return torch.nn.parameter.is_lazy(tensor)


def _lists(listed: Any, names: tuple[str, ...]) -> bool:
    """Whether a list of tied parameters, by name or pattern, has one of the names."""
    entries = [*listed, *listed.values()] if isinstance(listed, dict) else list(listed or ())
    patterns = [entry for entry in entries if isinstance(entry, str)]
    return any(re.search(f"(^|\\.)(?:{p})$", name) for p in patterns for name in names)


def _keys(config: ModelConfig) -> list[str]:
    """The keys of a configuration; reading a foreign one can raise anything."""
    try:
        own = list(config)
    except Exception:  # noqa: BLE001 - see above
        own = []
    return list(dict.fromkeys([*own, "tie_word_embeddings", "tie_weights", "weight_tying"]))


def _few(probe: Probe) -> tuple[int, int]:
    """(B, T) of one short pass."""
    rows, length = probe.subject.sizes
    return (rows, length) if probe.subject.small else (min(rows, 2), length)


def twin_of(subject: Subject, model: torch.nn.Module) -> Subject:
    """The same subject with another model object: what is known of its inputs stays known."""
    twin = copy.copy(subject)
    twin.model = model
    return twin


def _takes_config(kind: type) -> bool:
    """Whether a class is built from nothing but a configuration."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        return False
    first, others = parameters[:1], parameters[1:]
    plain = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    free = all(p.default is not p.empty or p.kind in plain for p in others)
    return bool(first) and first[0].name in {"config", "cfg", "args", "params"} and free


def _is_another(made: torch.nn.Module, model: torch.nn.Module) -> bool:
    """Whether a model shares no storage with the given one."""
    own = {_storage(t) for t in (*model.parameters(), *model.buffers()) if not _lazy(t)}
    return made is not model and not any(
        _storage(t) in own for t in (*made.parameters(), *made.buffers()) if not _lazy(t)
    )


def _blank(model: torch.nn.Module) -> None:
    """Fill what a checkpoint has to restore with NaN."""
    with torch.no_grad():
        for tensor in _restorable(model).values():
            tensor.fill_(float("nan"))


def _blanks(model: torch.nn.Module) -> list[str]:
    """Names of tensors that are still blank."""
    return [n for n, t in _restorable(model).items() if bool(t.isnan().all())]


def _restorable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of floating point numbers."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                found[f"{name}.{key}" if name else key] = buffer
    return {
        name: tensor.detach()
        for name, tensor in found.items()
        if not _lazy(tensor) and tensor.is_floating_point() and tensor.numel()
    }


def _load_into(fresh: torch.nn.Module, model: torch.nn.Module, way: str) -> None:
    """Load a checkpoint of ``model`` into another instance, strictly."""
    if way == STATE:
        fresh.load_state_dict(model.state_dict())
        return
    formats: Any = find("safetensors.torch")
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "model.safetensors"))
        formats.save_model(model, file)
        formats.load_model(fresh, file, strict=False)


def _from_pretrained(subject: Subject) -> torch.nn.Module:
    """The model, saved and loaded by its own two methods."""
    model: Any = subject.model
    logging = find("transformers.utils.logging")
    silence = contextlib.nullcontext() if logging is None else quiet(logging)
    with tempfile.TemporaryDirectory() as folder, silence:
        model.save_pretrained(folder)
        loaded: torch.nn.Module = type(model).from_pretrained(folder)
    return loaded.to(subject.device, subject.dtype).eval()


def probe_beside(probe: Probe, twin: Subject) -> Probe:
    """A probe over another subject, with the same seed."""
    return type(probe)(twin, seed=probe.seed)


def _place_of(error: str, model: torch.nn.Module) -> str | None:
    """The module whose tensor an error about a state dict names first."""
    modules = dict(model.named_modules())
    names: list[tuple[str, str]] = re.findall(r'"([\w.]+)"|for ([\w.]+):', error)
    for name in names:
        key = name[0] or name[1]
        while "." in key:
            key = key.rpartition(".")[0]
            if key in modules:
                return key
        if name[0]:
            return ROOT
    return None


def _intact(trip: Trip) -> bool:
    if trip.error or trip.lost or trip.reference is None:
        return False
    return trip.value <= 1e-6 * max(1.0, float(trip.reference.abs().max()))


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    gap = torch.where(a.isnan() & b.isnan(), 0, difference(a, b))
    return float(gap.max()) if gap.numel() else 0.0


def _moved(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and not _distance(a, b) <= 1e-6 * float(a.abs().max())


def duplicate(model: torch.nn.Module) -> torch.nn.Module:
    """A copy; tensors in plain attributes that belong to a graph are copied without it."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        for _, tensor in held_tensors(module, name):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
        for value in vars(module).values():
            if type(value) in _EMPTY and not value:  # most of what there is to copy
                memo[id(value)] = type(value)()
    return copy.deepcopy(model, memo)


def _light_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the modules around the same parameters; buffers and attributes are copied."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    for _, tensor in _named_tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return copy.deepcopy(model, memo)


@contextlib.contextmanager
def _seeded(probe: Probe) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(probe.seed_for("elsewhere"))
        probe.subject.model.eval()
        yield


def _names_device(module: torch.nn.Module | None) -> bool:
    """Whether the code of a module says ``device`` anywhere: then it is not written for one
    device alone."""
    return "device" in _code_of(module)


def _code_of(module: torch.nn.Module | None) -> set[str]:
    """The words in the code of a module's own classes."""
    own = [k for k in type(module).__mro__ if not _is_torchs(k)]
    functions = [getattr(f, "__func__", f) for kind in own for f in vars(kind).values()]
    codes = [getattr(function, "__code__", None) for function in functions]
    return {word for code in codes if code is not None for word in _words(code)}


def _words(code: CodeType) -> set[str]:
    """Names, variables and keywords in compiled code."""
    found = {*code.co_names, *code.co_varnames}
    for constant in code.co_consts:
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, tuple):
            found.update(word for word in constant if isinstance(word, str))
        elif isinstance(constant, CodeType):
            found |= _words(constant)
    return found


def _owner(error: BaseException) -> torch.nn.Module | None:
    """The innermost module with code of its own that was running when an error was raised."""
    found, trace_ = None, error.__traceback__
    while trace_ is not None:
        owner = trace_.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and not _is_torchs(type(owner)):
            found = owner
        trace_ = trace_.tb_next
    return found


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"torch", "builtins"}


def _code_line(error: BaseException) -> str:
    """The model's own line of code that was running, as far as it can be told."""
    found, trace_ = "", error.__traceback__
    while trace_ is not None:
        code = trace_.tb_frame.f_code
        inside = f"{Path(torch.__file__).parent}"
        mine = str(Path(__file__).parent.parent / "probe")
        if not code.co_filename.startswith((inside, mine)) and "subject" not in code.co_filename:
            found = linecache.getline(code.co_filename, trace_.tb_lineno).strip() or found
        trace_ = trace_.tb_next
    return found[:120]
