"""Every check there is: a named, tiered, plain function from a Probe to a Measurement.

Importing this module, and every module that defines checks, does not import torch: pytest
collects from the registry before anything is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.task import canonical_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pytest_transformer_validate.measures.measurement import Measurement

    CheckFunction = Callable[..., Measurement]

ENTRY_POINTS = "pytest_transformer_validate.checks"
_BUNDLED = (
    "pytest_transformer_validate.checks.tier1",
    "pytest_transformer_validate.checks.tier2",
    "pytest_transformer_validate.checks.tier3",
)


@dataclass(frozen=True)
class Budget:
    """A number of a check that may be held against a baseline (``--tb-baseline``).

    ``number`` is a field of the check's Measurement, of which less is better; ``timed`` says that
    it is read off a clock, and tells nothing on another machine. How many times the baseline's
    it may be is declared as the limit ``<number>_growth`` of the check.
    """

    number: str
    timed: bool = False

    @property
    def limit(self) -> str:
        """The name under which ``tb_limits`` declares it."""
        return f"{self.number}_growth"


@dataclass(frozen=True)
class Check:
    """A check: its name, what it applies to, and the function that judges.

    ``function(probe, *, **limits)`` or, for a check with cases, ``function(probe, case, *,
    **limits)``. It returns a Measurement, or raises CheckFailed or NotApplicable. ``limits``
    holds the keyword-only parameters with their defaults; ini ``tb_limits`` overrides them. A
    ``slow`` check runs where it is asked for: by its id, its name, or the mark ``slow``.
    ``budgets`` are numbers that ``tb_limits`` may hold against a baseline; ``quantised`` says that
    it judges models of which torch has quantised parts, too.
    """

    name: str
    tier: int
    function: CheckFunction
    tasks: frozenset[str] | None = None
    cases: tuple[str, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False
    budgets: tuple[Budget, ...] = ()
    quantised: bool = False

    @property
    def summary(self) -> str:
        """First paragraph of the docstring: the property in one sentence."""
        paragraph = (inspect.getdoc(self.function) or self.name).partition("\n\n")[0]
        return " ".join(paragraph.split())

    def ids(self) -> list[str]:
        """``name`` or ``name[case]`` for every case."""
        return [f"{self.name}[{case}]" for case in self.cases] or [self.name]


_registry: dict[str, Check] = {}


def check(
    *,
    tier: int,
    tasks: Iterable[str] | None = None,
    cases: Iterable[str] = (),
    slow: bool = False,
    budgets: Iterable[Budget] = (),
    quantised: bool = False,
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as a check under its own name.

    ``tier`` is 1 (structure), 2 (behaviour) or 3 (training); ``tasks`` the tasks that it applies
    to (default: all); ``cases`` words that become ``name[case]``; ``slow`` whether it runs only
    where it is asked for; ``budgets`` numbers that may be held against a baseline; ``quantised``
    whether it judges models of which torch has quantised parts, too. Raises SpecError for a taken
    name, an unknown task or a tier other than 1 to 3.
    """

    def register(function: CheckFunction) -> CheckFunction:
        name = function.__name__
        known = _registry.get(name)
        if known is not None and not _same(known.function, function):
            raise SpecError(f"a check called {name!r} is registered already; choose another name")
        if tier not in (1, 2, 3):
            raise SpecError(f"check {name!r}: tier must be 1, 2 or 3, given {tier!r}")
        parameters = inspect.signature(function).parameters.values()
        _registry[name] = Check(
            name=name,
            tier=tier,
            function=function,
            tasks=None if tasks is None else frozenset(map(canonical_task, tasks)),
            cases=tuple(cases),
            limits={p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY},
            slow=slow,
            budgets=tuple(budgets),
            quantised=quantised,
        )
        return function

    return register


def _same(known: CheckFunction, new: CheckFunction) -> bool:
    """Whether the second is the first once more; in a notebook, a cell that was run again."""
    return known.__code__ == new.__code__ or known.__module__ == new.__module__ == "__main__"


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Checks that are registered inside are gone afterwards."""
    all_checks()  # those that are imported once in a process
    before = dict(_registry)
    try:
        yield
    finally:
        _registry.clear()
        _registry.update(before)


def all_checks() -> list[Check]:
    """Bundled checks in their order, then those of entry points and conftests by name, by tier."""
    for module in _BUNDLED:
        importlib.import_module(module)
    bundled = {n for n, c in _registry.items() if c.function.__module__.startswith(__package__)}
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        point.load()
    own = [c for name, c in _registry.items() if name in bundled]
    foreign = sorted((c for n, c in _registry.items() if n not in bundled), key=lambda c: c.name)
    return sorted([*own, *foreign], key=lambda c: c.tier)
