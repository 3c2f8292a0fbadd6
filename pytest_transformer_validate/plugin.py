"""Hooks of the pytest plugin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate import fixtures, hookspec, options

if TYPE_CHECKING:
    from collections.abc import Generator

MARKS = (
    "tier1: validation of a transformer: is it built right?",
    "tier2: validation of a transformer: does it behave?",
    "tier3: validation of a transformer: does it learn? (needs --tb-train)",
    "slow: takes more than a few seconds",
)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspec)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """What models need of pytest-xdist: a worker for fetched ones, whole models to a worker.

    A wrapper, because pytest-xdist puts its own defaults in place when it is called.
    """
    if options.asked_for(config):
        from pytest_transformer_validate.isolation.policy import distribute
        from pytest_transformer_validate.naming import named

        with options.clean_errors():
            distribute(config, named(config))
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", mark)
    config.pluginmanager.register(fixtures, "transformer_validate_fixtures")
    if options.value(config, "tier3"):
        asked = config.getoption("markexpr")
        config.option.markexpr = f"({asked}) and tier3" if asked else "tier3"
    options.refuse_unknown(config)
    if not options.asked_for(config):
        return
    from pytest_transformer_validate.start import start

    with options.clean_errors():
        run = start(config)
    if run is not None:
        from pytest_transformer_validate.isolation.policy import withhold
        from pytest_transformer_validate.session import register

        register(config, run)
        withhold(config, run.sources)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Say what is missing where a tier was asked for, nothing ran, and the run has no model."""
    nothing = exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    tier = re.search(r"\btier[123]\b", config.getoption("markexpr"))
    if nothing and tier and not config.pluginmanager.hasplugin("transformer_validate_results"):
        line = "a tier was asked for and no model: name one with --tb-model"
        terminalreporter.write_line(line, yellow=True)
