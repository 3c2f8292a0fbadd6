"""Where the models of a run may run: what is fetched runs in a worker, or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate import options
from pytest_transformer_validate.redaction import remember, secret_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_transformer_validate.sources.base import Source

_INSTALL = "pip install 'pytest-transformer-validate[xdist]'"
_NOTHING_RUNS: tuple[str, ...] = (
    "collectonly",
    "help",
    "version",
    "markers",
    "cacheshow",
    "showfixtures",
)
_NOTHING_RUNS += ("show_fixtures_per_test",)
_SPARE_RESTARTS = 4


def distribute(config: pytest.Config, sources: Sequence[Source]) -> None:
    """Give a run what its models need of pytest-xdist, before that reads its options.

    One worker where a model is fetched and ``-n`` was not given; whole models to a worker where
    no ``--dist`` asks for something else; a new worker for every model that ends one. Raises
    UsageError where a fetched model would run in this process.
    """
    if hasattr(config, "workerinput") or _nothing_runs(config):
        return
    fetched = [source.id for source in sources if source.fetched]
    if fetched:
        _refuse(fetched[0], _obstacles(config))
        if not distributes(config):
            config.option.numprocesses = 1
    if not config.pluginmanager.hasplugin("xdist") or not distributes(config):
        return
    if config.getoption("dist") == "no" and not config.getoption("distload"):
        config.option.dist = "loadfile"
    if config.getoption("maxworkerrestart") is None:
        workers = config.getoption("numprocesses")
        usual = workers * 4 if isinstance(workers, int) else 0
        config.option.maxworkerrestart = str(max(usual, len(sources) + _SPARE_RESTARTS))


def withhold(config: pytest.Config, sources: Sequence[Source]) -> None:
    """Take credentials out of the environment until the end of a run that has fetched models.

    Workers, those that are started later too, never have them. Raises UsageError where there will
    be no workers after all.
    """
    fetched = [source.id for source in sources if source.fetched]
    if not fetched or hasattr(config, "workerinput") or _nothing_runs(config):
        return
    if not (config.getoption("dist") != "no" and config.getoption("tx")):
        _refuse(fetched[0], [("no worker was asked for", "give -n 1")])
    secrets = secret_variables()
    remember(secrets.values())
    for name in secrets:
        del os.environ[name]
    config.add_cleanup(lambda: os.environ.update(secrets))


def _nothing_runs(config: pytest.Config) -> bool:
    return any(config.getoption(name, None) for name in _NOTHING_RUNS)


def distributes(config: pytest.Config) -> bool:
    """Whether tests run in workers of pytest-xdist."""
    return bool(config.getoption("numprocesses") or config.getoption("tx"))


def _obstacles(config: pytest.Config) -> Iterator[tuple[str, str]]:
    """What keeps tests in this process, and the way out, in the user's words."""
    if config.pluginmanager.is_blocked("xdist"):
        yield "-p no:xdist turns pytest-xdist off", "leave -p no:xdist out"
    elif not config.pluginmanager.hasplugin("xdist"):
        yield "pytest-xdist is not there", _INSTALL
    elif config.getoption("numprocesses") == 0:
        yield "-n 0 keeps it in this process", "leave -n 0 out"
    for option in ("usepdb", "trace"):
        if config.getoption(option):
            name = "--pdb" if option == "usepdb" else "--trace"
            yield f"{name} needs it in this process", f"leave {name} out"
    if config.getoption("looponfail", False):
        yield "--looponfail runs tests elsewhere", "leave --looponfail out"
    notebook = options.notebook(config)
    for what in () if notebook is None else notebook.kept_here(config):
        yield f"{what}, and no worker has it", "run the two apart"
    if any(
        hasattr(plugin, "pytest_tb_models") for plugin in config.invocation_params.plugins or ()
    ):
        yield (
            "a variable of this process is a model of this run, and no worker has it",
            "run the two apart",
        )


def _refuse(model: str, obstacles: Sequence[tuple[str, str]] | Iterator[tuple[str, str]]) -> None:
    for why, way_out in obstacles:
        raise pytest.UsageError(
            f"{model} is code from another machine: it runs in a worker of pytest-xdist only\n"
            f"  {why}: {way_out}\n"
            "  or download the model, read it, and name its file"
        )
