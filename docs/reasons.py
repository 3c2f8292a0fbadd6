"""Why a check does not apply, read off its code: every text with which it may skip."""

from __future__ import annotations

import ast
import inspect
import re
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = "pytest_transformer_validate"


@cache
def of(check: Callable[..., object]) -> tuple[str, ...]:
    """The texts of every NotApplicable that the function and what it calls in this package raise.

    What only a run can fill in is an ellipsis; texts that are little else are left out.
    """
    texts = [text for function in _reached(check) for text in _raised(function)]
    return tuple(dict.fromkeys(text for text in texts if re.search(r"\w+\W+\w+\W+\w+", text)))


def _reached(check: Callable[..., object]) -> list[types.FunctionType]:
    found: list[types.FunctionType] = []
    waiting = [inspect.unwrap(check)]
    while waiting:
        function = waiting.pop(0)
        if isinstance(function, types.FunctionType) and function not in found:
            found.append(function)
            waiting += _called(function)
    return found


def _called(function: types.FunctionType) -> Iterator[Callable[..., object]]:
    names = function.__globals__
    for node in ast.walk(_tree(function)):
        if isinstance(node, ast.Name):
            value = names.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            value = getattr(module, node.attr, None) if inspect.ismodule(module) else None
        else:
            continue
        value = inspect.unwrap(value) if callable(value) else None
        if isinstance(value, types.FunctionType) and value.__module__.startswith(PACKAGE):
            yield value


def _raised(function: types.FunctionType) -> Iterator[str]:
    for node in ast.walk(_tree(function)):
        if isinstance(node, ast.Call) and node.args:
            called = node.func
            if isinstance(called, ast.Name) and called.id == "NotApplicable":
                yield " ".join(_text(node.args[0]).split())


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
