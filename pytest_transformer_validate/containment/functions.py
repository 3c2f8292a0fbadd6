"""Functions of torch, of pytest and of this package: which of them a model has replaced.

Those that a verdict is made with come back at once, and the check that met them says so. Others
(layers, ``torch.nn.functional``) are the model's business: they come back when its code has run,
and are replaced again when it runs again.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import math
import operator
import random
import sys
import time
import types

# Bound here, because a model may have replaced them where Python looks for them.
from builtins import all, dict, isinstance, len, list, map, set, zip  # noqa: UP029 - see above
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.identity import Identities, Writes

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN_PACKAGE = __name__.partition(".")[0]
_JUDGING = ("checks", "measures", "probe", "runner", "report", "subject")
_PYTEST: tuple[str, ...] = (
    "_pytest.reports",
    "_pytest.runner",
    "_pytest.outcomes",
    "_pytest.main",
)
_PYTEST += ("_pytest.terminal", "_pytest.python", "pluggy._hooks", "pluggy._callers")
# Of Python's library, what reads files, describes code and makes texts.
_LIBRARY: tuple[str, ...] = (
    "io",
    "os",
    "os.path",
    "pathlib",
    "json",
    "linecache",
    "traceback",
    "inspect",
)
_LIBRARY += ("importlib", "copy", "functools", "contextlib", "tempfile", "shutil", "subprocess")
_LAYERS = ("torch.nn", "torch.nn.functional", "torch.nn.init", "torch.autograd", "torch.optim")
# Follows the default dtype.
_CHANGES = frozenset({"Storage"})
_MISSING = object()
_NOTHING: frozenset[str] = frozenset()
_CODE = operator.attrgetter("__code__")
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.ClassMethodDescriptorType,
    staticmethod,
    classmethod,
    property,
    type,
)


@dataclass(frozen=True)
class Change:
    """One function that was replaced."""

    owner: Any
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        owner = self.owner
        if isinstance(owner, dict):
            return f"{_OWN_PACKAGE}: {self.name}"
        home = "" if isinstance(owner, types.ModuleType) else f"{owner.__module__}."
        home = "torch." if home.startswith("torch.") else home
        named = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", type(owner))
        return f"{home}{named}.{self.name}"

    @property
    def of_library(self) -> bool:
        """Whether the function is of Python's own library."""
        owner = self.owner
        home = owner.__module__ if isinstance(owner, type) else getattr(owner, "__name__", "")
        return str(home).partition(".")[0] in sys.stdlib_module_names

    def put(self, value: Any) -> None:
        """Give the function's place to ``value``."""
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        elif value is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


class _Owner:
    """A module or class and what its names stand for; ``used`` are those a verdict needs."""

    def __init__(self, owner: Any, used: frozenset[str] | None) -> None:
        self.owner = owner
        self.held = owner if isinstance(owner, dict) else vars(owner)  # as it is at any time
        self.used = used
        home = getattr(owner, "__module__", None) or getattr(owner, "__name__", "")
        self.is_own = str(home).partition(".")[0] == _OWN_PACKAGE
        self.note()

    def note(self) -> None:
        """Take what is there now for right."""
        self.names, self.values = list(self.held), list(self.held.values())

    def same(self) -> bool:
        return len(self.held) == len(self.values) and all(
            map(operator.is_, self.held.values(), self.values)
        )

    def changes(self) -> Iterator[Change]:
        held = dict(self.held)
        for name, before in zip(self.names, self.values, strict=True):
            after = held.get(name, _MISSING)
            if after is before or not isinstance(before, _FUNCTIONS):
                continue
            if not _wrapped_by_torch(before, after):
                yield Change(self.owner, name, before, after)
        if isinstance(self.owner, type):
            for name in held.keys() - set(self.names):
                if any(name in vars(base) for base in self.owner.__mro__[1:]):
                    yield Change(self.owner, name, _MISSING, held[name])


def _wrapped_by_torch(before: Any, after: Any) -> bool:
    """Whether torch itself wrapped a function of its own, as it does when a library first imports
    its compiler or compiles: the wrapper is the compiler's, and calls ``before``."""
    import torch

    guard = sys.modules.get("torch._dynamo.mutation_guard")
    makers: list[Any] = [
        vars(torch)["_disable_dynamo"],
        getattr(guard, "install_generation_tagging_init", None),
    ]
    made = itertools.chain.from_iterable(m.__code__.co_consts for m in makers if m is not None)
    wrappers = [code for code in made if isinstance(code, types.CodeType)]
    cells = getattr(after, "__closure__", None) or ()
    return (
        isinstance(after, types.FunctionType)
        and any(after.__code__ is code for code in wrappers)
        and any(cell.cell_contents is before for cell in cells)
    )


class Functions:
    """What functions are now, to find those that are replaced later.

    ``near`` are those of torch, Python and pytest that verdicts are made with; ``far`` are layers,
    Python's library and this package itself: ten times as many.
    """

    def __init__(self) -> None:
        near: list[_Owner] = []
        far: list[_Owner] = []
        for owner in _owners():
            (far if owner.is_own or owner.used == _NOTHING else near).append(owner)
        self.near, self.far = Names(near), Names(far)


class Names:
    """What the names of some modules and classes stand for."""

    def __init__(self, owners: list[_Owner]) -> None:
        self._owners = sorted(owners, key=lambda owner: owner.is_own)
        others = len([owner for owner in owners if not owner.is_own])  # these first
        found = (value for owner in self._owners for value in owner.values)
        functions = (value for value in found if isinstance(value, types.FunctionType))
        self._functions = list(dict.fromkeys(functions))
        self._codes = [function.__code__ for function in self._functions]
        self._now = [owner.held.values() for owner in self._owners]  # views of what they hold
        self._others_now = self._now[:others]
        self._writes = Writes([owner.held for owner in self._owners])
        self._take()

    def _take(self) -> None:
        self._writes.note()
        self._values = Identities(self._now)
        self._others_values = list(itertools.chain.from_iterable(self._others_now))

    def _equal(self) -> bool:
        """Whether names stand for an equal of what they did: quick, for where no model has run
        that could give its own objects out for others. Of this package, which nobody changes
        while it runs, only whether names were added."""
        if not self._values.same_sizes():
            return False
        with contextlib.suppress(Exception):  # whoever compares itself with others may refuse
            return list(itertools.chain.from_iterable(self._others_now)) == self._others_values
        return False

    def note(self) -> None:
        """Take for right what has changed since, outside of any model's code."""
        if self._writes.none():
            return
        if self._equal():
            self._writes.note()
            return
        for owner in self._owners:
            if not owner.same():
                owner.note()
        self._take()

    def changes(self) -> tuple[list[Change], list[Change]]:
        """What has been replaced: functions that a verdict is made with, and others."""
        judged: list[Change] = []
        others: list[Change] = []
        if list(map(_CODE, self._functions)) != self._codes:
            for function, code in zip(self._functions, self._codes, strict=True):
                if function.__code__ is not code:
                    judged.append(Change(function, "__code__", code, function.__code__))
        if self._writes.none() or self._values.same():
            return judged, others
        for owner in self._owners:
            if owner.same():
                continue
            for change in owner.changes():
                used = owner.used is None or change.name in owner.used
                (judged if used else others).append(change)
        return judged, others


def _owners() -> Iterator[_Owner]:
    import torch

    modules = {name for name, value in vars(torch).items() if isinstance(value, types.ModuleType)}
    used = _used_names() - modules - _CHANGES
    plain: list[Any] = [torch, torch.Tensor, torch._C.TensorBase, torch.linalg, torch.nn.Module]
    for each in (*plain, builtins, math, random, time):
        yield _Owner(each, used)
    for name in _PYTEST:
        yield from _with_classes(sys.modules.get(name), None)
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{_OWN_PACKAGE}.") and not name.startswith(f"{_OWN_PACKAGE}.evidence"):
            yield from _with_classes(module, None)
    for name in _LIBRARY:
        yield from _with_classes(sys.modules.get(name), _NOTHING)
    seen = set(plain)
    for name in _LAYERS:
        for owner in _with_classes(sys.modules[name], _NOTHING, "torch"):
            if owner.owner not in seen:
                seen.add(owner.owner)
                yield owner


def _with_classes(
    module: Any, used: frozenset[str] | None, home: str | None = None
) -> Iterator[_Owner]:
    """A module and the classes that are made in it (or anywhere in ``home``)."""
    if module is None:
        return
    yield _Owner(module, used)
    for value in list(vars(module).values()):
        if isinstance(value, type) and (
            value.__module__ == module.__name__
            if home is None
            else value.__module__.partition(".")[0] == home
        ):
            yield _Owner(value, used)


def _used_names() -> frozenset[str]:
    """Every name that code of this package asks torch and Python for when it judges."""
    names: set[str] = set()
    for name, module in list(sys.modules.items()):
        room = name.removeprefix(f"{_OWN_PACKAGE}.").partition(".")[0]
        if name.startswith(f"{_OWN_PACKAGE}.") and room in _JUDGING:
            for function in _functions_of(module):
                _collect(function.__code__, names)
    return frozenset(names)


def _functions_of(module: Any) -> Iterator[types.FunctionType]:
    for value in list(vars(module).values()):
        inner = list(vars(value).values()) if isinstance(value, type) else [value]
        for item in inner:
            function = getattr(item, "__func__", None) or getattr(item, "fget", None) or item
            if isinstance(function, types.FunctionType):
                yield function


def _collect(code: types.CodeType, names: set[str]) -> None:
    names.update(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _collect(constant, names)
