"""What a model's names promise: a position encoding, a window. Read where a verdict needs it.

Names decide nothing alone. They excuse (a short reach, where anything is called a window) or say
what somebody meant (a table of positions that has no effect), after a measurement has asked.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.subject.declared import levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_transformer_validate.subject.subject import Subject

WINDOW = (
    "sliding_window", "sliding_window_size", "attention_window", "attention_window_size",
    "local_attention_window", "local_window_size", "local_attention", "window_size", "window",
)  # fmt: skip
# Parts of words that tell of a reach which is short on purpose, or has holes.
_SHORT = (
    "window", "local", "chunk", "band", "dilat", "conv", "kernel", "receptive", "neighbo",
    "sliding", "span", "lookback", "horizon", "radius", "nearby",
)  # fmt: skip
_HOLES = (
    *_SHORT, "strid", "spars", "lsh", "hash", "topk", "keep", "landmark", "cluster", "bucket",
    "budget", "indexer", "routing", "nystrom", "pool",
)  # fmt: skip
_POSITIONWISE = ("feedforward", "ffn", "mlp")  # what is cut into chunks without a loss
_POSITION = {
    "pos", "position", "positions", "positional", "rope", "rotary", "alibi", "sinusoid",
    "sinusoidal", "sinusoids", "wpe", "pe", "freqs", "slopes", "posemb", "posenc", "rpe",
    "relative", "inv_freq",
}  # fmt: skip
_ROTARY = {"rope", "rotary", "rotate", "alibi", "slopes", "freqs", "inv_freq"}
_IN_SOURCE = {"rope", "rotary", "alibi", "sinusoid", "sinusoidal", "positional", "posemb", "wpe"}
_NOT_POSITION = ("max", "wise", "n_pos", "num_pos", "len", "size")
_SETUP = ("__init__", "init", "_init", "reset", "_reset", "tie", "_tie")


# Kinds of rotary positions that are others in a text beyond a length.
_STRETCHED = {"longrope", "su", "dynamic"}


def stretched_beyond(subject: Subject) -> int | None:
    """The length beyond which the configuration declares that all positions of a text turn
    otherwise than in a shorter one."""
    for level in levels(subject.config):
        for rope in _mappings(level.first("rope_parameters", "rope_scaling")):
            original = rope.get("original_max_position_embeddings")
            original = original or level.get("original_max_position_embeddings")
            if rope.get("rope_type", rope.get("type")) in _STRETCHED and isinstance(original, int):
                return original
    return None


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """A mapping, and those in it (one a kind of layer)."""
    if not isinstance(value, Mapping):
        return []
    return [value, *(inner for inner in value.values() if isinstance(inner, Mapping))]


def declared_window(subject: Subject) -> int | None:
    """The window that the configuration declares, where it is one number of tokens."""
    text = subject.config.get("text_config")
    found = subject.config.first(*WINDOW) or (ModelConfig(text).first(*WINDOW) if text else None)
    if isinstance(found, list | tuple) and len(set(found)) == 1:
        found = found[0]
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def tells_of_limits(
    subject: Subject, *, holes: bool = True, inside: str | None = None
) -> str | None:
    """The first name in the configuration, the modules or their source, or the first word that
    is a value there, that tells of a limited reach, or of ``holes`` in it; ``None`` where none
    does. ``inside`` asks one module and what is in it, not the configuration."""
    parts = _HOLES if holes else _SHORT
    given = [_given(level) for level in levels(subject.config)] if inside is None else []
    names = [name for keys in given for k, v in keys.items() for name in (k, *_strings(v))]
    model = subject.model.get_submodule(inside or "")
    names += [inside or "", *_structure(model)]
    for name in [*names, *_identifiers(model, unconditional=False)]:
        plain = name.lower().replace("_", "")
        if any(part in plain for part in parts) and not any(p in plain for p in _POSITIONWISE):
            return name
    return None


def position_promise(subject: Subject, *, rotary: bool = False) -> str | None:
    """What shows that positions were meant to be known: an input, a tensor, a submodule or its
    class, a key of the configuration, a name that forward reads in any case.

    Maximum lengths do not count, nor what is switched off. ``rotary`` asks for what makes scores
    depend on the distance: rotations, or a bias by distance.
    """
    wanted = _ROTARY if rotary else _POSITION
    if not rotary and subject.signature.takes("position_ids"):
        return "the input position_ids"
    for level in levels(subject.config):
        for key, value in _given(level).items():
            off = str(value).lower() in {"none", "nope", "no", "absent", "off"}
            if _words(key) & wanted and not off and not _is_length(key):
                return f"{key} in the configuration"
    for name in (*_tensors(subject.model), *_plain_tensors(subject.model)):
        own = name.rpartition(".")[2]
        if _words(own) & wanted and not _is_length(own):
            return name
    for name, module in subject.model.named_modules():
        made = type(module)
        foreign = not name or made.__module__.startswith("torch.")
        if not foreign and _words(made.__name__) & wanted and not _is_length(made.__name__):
            return f"{name}, a {made.__name__}"
    if {"cos", "sin"} <= {word for name in _turned(subject.model) for word in _words(name)}:
        return "tables of cos and sin"
    found = _identifiers(subject.model, unconditional=True)
    return next((f"{n} in the source" for n in found if _words(n) & wanted & _IN_SOURCE), None)


def _turned(model: nn.Module) -> Iterator[str]:
    """Names under which a table of angles stands: of tensors, and of what submodules are given."""
    yield from (n.rpartition(".")[2] for n in (*_tensors(model), *_plain_tensors(model)))
    for kind in {type(module) for module in model.modules()}:
        if not kind.__module__.startswith("torch.") and inspect.isfunction(kind.forward):
            yield from inspect.signature(kind.forward).parameters


def _words(name: str) -> set[str]:
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()
    return {str(name).lower(), split, *re.split(r"[^a-z]+", split)}


def _is_length(name: str) -> bool:
    return any(part in str(name).lower() for part in _NOT_POSITION)


def _given(config: Any) -> dict[str, Any]:
    """The keys of a configuration with a value that is not off."""
    values = ((str(key), config.get(key)) for key in config)
    return {key: value for key, value in values if value is not None and value is not False}


def _strings(value: Any) -> list[str]:
    """The single words that are a value, or in a list that is one ("sliding_attention")."""
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, str) and v.isidentifier()]


def _tensors(model: nn.Module) -> list[str]:
    """Names of submodules, parameters and buffers."""
    names = [name for name, _ in model.named_modules()]
    names += [name for name, _ in model.named_parameters()]
    return names + [name for name, _ in model.named_buffers()]


def _plain_tensors(model: nn.Module) -> Iterator[str]:
    """Names of tensors that modules keep as plain attributes."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, torch.Tensor):
                yield f"{prefix}.{name}".lstrip(".")


def _structure(model: nn.Module) -> list[str]:
    """The same, and names of classes and of plain attributes."""
    names = _tensors(model)
    for prefix, module in model.named_modules():
        if not type(module).__module__.startswith("torch."):
            plain = (k for k, v in vars(module).items() if not k.startswith("_") and _is_on(v))
            names += [f"{prefix}.{key}" for key in plain if key not in {"config", "training"}]
            names += [word for value in vars(module).values() for word in _strings(value)]
            names.append(type(module).__name__)
    return names


def _is_on(value: Any) -> bool:
    """Whether an attribute is set: not None, not False, and no plain value that is empty."""
    if isinstance(value, int | float | str | list | tuple | dict):
        return bool(value)
    return value is not None


def _identifiers(model: nn.Module, *, unconditional: bool) -> Iterator[str]:
    """Names in the source of the classes of a model, beside their set-up; ``unconditional``
    leaves all out but what forward reads in any case."""
    seen: set[type] = set()
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls in seen or cls.__module__.startswith("torch.") or cls is object:
                continue
            seen.add(cls)
            for function in _functions(cls):
                if unconditional and function.name != "forward":
                    continue
                own = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
                own |= _start_empty(function)
                names = _names(function, unconditional=unconditional)
                yield from (name for name in names if not unconditional or name not in own)


def _functions(cls: type) -> Iterator[ast.FunctionDef]:
    forward = vars(cls).get("forward")
    code = getattr(inspect.unwrap(forward), "__code__", None) if forward else None
    if code is None:
        return
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            yield from (
                item
                for item in node.body
                if isinstance(item, ast.FunctionDef) and not item.name.startswith(_SETUP)
            )


def _start_empty(function: ast.FunctionDef) -> set[str]:
    """Variables that begin without a value (None, ``{}``, ``dict()``), for a condition to fill."""
    found: set[str] = set()
    for node in function.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_empty(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _is_empty(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        maker = value.func.id if isinstance(value.func, ast.Name) else None
        return maker in {"dict", "list"} and not value.args and not value.keywords
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List | ast.Tuple):
        return not value.elts
    return isinstance(value, ast.Constant) and value.value is None


def _names(node: ast.AST, *, unconditional: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if unconditional and isinstance(child, ast.If | ast.IfExp | ast.arguments):
            continue
        if isinstance(child, ast.Attribute):
            own = isinstance(child.value, ast.Name) and child.value.id in {"self", "config"}
            if own or child.attr == "topk":  # other methods of tensors (chunk) tell nothing
                yield child.attr
        elif isinstance(child, ast.Name):
            yield child.id
        yield from _names(child, unconditional=unconditional)
