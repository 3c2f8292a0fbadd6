"""What the source of a model reads of itself, beside setting it up."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETUP = ("__init__", "init", "_init", "reset", "_reset", "tie", "_tie")
_DYNAMIC = {"children", "named_children", "modules", "named_modules", "_modules"}
_SETTINGS = {"config", "cfg", "args", "params", "hparams"}


@dataclass(frozen=True)
class Reads:
    """Attribute names that a source file reads outside of set-up code.

    ``through`` holds those read from something else than ``self``, ``own`` those read from
    ``self`` by class, and ``dynamic`` says that names are computed.
    """

    through: frozenset[str]
    own: dict[str, frozenset[str]]
    dynamic: bool


def reads_module(model: nn.Module, name: str) -> bool:
    """Whether a submodule is read by the class that holds it, in the source around it, or
    through an object there.

    Where the source cannot be had, names are computed, or the submodule is an element of a list
    or a dict, the answer is yes.
    """
    above, _, own = name.rpartition(".")
    around = dict(model.named_modules())[above]
    if isinstance(around, nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return True
    files = [reads for _, reads in _sources(type(around))]
    kinds = ["", *(cls.__name__ for cls in type(around).__mro__)]
    return not files or any(
        reads.dynamic
        or own in reads.through
        or any(own in reads.own.get(kind, frozenset()) for kind in kinds)
        for reads in files
    )


def reads_parameter(model: nn.Module, name: str) -> bool:
    """Whether a parameter is read in the class that owns it, or through an object elsewhere.

    Where the source cannot be had the answer is yes.
    """
    above, _, own = name.rpartition(".")
    files = list(_sources(type(dict(model.named_modules())[above])))
    return not files or any(
        reads.dynamic or own in reads.own.get(kind, frozenset()) or own in reads.through
        for kind, reads in files
    )


def reads_dtype(module: nn.Module) -> bool:
    """Whether code of a module's own class, beside its set-up, asks a tensor for its dtype."""
    for cls in type(module).__mro__:
        if cls is nn.Module or cls.__module__.startswith("torch."):
            return False
        for name, function in vars(cls).items():
            code = getattr(inspect.unwrap(function), "__code__", None)
            asks = code is not None and {"dtype", "type_as"} & set(code.co_names)
            if asks and not name.startswith(_SETUP):
                return True
    return False


def _sources(kind: type) -> Iterator[tuple[str, Reads]]:
    """The classes of a module up to torch's own, each with what its file reads."""
    for cls in kind.__mro__:
        if cls is nn.Module or cls.__module__.startswith("torch."):
            return
        forward = vars(cls).get("forward")
        code = getattr(inspect.unwrap(forward), "__code__", None) if forward else None
        if code is not None:
            reads = _reads(code.co_filename)
            if reads is not None:
                yield cls.__name__, reads


@functools.cache
def _reads(filename: str) -> Reads | None:
    text = "".join(linecache.getlines(filename))
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    if not tree.body:
        return None
    anywhere: set[str] = set()
    through: set[str] = set()
    own: dict[str, set[str]] = {}
    computed = False
    for cls, node in _walk(tree, ""):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            anywhere.add(node.attr)
            asked, name = node.value, node.attr
        elif isinstance(node, ast.Call) and _name(node.func) == "getattr" and len(node.args) > 1:
            asked, word = node.args[0], node.args[1]
            if not (isinstance(word, ast.Constant) and isinstance(word.value, str)):
                computed = computed or _name(asked) not in _SETTINGS
                continue
            name = word.value
        else:
            if isinstance(node, ast.Name):
                anywhere.add(node.id)
            continue
        if isinstance(asked, ast.Name) and asked.id == "self":
            own.setdefault(cls, set()).add(name)
        else:
            through.add(name)
    frozen = {cls: frozenset(names) for cls, names in own.items()}
    return Reads(frozenset(through), frozen, computed or bool(anywhere & _DYNAMIC))


def _name(node: ast.AST) -> str:
    """The last name of ``one`` or ``one.two``, else nothing."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _walk(node: ast.AST, cls: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node outside of set-up functions, with the name of the class around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name.startswith(_SETUP):
            continue
        yield cls, child
        yield from _walk(child, child.name if isinstance(child, ast.ClassDef) else cls)
