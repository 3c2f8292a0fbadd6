"""Validation without pytest: a model goes in, a sequence of records comes out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.checks.selection import find, merge_declared
from pytest_transformer_validate.containment.room import House, Room
from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.report import inline, terminal
from pytest_transformer_validate.runner import ModelRun
from pytest_transformer_validate.task import canonical_task

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.report.record import Record
    from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source

SEED = 0


class ValidationFailed(AssertionError):
    """A model failed checks; the text is theirs, ``result`` has all records."""

    def __init__(self, result: Result) -> None:
        super().__init__("\n".join(terminal.details(result)).strip())
        self.result = result


class Result(Sequence["Record"]):
    """The records of a validation, in the order in which the checks ran."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Result: ...
    def __getitem__(self, index: int | slice) -> Record | Result:
        if isinstance(index, slice):
            return Result(self._records[index])
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def passed(self) -> bool:
        """Whether something was judged and nothing failed."""
        judged = any(record.status != "skipped" for record in self)
        return judged and not self.failures

    @property
    def failures(self) -> tuple[Record, ...]:
        """The records that failed."""
        return tuple(record for record in self if record.failure)

    def __bool__(self) -> bool:
        """``passed``, so that ``assert validate(model)`` means what it says."""
        return self.passed

    def raise_for_failures(self) -> None:
        """Raises ValidationFailed (an AssertionError) with the texts of all failures."""
        if self.failures:
            raise ValidationFailed(self)

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame, one row each."""
        from pytest_transformer_validate.optional import require

        pandas = require("pandas", extra="report")
        return pandas.DataFrame([record.to_json() for record in self])

    def __str__(self) -> str:
        lines = terminal.details(self) + [""] * bool(self.failures)
        lines += (line.text for line in terminal.summary(self))
        return "\n".join(lines).strip("\n")

    def __repr__(self) -> str:
        return f"<Result: {len(self)} records, {len(self.failures)} failures>"

    def _repr_html_(self) -> str:
        bad = f"{len(self.failures)} of " if self.failures else ""
        word = "passed" if self.passed else "failed" if bad else "nothing was judged"
        return inline.page(self, f"{word}: {bad}{len(self)} check{'s'[: len(self) != 1]}")


def validate(
    model_or_spec: torch.nn.Module | str | Path,
    config: Any = None,
    tier: int | Iterable[int] = 1,
    checks: str | Iterable[str] | None = None,
    task: str | None = None,
    reference: torch.nn.Module | str | Path | None = None,
    trust: str | Iterable[str] = (),
) -> Result:
    """Judge a model and return the records.

    ``model_or_spec`` is a model, or what is typed after ``--tb-model=``. ``config`` is the
    model's configuration (a dict or any object), for a spec the path of a config.json; ``tier``
    1, 2, 3 or several of them, without slow checks; ``checks`` names checks to run instead of
    whole tiers; ``task`` says what the model is for; ``reference`` is a model, or a spec of one,
    that it is compared with. Both are left as they were. Raises SpecError for arguments that name
    nothing; what is wrong with the model is in the records.

    A fetched model (``gist:ID``) has code of somebody else. It runs only where ``trust`` names
    the sha256 of its files, or those of several models, and it runs in this process, with
    everything that this process may do: ``pytest --tb-model=gist:ID`` runs it in a worker
    instead. Without ``trust`` the SpecError names owner, revision and hash.
    """
    known = all_checks()
    chosen = _choose(known, tier, checks)
    task = None if task is None else canonical_task(task)
    source, options = _source(model_or_spec, config, trust)
    house = House()
    run = ModelRun(source.id, room=Room(house))
    compared = None if reference is None else _source(reference, None, trust)
    contained = contextlib.closing(house)
    with contained, _Model(source, options, task, run, known, compared) as model:
        return Result(
            run.judge(check, case, model.probe).record
            for check in chosen
            for case in (check.cases or (None,))
        )


def _choose(
    known: Sequence[Check], tier: int | Iterable[int], checks: str | Iterable[str] | None
) -> list[Check]:
    if checks is not None:
        names = [checks] if isinstance(checks, str) else list(checks)
        return [find(name, known) for name in names]
    tiers = [tier] if isinstance(tier, int) else list(tier)
    for number in tiers:
        if number not in (1, 2, 3):
            raise SpecError(f"tier must be 1, 2 or 3, given {number!r}")
    return [check for check in known if check.tier in tiers and not check.slow]


def _source(
    model_or_spec: Any, config: Any, trust: str | Iterable[str]
) -> tuple[Source, LoadOptions]:
    from pytest_transformer_validate.sources.base import LoadOptions
    from pytest_transformer_validate.sources.live import LiveSource
    from pytest_transformer_validate.sources.parse import parse

    if not isinstance(model_or_spec, str | Path):
        name = type(model_or_spec).__name__
        return LiveSource(name, model_or_spec, config), LoadOptions(seed=SEED)
    here = Path.cwd()
    path = _config_path(config)
    source = parse(str(model_or_spec), rootdir=here, cwd=here)
    return _accepted(source, trust), LoadOptions(config=path, seed=SEED)


def _accepted(source: Source, trust: str | Iterable[str]) -> Source:
    """A fetched source with its files, once its hash was accepted. Raises SpecError."""
    from pytest_transformer_validate.sources.fetch.consent import Terms
    from pytest_transformer_validate.sources.fetch.resolve import resolve_all
    from pytest_transformer_validate.sources.fetch.source import FetchedSource
    from pytest_transformer_validate.sources.fetch.tree import is_sha256

    hashes = [trust] if isinstance(trust, str) else list(trust)
    for given in hashes:
        if not is_sha256(given):
            raise SpecError(f"trust must be a sha256 (64 hex digits), given {given!r}")
    if not isinstance(source, FetchedSource):
        return source
    return resolve_all([source], Terms.of(hashes, typed=False, recorded=False), Path())[0]


def _config_path(config: Any) -> Path | None:
    if config is None:
        return None
    if isinstance(config, Mapping) or not isinstance(config, str | Path):
        raise SpecError(
            "config must be the path of a config.json when the model is named by a spec, "
            f"given {type(config).__name__}"
        )
    path = Path(config).expanduser()
    if not path.exists():
        raise SpecError(f"config must be the path of a config.json, given {config}: no such file")
    return path


class _Model:
    """Loads the model when the first check asks for it and gives it back as it was."""

    def __init__(
        self,
        source: Source,
        options: LoadOptions,
        task: str | None,
        run: ModelRun,
        checks: Sequence[Check],
        compared: tuple[Source, LoadOptions] | None = None,
    ) -> None:
        self._source = source
        self._options = options
        self._task = task
        self._run = run
        self._checks = checks
        self._compared = compared
        self._held = contextlib.ExitStack()
        self._probe: Probe | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # as what is given back was taken: where the model's own settings are in force
        with self._run.room or contextlib.nullcontext():
            self._held.close()

    def probe(self) -> Probe:
        """The probe that all checks share."""
        if self._probe is None:
            self._probe = self._make()
        return self._probe

    def _make(self) -> Probe:
        from pytest_transformer_validate.probe.probe import Probe
        from pytest_transformer_validate.probe.reference import Reference
        from pytest_transformer_validate.subject.guard import guard
        from pytest_transformer_validate.subject.subject import Subject

        loaded = self._source.load(self._options)
        self._run.declared.update(self._declared(loaded))
        self._held.enter_context(loaded.scope)
        self._held.enter_context(guard(loaded.model))
        subject = Subject(
            loaded.model,
            loaded.config,
            tokenizer=loaded.tokenizer,
            task=self._task,
            device=_device_of(loaded.model),
            seed=SEED,
        )
        rebuild = functools.partial(self._source.rebuild, self._options)
        reference = None if self._compared is None else Reference(*self._compared)
        return Probe(
            subject, seed=SEED, weights=loaded.weights, rebuild=rebuild, reference=reference
        )

    def _declared(self, loaded: Loaded) -> dict[str, str]:
        try:
            return merge_declared({}, loaded.expect_fail, self._checks)
        except SpecError as error:
            raise SourceError(f'"expect_fail" in the config.json: {error}') from error


def _device_of(model: torch.nn.Module) -> Any:
    """The device that the model is on, where it stays."""
    first = next(model.parameters(), None)
    return "cpu" if first is None else first.device
