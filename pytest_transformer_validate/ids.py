"""Ids of checks as they are typed, and the command that repeats a check."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate import options
from pytest_transformer_validate.naming import IN_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.models import RunModel
    from pytest_transformer_validate.sources.base import Source

_GLOBAL = (
    "tb_device", "tb_dtype", "tb_seed", "tb_timeout", "tb_reference", "tb_data", "tb_epochs",
    "tb_time_budget",
)  # fmt: skip


class Again:
    """Makes the command that repeats a check from its ``tierN::name``."""

    def __init__(
        self, config: pytest.Config, source: Source, origin: str, row: dict[str, str | None]
    ) -> None:
        self.id = source.id
        self.words = [*_where(config, source)]
        if config.getoption("tb_model") is not None:
            self.words.append(origin)
        elif origin == IN_ENVIRONMENT:
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
        self.command = "pytest" if options.notebook(config) is None else "%pytest"
        self.trains = bool(config.getoption("tb_train") or config.getoption("tier3"))

    def __call__(self, name: str) -> str:
        words = [*self.words]
        if self.trains and name.startswith("tier3"):
            words.append("--tb-train")
        node = f"{self.id}::{name}"
        quoted = shlex.quote(node) if "'" in node else f"'{node}'"
        return " ".join([self.command, *map(shlex.quote, words), quoted])


def _where(config: pytest.Config, source: Source) -> Iterator[str]:
    """Arguments that keep the root folder what it is, where the id alone would move it."""
    short = source.short
    outside = short.startswith("..") or Path(short.partition("::")[0]).is_absolute()
    if config.getoption("inifilename") or (outside and config.inipath is not None):
        yield f"--config-file={config.getoption('inifilename') or config.inipath}"
    if config.getoption("rootdir") or outside:
        yield f"--rootdir={config.getoption('rootdir') or config.rootpath}"


def take_ids(
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
