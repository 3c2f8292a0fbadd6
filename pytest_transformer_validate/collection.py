"""A model in pytest's tree: a file, in it a module for every tier, in it ordinary functions."""

from __future__ import annotations

import contextlib
import re
from functools import cached_property
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.conftests import conftests, hooks_above
from pytest_transformer_validate.errors import MissingDependency, did_you_mean
from pytest_transformer_validate.fixtures import CASE, ENTRY, FIXTURES, Stopped
from pytest_transformer_validate.outcome import RECORD, failure_repr, keep, speak

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.models import Run, RunModel

MADE = pytest.StashKey[dict[str, list[tuple[str, Any, Any]]]]()
TIER3_HINT = "tier 3 trains the model; add --tb-train"
SLOW_HINT = "slow checks run when asked for: -m slow, or by name"


class _Node(pytest.Collector):
    """Hooks of a model's nodes are those of the conftests above the model and at the root."""

    model: RunModel

    @property
    def ihook(self) -> Any:
        return hooks_above(self.config, self.path)


class ModelFile(_Node, pytest.File):
    """All checks of one model. Its node id is the model's."""

    run: Run

    @classmethod
    def make(cls, session: pytest.Session, run: Run, model: RunModel) -> ModelFile:
        identity: Any = model.id
        node = cls.from_parent(session, path=model.path, name=model.id, nodeid=identity)
        node.run, node.model = run, model
        return node

    def collect(self) -> Iterator[pytest.Collector]:
        for tier in sorted({check.tier for check in self.run.wanted(self.model)}):
            yield Tier.make(self, tier)


class Tier(_Node, pytest.Module):
    """The checks of one tier of one model."""

    file: ModelFile
    tier: int

    @classmethod
    def make(cls, parent: ModelFile, tier: int) -> Tier:
        name = f"tier{tier}"
        identity: Any = f"{parent.nodeid}::{name}"
        node = cls.from_parent(parent, path=parent.path, name=name, nodeid=identity)
        node.file, node.model, node.tier = parent, parent.model, tier
        node.add_marker(name)
        return node

    def _getobj(self) -> ModuleType:
        return ModuleType(self.name)

    def collect(self) -> Iterator[pytest.Item]:
        run = self.file.run
        for check in run.wanted(self.model):
            if check.tier == self.tier:
                wanted = run.wanted_ids(self.model, check)
                yield from (item for item in self._items(check) if item.name in wanted)

    def _items(self, check: Check) -> Iterator[CheckItem]:
        """pytest's own functions for the check, with its cases as parameters."""
        function = _function(check, self.nodeid)
        setattr(self.obj, check.name, function)
        for name, callspec, info in self._made(check, function):
            item = CheckItem.from_parent(
                self,
                name=name,
                originalname=check.name,
                callspec=callspec,
                callobj=function,
                fixtureinfo=info,
            )
            item.model, item.check, item.tier = self.model, check, self.tier
            if check.slow:
                item.add_marker("slow")
            _limit_time(item)
            yield item

    def _made(self, check: Check, function: Callable[..., None]) -> list[tuple[str, Any, Any]]:
        """Names, parameters and fixtures of what pytest makes of the check; the same for every
        model where no conftest has a say in it."""
        known = self.session.stash.setdefault(MADE, {})
        if check.name in known:
            return known[check.name]
        hook = self.ihook.pytest_pycollect_makeitem
        items = hook(collector=self, name=check.name, obj=function) or []
        made = [
            (item.name, getattr(item, "callspec", None), getattr(item, "_fixtureinfo", None))
            for item in items
        ]
        if not any(
            hasattr(conftest, name)
            for conftest in conftests(self.config)
            for name in ("pytest_pycollect_makeitem", "pytest_generate_tests")
        ):
            known[check.name] = made
        return made


class CheckItem(pytest.Function):
    """One check, or one case of it, on one model."""

    model: RunModel
    check: Check
    tier: int

    @property
    def ihook(self) -> Any:
        return hooks_above(self.config, self.path)

    @property
    def case(self) -> str | None:
        spec = getattr(self, "callspec", None)
        return None if spec is None else str(spec.params[CASE])

    def prepare(self) -> None:
        """What the process needs before the model's code runs."""
        with contextlib.suppress(MissingDependency):  # the load says so
            self.model.prepare()

    def judge(self, request: pytest.FixtureRequest) -> None:
        """Run the check; what it says becomes the item's outcome."""
        try:
            self.prepare()
            outcome = self.model.run.judge(self.check, self.case, lambda: _probe(request))
        finally:
            self.model.room.house.deadline.stop()
        keep(self, outcome.record)
        speak(outcome)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.path, 0, f"{self.name} on {self.model.id}"

    @cached_property
    def location(self) -> tuple[str, int | None, str]:
        """As in the id; pytest would show the path beside it wherever the two differ."""
        return self.nodeid.partition("::")[0], 0, self.reportinfo()[2]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        record = self.stash.get(RECORD, None)
        if record is None or not record.message or self.config.getoption("fulltrace", False):
            return super().repr_failure(excinfo)
        return failure_repr(record)


def _probe(request: pytest.FixtureRequest) -> Any:
    try:
        return request.getfixturevalue("tb_probe")
    except Stopped as stopped:
        raise stopped.error from None


def add_models(report: pytest.CollectReport, session: pytest.Session, run: Run) -> None:
    """Append the models of the run to what the session has collected."""
    for model in run.models:
        if run.wanted(model):
            report.result.append(ModelFile.make(session, run, model))


class OwnReports:
    """Collects a model's nodes before any other plugin does.

    pytest's ``--lf`` gives an empty report for a file in which no test failed; ids of models
    that are no file would be lost there.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> pytest.CollectReport | None:
        if not isinstance(collector, _Node):
            return None
        return pytest.CollectReport(collector.nodeid, "passed", None, list(collector.collect()))


def parametrize(metafunc: pytest.Metafunc, run: Run) -> None:
    """Run a test that asks for a model once for every model of the run."""
    own = isinstance(metafunc.definition.parent, Tier)
    if own or ENTRY not in metafunc.fixturenames:
        return
    ids = [re.sub(r"[^\w.-]+", "_", model.id) for model in run.models]
    if len(set(ids)) < len(ids):
        ids = [f"{name}-{index}" for index, name in enumerate(ids)]
    metafunc.parametrize(ENTRY, run.models, ids=ids, indirect=True)


def entry_of(item: pytest.Item) -> RunModel | None:
    """The model of the run that a test is about."""
    if isinstance(item, CheckItem):
        return item.model
    spec = getattr(item, "callspec", None)
    return None if spec is None else spec.params.get(ENTRY)


def mend_fixtures(item: pytest.Item) -> None:
    """Let fixtures be set up again that a time limit or a model caught half set up: pytest would
    refuse them to every later test."""
    if not isinstance(item, CheckItem):
        return
    manager = item.session._fixturemanager
    for name in FIXTURES:
        for each in manager.getfixturedefs(name, item) or ():
            if each.cached_result is None:
                each._finalizers.clear()


def hold_back(config: pytest.Config, items: list[pytest.Item], run: Run) -> dict[str, int]:
    """Deselect tier 3 and slow checks that were not asked for; how many, by what to do about it.

    Tier 3 that was asked for, without leave to train, is skipped with the hint.
    """
    kept: list[pytest.Item] = []
    held: list[pytest.Item] = []
    hints: dict[str, int] = {}
    for item in items:
        hint = _hint(item, run) if isinstance(item, CheckItem) else None
        if hint is None:
            kept.append(item)
        elif isinstance(item, CheckItem) and _asked_for(config, item, run, hint):
            if hint == TIER3_HINT:
                item.add_marker(pytest.mark.skip(reason=TIER3_HINT))
            kept.append(item)
        else:
            hints[hint] = hints.get(hint, 0) + 1
            held.append(item)
    if held:
        config.hook.pytest_deselected(items=held)
        items[:] = kept
    return hints


def _hint(item: CheckItem, run: Run) -> str | None:
    """What a check waits for; ``None`` for one that runs anyway."""
    if item.tier == 3:
        return None if run.settings.train else TIER3_HINT
    return SLOW_HINT if item.check.slow else None


def _asked_for(config: pytest.Config, item: CheckItem, run: Run, hint: str) -> bool:
    """Whether the id, ``-m`` or a word of ``-k`` names the check or what it waits for."""
    trains = hint == TIER3_HINT
    mark, node = ("tier3", "tier3") if trains else ("slow", f"tier{item.tier}::{item.check.name}")
    words = list(_words(config.getoption("keyword").lower()))
    name = f"{mark} {item.name}".lower()
    return (
        run.asks_by_id(item.model, node)
        or mark in config.getoption("markexpr")
        or any(word in name for word in words)
    )


def unmatched(
    config: pytest.Config, models: Sequence[RunModel], checks: Sequence[Check]
) -> Iterator[str]:
    """A line for every word of ``-k`` and ``-m`` that names no check and no mark of one."""
    names = {check.name for check in checks}
    tiers = {f"tier{check.tier}" for check in checks}
    ids = {name for check in checks for name in check.ids()} | {model.id for model in models}
    for word in _words(config.getoption("keyword")):
        if not any(word.lower() in name.lower() for name in names | tiers | ids | {"slow"}):
            yield f"-k {word}: in the name of no check{did_you_mean(word, sorted(names))}"
    for word in _words(config.getoption("markexpr")):
        if word not in tiers | {"slow"}:
            marks = ", ".join(sorted(tiers))
            yield f"-m {word}: no check has this mark; they have {marks}, slow"


def _words(expression: str) -> Iterator[str]:
    words = dict.fromkeys(re.findall(r"[^\s()]+", expression or ""))
    return (word for word in words if word not in ("and", "or", "not"))


def _function(check: Check, node: str) -> Callable[..., None]:
    """The test function of a check; its code is called after ``node``, so that the stack that
    Python prints when the interpreter crashes names model and check. It has no globals, with
    which ``linecache`` would find this file, and keep it under every such name."""

    def plain_check(request: pytest.FixtureRequest) -> None:
        request.node.judge(request)

    def check_with_cases(request: pytest.FixtureRequest, _tb_case: str) -> None:
        request.node.judge(request)

    code = (check_with_cases if check.cases else plain_check).__code__
    code = code.replace(co_filename=f"{node}::{check.name}", co_name=check.name)
    function: Any = FunctionType(code, {"__name__": __name__})
    if check.cases:
        ids = list(check.cases)
        function = pytest.mark.parametrize(CASE, ids, ids=ids, indirect=True)(function)
    function.__name__ = function.__qualname__ = check.name
    function.__doc__ = check.summary
    function.__test__ = True
    made: Callable[..., None] = function
    return made


def _limit_time(item: CheckItem) -> None:
    """Mark for pytest-timeout, unless the user's own limit is shorter, somebody sits at the
    keyboard, or the check trains."""
    seconds = item.model.settings.timeout
    if item.tier == 3 or not seconds or not item.config.pluginmanager.hasplugin("timeout"):
        return
    if not hasattr(item.config, "workerinput") and (
        item.config.getoption("usepdb")
        or item.config.getoption("trace")
        or item.config.getoption("capture") == "no"
    ):
        return
    import os
    import signal

    given = item.config.getoption("timeout", None)
    own = given or item.config.getini("timeout") or os.environ.get("PYTEST_TIMEOUT") or 0
    if 0 < float(own) <= seconds:
        return
    method = {"method": "signal"} if hasattr(signal, "SIGALRM") else {}
    item.add_marker(pytest.mark.timeout(seconds, **method))
