"""From the options to a Run: every mistake in what was typed is found here."""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import options
from pytest_transformer_validate.errors import MissingDependency, SpecError
from pytest_transformer_validate.optional import expect, expect_torch
from pytest_transformer_validate.options import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.containment.room import House
    from pytest_transformer_validate.models import Run, RunModel
    from pytest_transformer_validate.report.json import Stored
    from pytest_transformer_validate.sources.base import Source

_GLOBAL = ("tb_device", "tb_dtype", "tb_seed", "tb_timeout", "tb_reference", "tb_data")
_GLOBAL += ("tb_epochs", "tb_time_budget")
_IN_FILE = "[tb_model in the ini file]"
_IN_HOOK = "[pytest_tb_models]"
_ANSWERS = pytest.StashKey[list[Any]]()
_IN_ENVIRONMENT = "[GIST_ID in the environment]"


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def start(config: pytest.Config) -> Run | None:
    """The run that the options ask for, ``None`` without a model. Raises UsageError.

    Ids of checks are taken out of ``config.args``, where pytest would look for files.
    """
    from pytest_transformer_validate.checks.registry import all_checks
    from pytest_transformer_validate.containment.room import House
    from pytest_transformer_validate.models import Run

    settings = Settings.from_config(config)
    try:
        sources = list(_sources(config))
        if not sources:
            return None
        reference = _reference(config)
        _refuse_missing([source for source, _ in sources])
        sources, reference = _resolved(config, sources, reference)
        checks = tuple(all_checks())
        settings = _with_check_options(config, settings, checks)
        baseline = _baseline(config, settings.baseline)
    except (SpecError, MissingDependency) as error:
        raise pytest.UsageError(str(error)) from error
    if not is_worker(config):
        options.check_device(settings.device)
    house = House()
    models = tuple(_models(config, settings, sources, checks, reference, house))
    typed = config.args_source is pytest.Config.ArgsSource.ARGS
    args, selected = _take_ids(config, models, checks) if typed else (config.args, {})
    from_command_line = config.getoption("tb_model") is not None
    config.args[:] = args
    return Run(
        settings=settings,
        models=models,
        checks=checks,
        collect=bool(selected) or from_command_line or not typed,
        selected={model: frozenset(names) for model, names in selected.items()},
        house=house,
        baseline=baseline,
    )


def _baseline(config: pytest.Config, path: Path | None) -> Stored | None:
    """The run that this one is held against, which its workers need not know. Raises SpecError."""
    if path is None or is_worker(config):
        return None
    from pytest_transformer_validate.report.json import read

    try:
        return read(path)
    except SpecError as error:
        raise SpecError(f"--tb-baseline: {error}") from error


def _refuse_missing(sources: list[Source]) -> None:
    """Raise MissingDependency for what the models of this run cannot do without."""
    expect_torch()
    for source in sources:
        for package, extra in source.needs.items():
            expect(package, extra=extra)


def named(config: pytest.Config) -> list[Source]:
    """The sources that the options name, as far as they can be parsed: ``start`` says the rest."""
    found: list[Source] = []
    with contextlib.suppress(SpecError, MissingDependency, pytest.UsageError):
        found += (source for source, _ in _sources(config))
        found += filter(None, [_reference(config)])
    return found


def _with_check_options(
    config: pytest.Config, settings: Settings, checks: tuple[Check, ...]
) -> Settings:
    from pytest_transformer_validate.checks.selection import (
        parse_expect_fail,
        parse_limits,
        split_budgets,
    )

    limits = _named(
        "tb_limits", lambda: parse_limits(options.ini(config, "tb_limits") or [], checks)
    )
    declared = _named(
        "tb_expect_fail",
        lambda: parse_expect_fail(options.ini(config, "tb_expect_fail") or [], checks),
    )
    limits, budgets = split_budgets(limits, checks)
    return replace(settings, limits=limits, budgets=budgets, expect_fail=declared)


def _named(key: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from error


def _sources(config: pytest.Config) -> Iterator[tuple[Source, str]]:
    """Every source of the run and who named it. Raises SpecError and UsageError."""
    given = config.getoption("tb_model")
    if given is not None:
        for spec in given:
            yield _parse(config, spec, config.invocation_params.dir), f"--tb-model={spec}"
        return
    gist = options.gist_of_environment(config)
    if gist is not None:
        yield _of_environment(config, gist), _IN_ENVIRONMENT
        return
    for spec in options.ini(config, "tb_model") or []:
        yield _parse(config, spec, options.base(config, "tb_model")), f"{spec} {_IN_FILE}"
    for entry in _of_hook(config):
        if isinstance(entry, str | os.PathLike):
            spec = os.fspath(entry)
            yield _parse(config, spec, config.rootpath), f"{spec} {_IN_HOOK}"
        else:
            yield _live(entry), f"{entry[0]} {_IN_HOOK}"


def _parse(config: pytest.Config, spec: str, cwd: Path) -> Source:
    from pytest_transformer_validate.sources.parse import parse

    api_url = options.ini(config, "tb_api_url")
    return parse(spec, rootdir=config.rootpath, cwd=cwd, api_url=api_url)


def _of_environment(config: pytest.Config, given: str) -> Source:
    from pytest_transformer_validate.sources.gist.name import may_be_gist

    try:
        spec = given if may_be_gist(given) else f"gist:{given}"
        return _parse(config, spec, config.invocation_params.dir)
    except SpecError as error:
        raise SpecError(f"{options.GIST_VARIABLE}: {error}") from error


def _resolved(
    config: pytest.Config, sources: list[tuple[Source, str]], reference: Source | None
) -> tuple[list[tuple[Source, str]], Source | None]:
    """The sources with what is known of those that are fetched."""
    from pytest_transformer_validate.resolution import resolve

    compared = [] if reference is None else [reference]
    done = resolve(config, [*(source for source, _ in sources), *compared])
    named = [(source, origin) for source, (_, origin) in zip(done, sources, strict=False)]
    return named, None if reference is None else done[-1]


def _reference(config: pytest.Config) -> Source | None:
    """The model that the others are compared with. Raises SpecError."""
    spec = options.value(config, "tb_reference")
    if spec is None:
        return None
    try:
        return _parse(config, spec, options.base(config, "tb_reference"))
    except SpecError as error:
        raise SpecError(f"--tb-reference: {error}") from error


def _of_hook(config: pytest.Config) -> list[Any]:
    """What the hook gives; asked once."""
    if _ANSWERS in config.stash:
        return config.stash[_ANSWERS]
    try:
        answers = config.hook.pytest_tb_models(config=config)
        found = [entry for answer in answers if answer is not None for entry in answer]
        return config.stash.setdefault(_ANSWERS, found)
    except Exception as error:
        raise pytest.UsageError(
            f"pytest_tb_models raised {type(error).__name__}: {error}"
        ) from error


def _live(entry: Any) -> Source:
    from pytest_transformer_validate.sources.live import LiveSource

    pair = isinstance(entry, tuple) and len(entry) == 2
    if not (pair and isinstance(entry[0], str) and entry[0] and callable(entry[1])):
        raise pytest.UsageError(
            f"pytest_tb_models must give specs or (id, factory) pairs, given {entry!r}"
        )
    return LiveSource(entry[0], entry[1])


def _models(
    config: pytest.Config,
    settings: Settings,
    sources: list[tuple[Source, str]],
    checks: tuple[Check, ...],
    reference: Source | None,
    house: House,
) -> Iterator[RunModel]:
    from pytest_transformer_validate.containment.room import Room
    from pytest_transformer_validate.models import PASSES, RunModel
    from pytest_transformer_validate.runner import ModelRun
    from pytest_transformer_validate.sources.base import LoadOptions

    _refuse_twins(sources)
    columns = {n: options.per_model(config, n, len(sources)) for n in options.PER_MODEL}
    for index, (source, origin) in enumerate(sources):
        row = {name: column[index] for name, column in columns.items()}
        paths = {
            name.removeprefix("tb_"): options.existing_path(config, name, row[name])
            for name in ("tb_config", "tb_tokenizer", "tb_weights")
        }
        again = _Again(config, source, origin, row)
        yield RunModel(
            source=source,
            options=LoadOptions(**paths, seed=settings.seed),
            settings=settings,
            checks=checks,
            path=_place(config, source),
            origin=origin,
            run=ModelRun(source.id, limits=settings.limits, again=again, passes=PASSES),
            task=options.task(row["tb_task"]),
            excuse=not config.getoption("runxfail"),
            compared=reference,
            room=Room(house),
        )


def _refuse_twins(sources: list[tuple[Source, str]]) -> None:
    seen: dict[str, str] = {}
    for source, origin in sources:
        if source.id in seen:
            raise pytest.UsageError(
                f"two models would both be called {source.id!r}: {seen[source.id]} and {origin}; "
                "give each once"
            )
        seen[source.id] = origin


def _place(config: pytest.Config, source: Source) -> Path:
    """Where the model lies; the root folder for one that is no file here."""
    path = Path(os.path.normpath(config.rootpath / source.short.partition("::")[0]))
    try:
        return path if path.exists() else config.rootpath
    except (OSError, ValueError):
        return config.rootpath


class _Again:
    """Makes the command that repeats a check from its ``tierN::name``."""

    def __init__(
        self, config: pytest.Config, source: Source, origin: str, row: dict[str, str | None]
    ) -> None:
        self.id = source.id
        self.words = [*_where(config, source)]
        if config.getoption("tb_model") is not None:
            self.words.append(origin)
        elif origin == _IN_ENVIRONMENT:
            self.words.append(f"--tb-model={source.spec}")
        for trust in config.getoption("tb_trust") or []:
            if trust.lower() != "new":
                self.words.append(f"--tb-trust={trust}")
        for name, given in row.items():
            if config.getoption(name) is not None and given is not None:
                self.words.append(f"--{name.replace('_', '-')}={given}")
        for line in config.getoption("override_ini") or []:
            self.words.append(f"-o={line}")
        for name in _GLOBAL:
            if config.getoption(name) is not None:
                self.words.append(f"--{name.replace('_', '-')}={config.getoption(name)}")
        self.trains = bool(config.getoption("tb_train") or config.getoption("tier3"))

    def __call__(self, name: str) -> str:
        words = [*self.words]
        if self.trains and name.startswith("tier3"):
            words.append("--tb-train")
        node = f"{self.id}::{name}"
        quoted = shlex.quote(node) if "'" in node else f"'{node}'"
        return " ".join(["pytest", *map(shlex.quote, words), quoted])


def _where(config: pytest.Config, source: Source) -> Iterator[str]:
    """Arguments that keep the root folder what it is, where the id alone would move it."""
    short = source.short
    outside = short.startswith("..") or Path(short.partition("::")[0]).is_absolute()
    if config.getoption("inifilename") or (outside and config.inipath is not None):
        yield f"--config-file={config.getoption('inifilename') or config.inipath}"
    if config.getoption("rootdir") or outside:
        yield f"--rootdir={config.getoption('rootdir') or config.rootpath}"


def _take_ids(
    config: pytest.Config, models: tuple[RunModel, ...], checks: tuple[Check, ...]
) -> tuple[list[str], dict[str, set[str]]]:
    """The arguments that are pytest's own, and the ids that were typed, by model."""
    args: list[str] = []
    selected: dict[str, set[str]] = {}
    for arg in config.args:
        model, rest = _split(config, arg, models)
        if model is None:
            args.append(arg)
            continue
        _refuse_unknown(arg, model, rest, checks)
        selected.setdefault(model.id, set()).add(rest)
    return args, selected


def _split(
    config: pytest.Config, arg: str, models: tuple[RunModel, ...]
) -> tuple[RunModel | None, str]:
    """The model that ``arg`` names and the rest of the id.

    As an id is printed it is relative to the root folder; one typed relative to the current
    folder, as pytest's own ids are typed, means the same, and so does the short form of a spec
    that is no plain id.
    """
    head, colons, tail = arg.partition("::")
    place = Path(os.path.normpath(config.invocation_params.dir / head))
    forms = [arg]
    forms += [
        model.source.short.partition("::")[0] + colons + tail
        for model in models
        if place == model.path and place != config.rootpath
    ]
    for form in forms:
        hits = [
            (name, model)
            for model in models
            for name in (model.id, model.source.short)
            if form == name or form.startswith(f"{name}::")
        ]
        if hits:
            name, model = max(hits, key=lambda hit: len(hit[0]))
            return model, form[len(name) + 2 :]
    return None, ""


def _refuse_unknown(arg: str, model: RunModel, rest: str, checks: tuple[Check, ...]) -> None:
    import difflib

    known = {f"tier{check.tier}" for check in checks}
    for check in checks:
        names = [check.name, *check.ids()]
        known |= {f"tier{check.tier}::{name}" for name in names}
    if rest and rest not in known:
        near = difflib.get_close_matches(rest, sorted(known), n=1)
        hint = f"; did you mean {model.id}::{near[0]}?" if near else ""
        raise pytest.UsageError(f"not found: {arg} (no such check of {model.id}{hint})")
