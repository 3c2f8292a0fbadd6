"""A project with a tiny model, and checks of its own instead of the bundled ones.

The bundled checks are tested elsewhere; here they are replaced, so that what is tested is how
any check is collected, run and reported, at no cost.
"""

from __future__ import annotations

import importlib

import pytest

from pytest_transformer_validate import validate
from pytest_transformer_validate.checks import registry
from tests.gisthost import MODEL

CHECKS = """
from pytest_transformer_validate.checks import registry
from pytest_transformer_validate.checks.registry import Budget, check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.measurement import Limit, Measurement

registry._registry.clear()
registry._BUNDLED = ()

@check(tier=1)
def load(probe):
    "The model loads."
    return Measurement(value=float(probe.context()["parameters"]))

@check(tier=1, budgets=[Budget("value"), Budget("noise", timed=True)])
def sound(probe, *, floor=0.5):
    "Nothing is wrong."
    return Measurement(value=0.25, limit=Limit(value=floor, rule="16 u"))

@check(tier=1, cases=["good", "bad"])
def cased(probe, case):
    "One case holds and one does not."
    if case == "bad":
        raise CheckFailed("two must be one\\ngiven 2", Measurement(value=2.0), where="head")
    return Measurement(value=1.0)

@check(tier=2)
def unpromised(probe):
    "Never applies."
    raise NotApplicable("no cache")

@check(tier=3)
def learns(probe):
    "Trains."
    return Measurement(value=3.0)
"""

PASSING = CHECKS.replace('if case == "bad"', "if False")


@pytest.fixture(scope="session", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what a run imports late: pytester forgets modules, and torch bears it only once."""
    for name in ("session", "start", "fixtures"):
        importlib.import_module(f"pytest_transformer_validate.{name}")
    path = tmp_path_factory.mktemp("warm") / "model.py"
    path.write_text(MODEL)
    str(validate(path, checks="load"))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a project registers in this process are gone after the test."""
    registry.all_checks()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_BUNDLED", registry._BUNDLED)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with model.py, of which ``cased[bad]`` fails, and a conftest with the checks."""
    pytester.makepyfile(model=MODEL)
    pytester.makeconftest(CHECKS)
    pytester.makeini("[pytest]\nstrict = true\n")
    return pytester


@pytest.fixture
def healthy(project: pytest.Pytester) -> pytest.Pytester:
    """The same project, of which nothing fails."""
    project.makeconftest(PASSING)
    return project
