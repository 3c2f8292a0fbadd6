"""From the options to a Run: every mistake in what was typed is found here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.mark.expression import Expression

from pytest_transformer_validate import naming, options
from pytest_transformer_validate.errors import MissingDependency, SpecError
from pytest_transformer_validate.ids import Again, take_ids
from pytest_transformer_validate.optional import expect, expect_torch
from pytest_transformer_validate.options import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.containment.room import House
    from pytest_transformer_validate.models import Run, RunModel
    from pytest_transformer_validate.report.json import Stored
    from pytest_transformer_validate.sources.base import Source


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
    _check_expressions(config)
    try:
        sources = list(naming.sources(config))
        if not sources:
            return None
        reference = naming.reference(config)
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
    args, selected = take_ids(config, models, checks) if typed else (config.args, {})
    from_command_line = config.getoption("tb_model") is not None
    config.args[:] = args
    return Run(
        settings=settings,
        models=models,
        checks=checks,
        collect=bool(selected) or ((from_command_line or not typed) and not _of_cell(config)),
        selected={model: frozenset(names) for model, names in selected.items()},
        house=house,
        baseline=baseline,
    )


def _of_cell(config: pytest.Config) -> bool:
    """Whether the run is about the tests of a cell: its models are there for them."""
    notebook = options.notebook(config)
    return notebook is not None and notebook.cell is not None


def _check_expressions(config: pytest.Config) -> None:
    """Compile ``-k`` and ``-m`` here: in a worker, one that is wrong ends in an internal error."""
    for flag, name in (("-k", "keyword"), ("-m", "markexpr")):
        text = config.getoption(name)
        try:
            Expression.compile(text or "any")
        except SyntaxError as error:
            raise pytest.UsageError(
                f"{flag} {text!r}: wrong at column {error.offset}: {error.msg}"
            ) from error


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


def _resolved(
    config: pytest.Config, sources: list[tuple[Source, str]], reference: Source | None
) -> tuple[list[tuple[Source, str]], Source | None]:
    """The sources with what is known of those that are fetched."""
    from pytest_transformer_validate.resolution import resolve

    compared = [] if reference is None else [reference]
    done = resolve(config, [*(source for source, _ in sources), *compared])
    named = [(source, origin) for source, (_, origin) in zip(done, sources, strict=False)]
    return named, None if reference is None else done[-1]


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

    naming.refuse_twins(sources)
    columns = {n: options.per_model(config, n, len(sources)) for n in options.PER_MODEL}
    for index, (source, origin) in enumerate(sources):
        row = {name: column[index] for name, column in columns.items()}
        paths = {
            name.removeprefix("tb_"): options.existing_path(config, name, row[name])
            for name in ("tb_config", "tb_tokenizer", "tb_weights")
        }
        again = Again(config, source, origin, row)
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


def _place(config: pytest.Config, source: Source) -> Path:
    """Where the model lies; the root folder for one that is no file here."""
    path = Path(os.path.normpath(config.rootpath / source.short.partition("::")[0]))
    try:
        return path if path.exists() else config.rootpath
    except (OSError, ValueError):
        return config.rootpath
