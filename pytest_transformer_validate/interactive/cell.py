"""The tests of a cell, as a module of pytest that is no file."""

from __future__ import annotations

import ast
import builtins
import linecache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.assertion.rewrite import rewrite_asserts
from _pytest.fixtures import FixtureFunctionDefinition

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "cell"
FILE = "<cell>"  # what tracebacks call it
_ABSENT = object()


class Cell(pytest.Module):
    """What a cell defines. It runs over a copy of the notebook's variables, so that nothing of
    it stays; fixtures of other cells can be asked for, tests of other cells are not run."""

    text: str
    variables: Mapping[str, Any]
    _made: ModuleType | None = None

    @classmethod
    def make(cls, session: pytest.Session, text: str, variables: Mapping[str, Any]) -> Cell:
        identity: Any = NAME
        node = cls.from_parent(session, path=Path.cwd() / FILE, name=NAME, nodeid=identity)
        node.text, node.variables = text, variables
        return node

    def _getobj(self) -> ModuleType:
        """The module; made once, because pytest asks more than once."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> ModuleType:
        before = dict(self.variables)
        after = before | {"__builtins__": builtins}
        exec(_compiled(self.text, self.config), after)
        module = ModuleType("__main__")
        vars(module).update(
            (name, value)
            for name, value in after.items()
            if before.get(name, _ABSENT) is not value
            or isinstance(value, FixtureFunctionDefinition)
        )
        return module


def forget() -> None:
    """Let go of the text of the last cell."""
    linecache.cache.pop(FILE, None)


def _compiled(text: str, config: pytest.Config) -> Any:
    """Code whose assertions say what they compared, and whose lines tracebacks find."""
    linecache.cache[FILE] = (len(text), None, text.splitlines(keepends=True), FILE)
    tree = ast.parse(text, FILE)
    rewrite_asserts(tree, text.encode(), FILE, config)
    return compile(tree, FILE, "exec", dont_inherit=True)
