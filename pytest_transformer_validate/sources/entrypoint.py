"""Which class or function of a model file gives the model."""

from __future__ import annotations

import ast
import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.wording import clipped, listed, near, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    import torch

WAYS = (
    "a model file gives its model by build_model(config) or build_model(), by the class that "
    "model_name in its config.json names,\n  by a class called Model, by its only nn.Module "
    "class that no other one uses, or by the one that it makes itself"
)

BUILDERS = ("make_model", "create_model", "get_model", "build")


@dataclass(frozen=True)
class Entry:
    """What to call for a model, or the model itself; ``words`` name it for people."""

    target: Any
    words: str
    declared: bool = False

    @property
    def is_class(self) -> bool:
        """Whether the entry is the model's class."""
        return is_module_class(self.target)


def is_module_class(value: Any) -> bool:
    """Whether ``value`` is a subclass of torch.nn.Module."""
    import torch

    return isinstance(value, type) and issubclass(value, torch.nn.Module)


def find_entry(
    module: ModuleType, tree: ast.Module, path: Path, *, name: str | None, model_name: Any
) -> Entry:
    """The entry point of a model file. Raises SourceError listing the candidates."""
    classes = _own_classes(module, package=path.name == "__init__.py")
    if name is not None:
        if not hasattr(module, name):
            raise SourceError(_unnamed(module, name, classes, path))
        return describe(getattr(module, name), name)
    build = getattr(module, "build_model", None)
    if callable(build):
        return Entry(build, "build_model", declared=True)
    for known in (model_name, "Model"):
        if isinstance(known, str) and is_module_class(getattr(module, known, None)):
            return Entry(getattr(module, known), f"class {known}")
    alone = _standing_alone(classes, tree)
    if len(alone) == 1:
        return Entry(classes[alone[0]], f"class {alone[0]}")
    made = made_itself(module, foreign=not classes)
    if made is None and not classes:
        made = next((describe(found, n) for n, found in usual_builders(module)), None)
    if made is None:
        raise SourceError(_undecided(module, alone or list(classes), path))
    return made


def usual_builders(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions of a file whose name says that they give its model."""
    for name in BUILDERS:
        function = getattr(module, name, None)
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            yield name, function


def made_itself(module: ModuleType, *, foreign: bool = False) -> Entry | None:
    """The model that a file makes when it is run: its only object of the file's own classes, or
    built from them (``foreign``: of any class), that is no part of another one; of several, the
    one called ``model``."""
    import torch

    named = {id(v): n for n, v in vars(module).items() if isinstance(v, torch.nn.Module)}
    parts = {n: list(getattr(module, n).modules()) for n in named.values()}
    inner = {id(part) for found in parts.values() for part in found[1:]}
    whole = [
        name
        for name, found in parts.items()
        if id(found[0]) not in inner
        and (foreign or any(type(part).__module__ == module.__name__ for part in found))
        and not (foreign and next(found[0].parameters(), None) is None)
    ]
    name = whole[0] if len(whole) == 1 else "model"
    return describe(getattr(module, name), name) if name in whole else None


def describe(target: Any, name: str) -> Entry:
    """An entry for something that was named."""
    if isinstance(target, type):
        return Entry(target, f"class {name}")
    if inspect.isroutine(target):
        return Entry(target, f"function {name}", declared=name == "build_model")
    return Entry(target, f"object {name}")


def _own_classes(module: ModuleType, *, package: bool = False) -> dict[str, type[torch.nn.Module]]:
    """The nn.Module classes that the file defines, or, of a ``package``, that it takes from the
    files below it; by name, each once."""
    own = module.__name__

    def defined(where: str) -> bool:
        return where == own or (package and where.startswith(f"{own}."))

    return {
        value.__name__: value
        for value in vars(module).values()
        if is_module_class(value)
        and defined(value.__module__)
        and getattr(module, value.__name__, value) is value
    }


def _standing_alone(classes: Mapping[str, object], tree: ast.Module) -> list[str]:
    """The classes that no other one uses, by itself or, where that leaves a choice, by way of
    the file's functions and tables."""
    uses = _uses(tree)
    direct = _unused(classes, uses)
    if len(direct) == 1:
        return direct
    reached = {name: _reach(name, uses, stop=classes.keys()) for name in classes}
    indirect = _unused(classes, reached)
    return indirect if len(indirect) == 1 else direct


def _unused(classes: Mapping[str, object], uses: Mapping[str, set[str]]) -> list[str]:
    return [
        name
        for name in classes
        if not any(name in uses.get(other, ()) for other in classes if other != name)
    ]


@functools.lru_cache(maxsize=1)  # as long as the same file is read
def _uses(tree: ast.Module) -> dict[str, set[str]]:
    """The names that each top-level definition of a file mentions."""
    uses: dict[str, set[str]] = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined = [node.name]
        else:
            targets = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
            defined = [n.id for n in targets if isinstance(n.ctx, ast.Store)]
        mentioned = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        for name in defined:
            uses.setdefault(name, set()).update(mentioned)
    return uses


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Top-level statements, those below a top-level ``if`` or ``try`` included."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If):
            found += _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            found += _statements([*node.body, *handlers, *node.orelse, *node.finalbody])
        else:
            found.append(node)
    return found


def _reach(start: str, uses: Mapping[str, set[str]], stop: Any) -> set[str]:
    seen: set[str] = set()
    waiting = list(uses.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in stop:
            waiting += uses.get(name, ())
    return seen


def _unnamed(module: ModuleType, name: str, classes: Mapping[str, object], path: Path) -> str:
    public = [known for known in vars(module) if not known.startswith("__")]
    return (
        f"{shown(path)} has no {clipped(name, 60)!r}{near(name, public)}; "
        f"its nn.Module classes: {listed(list(classes))}"
    )


def _undecided(module: ModuleType, candidates: list[str], path: Path) -> str:
    if candidates:
        return (
            f"{shown(path)} has more than one model: {listed(candidates)}\n"
            f"  name one: --tb-model={shown(path)}::{candidates[0]}\n  {WAYS}"
        )
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("__") and not inspect.ismodule(value)
    ]
    return (
        f"{shown(path)} defines no torch.nn.Module; names found: {listed(names)}\n  {WAYS}\n"
        f"  a function or an object of another name is named by {shown(path)}::name"
    )
