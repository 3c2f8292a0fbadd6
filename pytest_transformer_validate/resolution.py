"""Fetched models of a run: resolved where the run is controlled, told to its workers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.sources.base import Source
    from pytest_transformer_validate.sources.fetch.consent import Terms

_INPUT = "tb_fetched"
_NOTHING_ASKED = (
    "help",
    "version",
    "markers",
    "cacheshow",
    "showfixtures",
    "show_fixtures_per_test",
)
_NOTHING_RUNS = ("collectonly", "setupplan")


def resolve(config: pytest.Config, sources: Sequence[Source]) -> list[Source]:
    """The sources with what is known of those that are fetched, in the same order.

    Raises SpecError where a model was not accepted. A worker asks nobody: it takes what the
    controller found. ``--help`` and its like ask nobody either.
    """
    from pytest_transformer_validate.sources.fetch.lock import LOCK_FILE
    from pytest_transformer_validate.sources.fetch.resolve import resolve_all
    from pytest_transformer_validate.sources.fetch.source import FetchedSource

    terms = _terms(config)
    fetched = [source for source in sources if isinstance(source, FetchedSource)]
    if not fetched or any(config.getoption(name, None) for name in _NOTHING_ASKED):
        return list(sources)
    if hasattr(config, "workerinput"):
        done = _as_told(fetched, config.workerinput[_INPUT])
    else:
        done = resolve_all(fetched, terms, config.rootpath / LOCK_FILE)
    by_spec: dict[str, Source] = {source.spec: source for source in done}
    return [by_spec.get(source.spec, source) for source in sources]


def _terms(config: pytest.Config) -> Terms:
    """What the options say about trust. Raises SpecError."""
    from pytest_transformer_validate.sources.fetch.consent import Terms

    return Terms.of(
        options.value(config, "tb_trust") or [],
        typed=config.getoption("tb_trust") is not None,
        ci=bool(os.environ.get("CI")),
        offline=bool(options.value(config, "tb_offline")),
        lists=any(config.getoption(name, None) for name in _NOTHING_RUNS),
    )


def _as_told(sources: Sequence[Any], told: dict[str, dict[str, Any]]) -> list[Any]:
    from pytest_transformer_validate.sources.fetch.source import Resolution

    return [source.resolved(Resolution.from_json(told[source.spec])) for source in sources]


class Messenger:
    """Tells every worker of pytest-xdist what the fetched models were resolved to."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.told = {
            source.spec: known.to_json()
            for source in sources
            if (known := getattr(source, "resolution", None)) is not None
        }

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_INPUT] = self.told
