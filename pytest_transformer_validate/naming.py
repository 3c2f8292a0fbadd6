"""Which models a run is about: what the options, the environment and the hook name."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import options
from pytest_transformer_validate.errors import MissingDependency, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_transformer_validate.sources.base import Source

_IN_FILE = "[tb_model in the ini file]"
_IN_HOOK = "[pytest_tb_models]"
IN_ENVIRONMENT = "[GIST_ID in the environment]"
_ANSWERS = pytest.StashKey[list[Any]]()


def named(config: pytest.Config) -> list[Source]:
    """The sources that the options name, as far as they can be parsed: ``start`` says the rest."""
    found: list[Source] = []
    with contextlib.suppress(SpecError, MissingDependency, pytest.UsageError):
        found += (source for source, _ in sources(config))
        found += filter(None, [reference(config)])
    return found


def sources(config: pytest.Config) -> Iterator[tuple[Source, str]]:
    """Every source of the run and who named it. Raises SpecError and UsageError."""
    given = config.getoption("tb_model")
    if given is not None:
        for spec in given:
            yield _parse(config, spec, config.invocation_params.dir), f"--tb-model={spec}"
        return
    gist = options.gist_of_environment(config)
    if gist is not None:
        yield _of_environment(config, gist), IN_ENVIRONMENT
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
    notebook = options.notebook(config)
    live = None if notebook is None else notebook.source(spec)
    if live is not None:
        return live
    try:
        return parse(spec, rootdir=config.rootpath, cwd=cwd, api_url=api_url)
    except SpecError as error:
        if notebook is None or not spec.isidentifier():
            raise
        raise SpecError(f"{error}\n  {notebook.hint(spec)}") from error


def _of_environment(config: pytest.Config, given: str) -> Source:
    from pytest_transformer_validate.sources.gist.name import may_be_gist

    try:
        spec = given if may_be_gist(given) else f"gist:{given}"
        return _parse(config, spec, config.invocation_params.dir)
    except SpecError as error:
        raise SpecError(f"{options.GIST_VARIABLE}: {error}") from error


def reference(config: pytest.Config) -> Source | None:
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


def refuse_twins(found: list[tuple[Source, str]]) -> None:
    seen: dict[str, str] = {}
    for source, origin in found:
        if source.id in seen:
            raise pytest.UsageError(
                f"two models would both be called {source.id!r}: {seen[source.id]} and {origin}; "
                "give each once"
            )
        seen[source.id] = origin
