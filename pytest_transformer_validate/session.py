"""The hooks of a run that has models; registered only then."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate import collection, outcome, progress
from pytest_transformer_validate.collection import CheckItem, OwnReports
from pytest_transformer_validate.isolation.controller import Workers
from pytest_transformer_validate.isolation.worker import Worker
from pytest_transformer_validate.reporting import DESELECTED, HtmlRows, Results
from pytest_transformer_validate.resolution import Messenger
from pytest_transformer_validate.sinks import Sinks

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_transformer_validate.models import Run, RunModel


def register(config: pytest.Config, run: Run) -> None:
    """Register what a run with models needs."""
    manager = config.pluginmanager
    manager.register(OwnReports(), "transformer_validate_reports")
    models = Models(config, run)
    manager.register(models, "transformer_validate_models")
    manager.register(Sinks(run), "transformer_validate_sinks")
    if hasattr(config, "workerinput"):
        manager.register(Worker(config, run), "transformer_validate_worker")
        return
    manager.register(Messenger(run.sources), "transformer_validate_messenger")
    progress.watch(config, run)
    results = Results(config, run, models.held_back)
    manager.register(results, "transformer_validate_results")
    if config.getoption("tx", None):
        manager.register(Workers(config, run), "transformer_validate_workers")
    elif not config.getini("faulthandler_timeout"):  # Python has one such timer
        last_resort = os.fdopen(os.dup(2), "w")
        config.add_cleanup(last_resort.close)
        run.house.deadline.last_resort = last_resort
    if manager.hasplugin("html"):
        manager.register(HtmlRows(results), "transformer_validate_html")


class Models:
    """Collects the checks, runs them, and lets go of a model after its last test."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self.config = config
        self.run = run
        self.held_back: dict[str, int] = {}
        self._checked: RunModel | None = None  # by the last test, if that was a check

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.Session) and report.passed:
            collection.add_models(report, collector, self.run)
        return report

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        collection.parametrize(metafunc, self.run)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        self.held_back.update(collection.hold_back(config, items, self.run))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            model = collection.entry_of(item)
            if model is not None:
                model.waiting += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        collection.mend_fixtures(item)
        self._tell_room(item, nextitem)
        done = yield
        if isinstance(item, CheckItem):
            outcome.forget(item)
        model = collection.entry_of(item)
        if model is not None:
            model.waiting -= 1
            if model.waiting <= 0 or self._left_for_good(item, nextitem, model):
                model.release()
        return done

    def _tell_room(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Whether only checks of the same model run before this one, and after it."""
        checked, self._checked = self._checked, None
        if isinstance(item, CheckItem):
            self._checked = item.model
            item.model.room.begins = checked is not item.model
            follows = nextitem.model if isinstance(nextitem, CheckItem) else None
            item.model.room.ends = follows is not item.model

    def _left_for_good(
        self, item: pytest.Item, nextitem: pytest.Item | None, model: RunModel
    ) -> bool:
        """A worker has all items and runs a part: there a model ends with its last check."""
        if not hasattr(self.config, "workerinput"):
            return False
        follower = None if nextitem is None else collection.entry_of(nextitem)
        return isinstance(item, CheckItem) and follower is not model

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool | None:
        """The limit of a check is set by a timer that strikes again."""
        if not isinstance(item, CheckItem):
            return None
        return outcome.limit_time(item, settings)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if isinstance(item, CheckItem):
            record = outcome.finish_report(item, call, report)
            if record is not None:
                vars(report)["tb_record"] = record.to_json()
                vars(report)["tb_location"] = item.model.location
        return report

    def pytest_sessionfinish(self) -> None:
        for model in self.run.models:
            model.release()
        gc.unfreeze()
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[DESELECTED] = self.held_back

    def pytest_sessionstart(self) -> None:
        self.run.house.interrupts.listen()

    def pytest_unconfigure(self) -> None:
        self.run.house.close()
