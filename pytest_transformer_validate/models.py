"""The models of a run: what was asked, and what is loaded of it right now."""

from __future__ import annotations

import contextlib
import functools
import gc
import linecache
import os
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.checks.selection import merge_declared
from pytest_transformer_validate.containment.room import House, Room
from pytest_transformer_validate.errors import Blocked, SourceError, SpecError
from pytest_transformer_validate.optional import import_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import torch

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.options import Settings
    from pytest_transformer_validate.probe.probe import Probe, Rebuild
    from pytest_transformer_validate.probe.reference import Reference
    from pytest_transformer_validate.report.json import Stored
    from pytest_transformer_validate.runner import ModelRun
    from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
    from pytest_transformer_validate.subject.subject import Subject

# Words of a check to pytest.
PASSES = (pytest.skip.Exception, pytest.xfail.Exception)


@dataclass
class Shared:
    """The Subject and the Probe of one model object, made once and shared by all tests."""

    settings: Settings
    task: str | None = None
    weights: str = "as given"
    rebuild: Rebuild | None = None
    reference: Reference | None = None
    _model: torch.nn.Module | None = None
    _subject: Subject | None = None
    _probe: Probe | None = None

    def knows(self, model: torch.nn.Module) -> bool:
        """Whether ``model`` was asked for last."""
        return self._subject is not None and self._model is model

    def subject(
        self, model: torch.nn.Module, config: Any, tokenizer: Any, device: torch.device
    ) -> Subject:
        """The Subject of ``model``; a new one where another model was asked for last."""
        if self._subject is None or not self.knows(model):
            import torch

            from pytest_transformer_validate.subject.subject import Subject

            dtype = self.settings.dtype
            self._subject = Subject(
                model,
                config,
                tokenizer=tokenizer,
                task=self.task,
                device=device,
                dtype=None if dtype is None else getattr(torch, dtype),
                seed=self.settings.seed,
            )
            self._model = model
        return self._subject

    def probe(self, subject: Subject) -> Probe:
        """The Probe of ``subject``; a new one where another subject was asked for last."""
        if self._probe is None or self._probe.subject is not subject:
            from pytest_transformer_validate.probe.fitting import Fitting
            from pytest_transformer_validate.probe.probe import Probe

            settings = self.settings
            self._probe = Probe(
                subject,
                seed=self.settings.seed,
                weights=self.weights,
                rebuild=self.rebuild,
                reference=self.reference,
                fitting=Fitting(
                    data=None if settings.data is None else str(settings.data),
                    epochs=settings.epochs,
                    budget=settings.budget,
                ),
            )
        return self._probe

    def clear(self) -> None:
        for made in (self._probe, self._subject):
            if made is not None:  # refers to itself: the model would stay in memory with it
                vars(made).clear()
        self._model = self._subject = self._probe = self.reference = None


class AsLoaded:
    """How a model was when it was loaded, cheap to compare with how it is."""

    def __init__(self, model: torch.nn.Module) -> None:
        from pytest_transformer_validate.subject.guard import fingerprint
        from pytest_transformer_validate.subject.keeping import Kept
        from pytest_transformer_validate.subject.samples import Samples

        self._fingerprint = fingerprint
        self._print = fingerprint(model)
        self._kept = Kept(model)
        self._samples = Samples(model.parameters())

    def untouched(self) -> bool:
        """Whether nothing of the model was so much as written to."""
        return self._kept.same() and self._kept.parameters_same() and self._samples.same()

    def describes(self, model: torch.nn.Module) -> bool:
        """Whether nothing of the model has changed."""
        if self.untouched():
            return True
        same = self._fingerprint(model) == self._print and self._kept.values_same()
        return same and self._samples.same()


@dataclass(eq=False)
class RunModel:
    """One model of the run.

    ``room`` is where its code runs; ``lost`` says why its code may not run in this run any more.
    ``path`` is where it lies (the root folder for one that is no file), ``origin`` who named it,
    ``typed`` the arguments that name it on a command line; ``excuse`` is off under ``--runxfail``;
    ``compared`` is the source of the model that it is compared with; ``location`` the file and
    line of its class, once it was loaded.

    It is loaded when first asked for and again after a test that changed it; a load that failed
    is not tried again.
    """

    source: Source
    options: LoadOptions
    settings: Settings
    checks: Sequence[Check]
    path: Path
    origin: str
    run: ModelRun
    task: str | None = None
    typed: tuple[str, ...] = ()
    excuse: bool = True
    compared: Source | None = None
    room: Room = field(default_factory=lambda: Room(House()))
    lost: Callable[[], str | None] = lambda: None
    shared: Shared = field(init=False)
    waiting: int = 0
    location: tuple[str, int] | None = None
    _loaded: Loaded | None = None
    _as_loaded: AsLoaded | None = None
    _changed: bool = False
    _error: BaseException | None = None
    _traceback: TracebackType | None = None

    def __post_init__(self) -> None:
        self.shared = Shared(self.settings, self.task)
        self.run.room = self.room

    def __repr__(self) -> str:
        return f"<model {self.id}>"

    @property
    def id(self) -> str:
        return self.source.id

    def loaded(self) -> Loaded:
        """The model. Raises what its source or its own code raised, every time the same, and
        Blocked where it has cost a worker its life."""
        lost = self.lost()
        if lost is not None:
            raise Blocked(lost)
        if self._error is not None:
            raise self._error.with_traceback(self._traceback)
        if self._loaded is None:
            try:
                self._loaded = self._load()
            except BaseException as error:
                if not self.room.house.interrupts.ends_run(error):
                    self._error, self._traceback = error, error.__traceback__
                raise
        return self._loaded

    def subject(
        self, model: torch.nn.Module, config: Any, tokenizer: Any, device: torch.device
    ) -> Subject:
        """The Subject of ``model``, which is the loaded one or what replaces it in a conftest."""
        known = self.shared.knows(model)
        if not known:  # a new Subject may move it, which is no change
            self._note_change()
        loaded = self._loaded
        self.shared.weights, self.shared.rebuild = "as given", None
        if loaded is not None and loaded.model is model:
            self.shared.weights = loaded.weights
            self.shared.rebuild = functools.partial(self.source.rebuild, self.options)
        if self.compared is not None and self.shared.reference is None:
            self.shared.reference = self._reference(self.compared)
        subject = self.shared.subject(model, config, tokenizer, device)
        if not known:
            self._take_print()
        return subject

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Loaded]:
        """The model for the length of one test, in its scope; dropped if the test changed it."""
        loaded = self.loaded()
        with loaded.scope:
            yield loaded
            self._note_change()
        if self._changed:
            self.release()

    def release(self) -> None:
        """Let go of the model and of everything made from it."""
        self.shared.clear()
        self._loaded = self._as_loaded = None
        self._changed = False
        _forget_lines(self.path)

    def prepare(self) -> None:
        """What the process needs before a model's code runs. Raises MissingDependency."""
        import_torch()
        # Now, because inside a model's scope no bytecode is written, and every run would compile.
        import_module("pytest_transformer_validate.probe.probe")
        _share_threads()
        _freeze()

    def _load(self) -> Loaded:
        self.prepare()
        with self.room:
            try:
                loaded = self.source.load(self.options)
            finally:
                self.room.look_around()
        try:
            declared = merge_declared(self.settings.expect_fail, loaded.expect_fail, self.checks)
        except SpecError as error:
            raise SourceError(f'"expect_fail" in the config.json: {error}') from error
        if self.excuse:
            self.run.declared.update(declared)
        self._loaded = loaded
        self.location = loaded.location
        self._take_print()
        return loaded

    def _reference(self, source: Source) -> Reference:
        from pytest_transformer_validate.probe.reference import Reference
        from pytest_transformer_validate.sources.base import LoadOptions

        return Reference(source, LoadOptions(seed=self.settings.seed), self.settings.dtype)

    def _take_print(self) -> None:
        if self._loaded is None:
            return
        if self._as_loaded is None or not self._as_loaded.untouched():
            self._as_loaded = AsLoaded(self._loaded.model)

    def _note_change(self) -> None:
        if self._loaded is not None and self._as_loaded is not None:
            self._changed |= not self._as_loaded.describes(self._loaded.model)


@dataclass(frozen=True)
class Run:
    """All models of a run and which of their checks were asked for.

    ``selected`` maps a model's id to the ``tier::check`` ids (or prefixes of them) that were
    typed; it is empty where none was, and then every check runs if ``collect`` is set.
    ``baseline`` is an older run that this one is held against.
    """

    settings: Settings
    models: tuple[RunModel, ...]
    checks: tuple[Check, ...]
    collect: bool = True
    selected: Mapping[str, frozenset[str]] = field(default_factory=dict)
    house: House = field(default_factory=House)
    baseline: Stored | None = None

    @property
    def sources(self) -> list[Source]:
        """The sources of all models, and of what they are compared with."""
        compared = (model.compared for model in self.models)
        return [*(model.source for model in self.models), *filter(None, compared)]

    def wanted(self, model: RunModel) -> list[Check]:
        """The checks of ``model`` that were asked for."""
        return [check for check in self.checks if self.wanted_ids(model, check)]

    def wanted_ids(self, model: RunModel, check: Check) -> list[str]:
        """The ids (``name`` or ``name[case]``) of ``check`` that were asked for."""
        if not self.collect:
            return []
        if not self.selected:
            return check.ids()
        typed = self.selected.get(model.id, frozenset())
        prefixes = {"", f"tier{check.tier}", f"tier{check.tier}::{check.name}"}
        if typed & prefixes:
            return check.ids()
        return [name for name in check.ids() if f"tier{check.tier}::{name}" in typed]

    def asks_by_id(self, model: RunModel, node: str) -> bool:
        """Whether the id of ``node`` (``tier3``, ``tier2::export``) or one below it was typed."""
        typed = self.selected.get(model.id, frozenset())
        return any(f"{name.partition('[')[0]}::".startswith(f"{node}::") for name in typed)


def _forget_lines(path: Path) -> None:
    """Drop what ``linecache`` holds of the files beside a model: it keeps all that it ever read,
    and reads again what it is asked for."""
    folder = f"{path if path.is_dir() else path.parent}{os.sep}"
    for name in [name for name in linecache.cache if name.startswith(folder)]:
        if "site-packages" not in name:
            del linecache.cache[name]


def pick_device(name: str) -> torch.device:
    """The device that ``--tb-device`` means."""
    import torch

    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@functools.cache
def _freeze() -> None:
    """Keep what is there before any model out of Python's search for cycles, until the run ends:
    going through all of torch takes as long as several checks."""
    gc.freeze()


def _share_threads() -> None:
    """In a pytest-xdist worker, take this worker's part of the processors; done once."""
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    if workers.isdigit() and int(workers) > 0:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))
