"""What healthy models may do, read off the code of a check: the texts with which it skips, and
those that it notes in the record of a model that passes."""

from __future__ import annotations

import ast
import inspect
import re
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.measures import tolerance
from pytest_transformer_validate.probe.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = "pytest_transformer_validate"
ELSEWHERE = {tolerance.settle}  # what it notes is said once for all checks


@cache
def skips(check: Callable[..., object]) -> tuple[str, ...]:
    """The texts of every NotApplicable that the function, and what it calls here, may raise."""
    return _texts(check, _raised)


@cache
def notes(check: Callable[..., object]) -> tuple[str, ...]:
    """The texts of every note that the function, and what it calls here, may leave."""
    return _texts(check, _noted)


def _texts(
    check: Callable[..., object],
    found: Callable[[types.FunctionType], Iterator[ast.expr]],
) -> tuple[str, ...]:
    """What only a run can fill in is an ellipsis; texts that are little else are left out."""
    texts = [text for function in _reached(check) for text in _of_function(function, found)]
    return tuple(dict.fromkeys(text for text in texts if re.search(r"\w+\W+\w+\W+\w+", text)))


@cache
def _of_function(
    function: types.FunctionType, found: Callable[[types.FunctionType], Iterator[ast.expr]]
) -> tuple[str, ...]:
    return tuple(" ".join(_text(node).split()) for node in found(function))


@cache
def _reached(check: Callable[..., object]) -> tuple[types.FunctionType, ...]:
    found: dict[types.FunctionType, None] = {}
    waiting = [inspect.unwrap(check)]
    while waiting:
        function = waiting.pop(0)
        if isinstance(function, types.FunctionType) and function not in found:
            found[function] = None
            waiting += _called(function)
    return tuple(found)


@cache
def _called(function: types.FunctionType) -> tuple[Callable[..., object], ...]:
    meant = (
        inspect.unwrap(_meant(node, function.__globals__)) for node in ast.walk(_tree(function))
    )
    return tuple(
        value
        for value in meant
        if isinstance(value, types.FunctionType) and value.__module__.startswith(PACKAGE)
    )


def _meant(node: ast.AST, names: dict[str, Any]) -> Any:
    """What a name, an attribute of a module or a pass (``probe.losses.labels``) stands for."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return getattr(names.get(module), name, None)
        case ast.Attribute(value=ast.Attribute(attr=group), attr=name):
            passes = inspect.getattr_static(Probe, group, None)
            return getattr(getattr(passes, "func", None), name, None)
    return None


def _raised(function: types.FunctionType) -> Iterator[ast.expr]:
    for node in ast.walk(_tree(function)):
        match node:
            case ast.Call(func=ast.Name(id="NotApplicable"), args=[text, *_]):
                yield text


def _noted(function: types.FunctionType) -> Iterator[ast.expr]:
    if function in ELSEWHERE:
        return
    explains = re.match(r"_(reason|why)", function.__name__)
    for node in ast.walk(_tree(function)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="notes"), attr="append"), args=[text]
            ):
                yield text
            case ast.Assign(targets=[ast.Name(id="note")], value=text):
                yield text
            case ast.keyword(arg="notes", value=ast.Tuple(elts=texts)):
                yield from texts
            case ast.Return(value=ast.expr() as value) if explains:
                for part in ast.walk(value):
                    if isinstance(part, ast.Constant):
                        yield part
                    elif isinstance(part, ast.Name):
                        yield ast.Constant(function.__globals__.get(part.id))


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(_text, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return "…"


def _tree(function: types.FunctionType) -> ast.AST:
    """The function's own part of its file; empty for one that no ``def`` made."""
    file = inspect.getsourcefile(function)
    return _functions(file).get(function.__code__.co_firstlineno, ast.Module([], []))


@cache
def _functions(file: str) -> dict[int, ast.AST]:
    """Every function of a file by its first line, decorators included."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {min(n.lineno for n in (node, *node.decorator_list)): node for node in found}
