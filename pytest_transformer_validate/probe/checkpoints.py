"""What a checkpoint keeps: one taken of the used model, in a fresh instance."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import error_line, text_of
from pytest_transformer_validate.optional import find
from pytest_transformer_validate.probe.blanks import blank, blanks, hold_the_same
from pytest_transformer_validate.probe.compare import difference, few_rows, trace
from pytest_transformer_validate.probe.copies import duplicate, probe_beside, twin_of
from pytest_transformer_validate.probe.holders import own_storages
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT, first_to_differ
from pytest_transformer_validate.sources.directory import quiet
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.subject.guard import seed_all

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

STATE, SAFE, PRETRAINED = "state_dict", "safetensors", "save_pretrained"
FROM_CONFIG = "built from its configuration"


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


class Checkpoints(Passes):
    """Passes with checkpoints."""

    def ways(self) -> list[str]:
        """How a checkpoint of this model can be made: see Trip."""
        model = self.probe.subject.model
        ways = [STATE]
        if self.probe.subject.small:
            ways += [SAFE] if find("safetensors.torch") else []
            both = hasattr(model, "save_pretrained") and hasattr(type(model), "from_pretrained")
            ways += [PRETRAINED] if both else []
        return ways

    @remembered
    def round_trips(self) -> tuple[list[Trip], dict[str, str]]:
        """Checkpoints of the used model in a fresh instance, up to the first one that is lost on
        the way, and why some ways were not tried.

        A small model has all parameters moved at random first, because a gate that starts at zero
        hides what is behind it. What loading a ``state_dict`` raises is the Trip's error.
        """
        trips, untried = self._into_another(copied=False)
        remade = trips[-1].fresh == FROM_CONFIG and not _intact(trips[-1])
        # The object may have been changed after it was built: then fresh instances agree with
        # each other on another model, and the checkpoint is judged on a copy.
        if remade and self._remade_agree():
            trips, untried = self._into_another(copied=True)
        if PRETRAINED in self.ways() and _intact(trips[-1]):
            try:
                found = self._pretrained()
            except Exception as error:  # noqa: BLE001 - told, and the other ways were judged
                found = error_line(error)
            if isinstance(found, str):
                untried[PRETRAINED] = found
            else:
                trips.append(found)
        return trips, untried

    def _into_another(self, *, copied: bool) -> tuple[list[Trip], dict[str, str]]:
        """The ways that load into one instance, which is blanked before each."""
        probe = self.probe
        batch = probe.batch(*few_rows(probe), "round trip")
        with probe.under("noised" if probe.subject.small else "as loaded"):
            model, how = self._another(copied=copied)
            twin = probe_beside(probe, twin_of(probe.subject, model))
            trip = self._from_state(twin, how, batch)
            if SAFE not in self.ways() or not _intact(trip):
                return [trip], {}
            try:
                return [trip, self._from_file(twin, trip, batch)], {}
            except Exception as error:  # noqa: BLE001 - told, and the state dict was judged
                return [trip], {SAFE: error_line(error)}

    def _from_state(self, twin: Probe, how: str, batch: Batch) -> Trip:
        """The ``state_dict``, taken after a forward and loaded strictly."""
        model = twin.subject.model
        blank(model)
        with self.probe.running("forward") as subject:
            logits = subject(batch).logits
            try:
                model.load_state_dict(subject.model.state_dict())
            except Exception as error:  # noqa: BLE001 - the finding
                text = f"{type(error).__name__}: {text_of(error)}"
                return Trip(STATE, how, error=text, where=_place_of(text, subject.model))
        return self._compared(Trip(STATE, how, reference=logits), twin, batch)

    def _from_file(self, twin: Probe, state: Trip, batch: Batch) -> Trip:
        """A file of safetensors. Where it brings back the very numbers of the model, which the
        state dict brought, too, there is nothing new to compare."""
        subject, fresh = self.probe.subject, twin.subject.model
        kept = hold_the_same(fresh, subject.model)
        blank(fresh)
        with contextlib.ExitStack() as stack:
            if not kept:
                stack.enter_context(self.probe.running("forward"))(batch)
            _through_a_file(subject.model, fresh)
        trip = replace(state, way=SAFE)
        if kept and hold_the_same(fresh, subject.model):
            return trip
        return self._compared(trip, twin, batch)

    def _pretrained(self) -> Trip | str:
        """What ``save_pretrained`` writes. What it leaves out, a sinusoidal table for one, is
        computed again as it was, so that nothing is moved.

        Says why not where the class has no place for a tensor of the model: who changed it after
        it was built (adapters, another kind of layer) does not load it by its class.
        """
        probe = self.probe
        batch = probe.batch(*few_rows(probe), "round trip")
        with probe.running("forward") as subject:
            loaded = _from_pretrained(subject)
            added = _added(subject.model, loaded)
            if added is not None:
                return f"{type(loaded).__name__} has no place for {added}, which was added later"
            twin = probe_beside(probe, twin_of(subject, loaded))
        logits = probe.forward(batch).logits
        return self._compared(Trip(PRETRAINED, "from_pretrained", reference=logits), twin, batch)

    def _compared(self, trip: Trip, twin: Probe, batch: Batch) -> Trip:
        """The trip with what is lost in the instance, or how far and where it differs."""
        lost = tuple(blanks(twin.subject.model))
        if lost:
            return Trip(trip.way, trip.fresh, lost=lost, where=lost[0].rpartition(".")[0] or ROOT)
        assert trip.reference is not None
        trip = replace(trip, value=_distance(trip.reference, twin.forward(batch).logits))
        if _intact(trip):
            return trip
        where = first_to_differ(trace(self.probe, batch), trace(twin, batch), _moved)
        return replace(trip, where=where)

    def _another(self, *, copied: bool) -> tuple[torch.nn.Module, str]:
        probe, model = self.probe, self.probe.subject.model
        makers = {"built again": probe.rebuild, FROM_CONFIG: self._remake()}
        for how, make in makers.items():
            if make is None or copied:
                continue
            made = make(probe.seed + 1)
            if how == FROM_CONFIG and made is not None and _added(model, made):
                continue  # another layer was put in afterwards: its class alone does not make it
            if made is not None and _is_another(made, model):
                return _as_is(made, probe.subject), how
        return duplicate(model).eval(), "a copy"

    def _remake(self) -> Any:
        """How to make the model from the configuration that it keeps, where that is enough."""
        model = self.probe.subject.model
        config = getattr(model, "config", None)
        if config is None or self.probe.rebuild is not None or not _takes_config(type(model)):
            return None

        def make(seed: int) -> torch.nn.Module | None:
            with torch.random.fork_rng(devices=[]):
                seed_all(seed)
                try:
                    return type(model)(copy.deepcopy(config))
                except Exception:  # noqa: BLE001 - then it is judged on a copy
                    return None

        return make

    def _remade_agree(self) -> bool:
        """Whether two instances built from the configuration agree once they hold one
        checkpoint."""
        probe, make = self.probe, self._remake()
        batch = probe.batch(*few_rows(probe), "round trip")
        found = []
        for seed in (probe.seed + 1, probe.seed + 2):
            model = None if make is None else make(seed)
            if model is None:
                return True
            _as_is(model, probe.subject)
            try:
                model.load_state_dict(probe.subject.model.state_dict())
            except Exception:  # noqa: BLE001 - the finding is what loading the used model raised
                return False
            found.append(probe_beside(probe, twin_of(probe.subject, model)).forward(batch).logits)
        return _distance(*found) <= 1e-6 * max(1.0, float(found[0].abs().max()))


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
    return made is not model and own_storages(made).isdisjoint(own_storages(model))


def _added(model: torch.nn.Module, made: torch.nn.Module) -> str | None:
    """The first tensor of a model for which another instance of its class has no place."""
    places = made.state_dict().keys()
    return next((key for key in model.state_dict() if key not in places), None)


def _through_a_file(model: torch.nn.Module, fresh: torch.nn.Module) -> None:
    """Save a model as safetensors, and load that into another instance."""
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
        asked = _implementations(model, loaded)
        if asked:
            loaded = type(model).from_pretrained(folder, **asked)
    return _as_is(loaded, subject)


def _implementations(model: torch.nn.Module, loaded: torch.nn.Module) -> dict[str, str]:
    """Which implementations of one and the same arithmetic (eager, sdpa) the model runs and a
    loaded one does not: no checkpoint keeps them, who loads it asks for them."""
    configs = [getattr(m, "config", None) for m in (model, loaded)]
    asked = {}
    for key in ("attn_implementation", "experts_implementation"):
        here, there = (getattr(config, f"_{key}", None) for config in configs)
        if isinstance(here, str) and here != there:
            asked[key] = here
    return asked


def _as_is(made: torch.nn.Module, subject: Subject) -> torch.nn.Module:
    """Another instance, on the device and with the dtypes of the model.

    One that has them already is not converted: that would round what a model in half precision
    keeps in float32, its inverse frequencies for one.
    """
    dtypes, wanted = _dtypes(made), _dtypes(subject.model)
    same = all(wanted.get(name, dtype) is dtype for name, dtype in dtypes.items())
    return convert(made, None if same else subject.dtype, subject.device).eval()


def _dtypes(model: torch.nn.Module) -> dict[str, torch.dtype]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.dtype for name, tensor in tensors}


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
