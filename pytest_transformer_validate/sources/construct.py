"""Calling a model's class or factory with arguments from a configuration."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import inspect
import re
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import SourceWarning
from pytest_transformer_validate.sources.config import (
    CHANNELS,
    LENGTH,
    ModelConfig,
    WholeConfig,
)
from pytest_transformer_validate.sources.entrypoint import is_module_class
from pytest_transformer_validate.sources.wording import clipped, listed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.sources.settings import Settings

CONFIG_NAMES = frozenset(
    {"args", "cfg", "conf", "config", "configuration", "hparams", "hps", "params"}
)
CONFIG_CLASS = re.compile(
    r"(config|configuration|cfg|args|arguments|hparams|params|settings)$", re.I
)
_MISTYPED = 0.8
# Keys that are read though no constructor takes them: facts about data, tokens and the file.
_FACTS = re.compile(
    r"^is_|^(batch_first|seed)$|^(vocab|image|patch|max_batch)_size$"
    r"|(_id|_ids|_index|_idx|_len|length|channels|labels|classes|version|_at)$"
)
NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
# Arguments whose default says what may be given to a model, each under one of its names.
_BOUNDS = (("max_batch_size",), LENGTH, ("image_size", "img_size"), CHANNELS)
# Channels of an image (more may be the width of the model); tokens of a text that is tried whole.
_LARGEST = {CHANNELS: 4, LENGTH: 1024}


@dataclass
class Call:
    """The arguments of one call as they are put together.

    ``configs`` are the configuration objects made on the way, ``missing`` the required
    arguments that nothing gives; ``by_name`` says that a value of the configuration was given
    to the argument of its name.
    """

    positional: list[Any] = field(default_factory=list)
    keywords: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    by_name: bool = False


def call(target: Callable[..., Any], words: str, settings: Settings) -> tuple[Any, list[Any]]:
    """What ``target`` returns when called with what the configuration gives it, and the
    configuration objects made for it. Raises SourceError naming every missing argument."""
    made = arguments(target, settings)
    if made.missing:
        raise SourceError(_missing(words, made.missing, settings))
    _warn_of_unused(target, words, settings, made)
    return target(*made.positional, **made.keywords), made.configs


def arguments(target: Callable[..., Any], settings: Settings) -> Call:
    """The arguments for ``target``: by parameter name, and the whole configuration for a
    parameter that asks for it."""
    made = Call()
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return made
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    hints = _hints(target)
    lone = _lone_required(named)
    for parameter in named:
        called = parameter.name in CONFIG_NAMES or parameter is lone
        wanted = _config_class(parameter, hints.get(parameter.name), target, called)
        whole = wanted is not None or parameter.name in CONFIG_NAMES
        whole = whole or (parameter is lone and not isinstance(target, type))
        if parameter.name in settings.config:
            made.by_name = True
            value = _given(settings.config[parameter.name], wanted, settings, made)
        elif whole:
            value = _whole(parameter, wanted, settings, made, _reads_freely(parameter, target))
        else:
            value = _absent(parameter, made)
        if value is inspect.Parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            made.positional.append(value)
        else:
            made.keywords[parameter.name] = value
    return made


def bounds_in_force(target: Callable[..., Any], config: ModelConfig) -> dict[str, Any]:
    """Defaults of arguments that bound what the model of ``target`` may be given, where no key
    does: the largest batch, the longest text, and size and channels of images where there is no
    vocabulary."""
    try:
        named = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    bounds = _BOUNDS[:2] if "vocab_size" in named else _BOUNDS
    found = {}
    for names in bounds:
        name = next((n for n in names if n in named), None)
        default = None if name is None else named[name].default
        whole = isinstance(default, int | tuple | list) and not isinstance(default, bool)
        if names in _LARGEST and default not in range(1, _LARGEST[names] + 1):
            continue
        if name is not None and whole and config.first(*names) is None:
            found[name] = default
    return found


def _warn_of_unused(
    target: Callable[..., Any], words: str, settings: Settings, made: Call
) -> None:
    """Point out, in one warning, keys that nothing takes and that somebody may believe to be in
    force: those that nearly are the name of an argument which nothing gives, and numbers and
    switches. Texts, and what says something about data or checks, are no arguments."""
    known = inspect.signature(target).parameters
    if not made.by_name or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    free = [name for name in known if name not in settings.config]
    told = []
    for key in settings.config:
        meant = difflib.get_close_matches(str(key), free, n=1, cutoff=_MISTYPED)
        if key not in known and meant:
            told.append(f"{clipped(key, 60)!r} (did you mean {meant[0]}? The default is in force)")
        elif key not in known and _is_switch(key, settings.config[key]):
            told.append(repr(clipped(key, 60)))
    if told:
        warnings.warn(
            f"{settings.place}: {words} takes no {listed(told)}", SourceWarning, stacklevel=2
        )


def _is_switch(key: object, value: object) -> bool:
    return isinstance(value, int | float) and not _FACTS.search(str(key))


def _lone_required(named: list[inspect.Parameter]) -> inspect.Parameter | None:
    """The only required parameter: it takes the configuration of a factory, or one of the class
    in its file, whatever it is called."""
    required = [p for p in named if p.default is p.empty]
    return required[0] if len(required) == 1 else None


def _absent(parameter: inspect.Parameter, made: Call) -> Any:
    if parameter.default is parameter.empty:
        made.missing.append(parameter.name)
    elif parameter.kind is parameter.POSITIONAL_ONLY:
        return parameter.default
    return inspect.Parameter.empty


def _given(value: Any, wanted: type | None, settings: Settings, made: Call) -> Any:
    """A value of the configuration; an object in it becomes the class that is asked for."""
    if wanted is None or not isinstance(value, Mapping):
        return value
    inner = dataclasses.replace(settings, config=ModelConfig(value), whole=value)
    return _make_config(wanted, inner, made)


def _whole(
    parameter: inspect.Parameter,
    wanted: type | None,
    settings: Settings,
    made: Call,
    free: type | None,
) -> Any:
    """The whole configuration, as the class that is ``wanted``; to be read by key and by
    attribute where none is, with the defaults of the class that the code is ``free`` to make."""
    if settings.empty and parameter.default is not parameter.empty:
        if wanted is not None and isinstance(parameter.default, wanted):
            made.configs.append(parameter.default)
        return _absent(parameter, made)
    if free is not None and not isinstance(settings.whole, Mapping | None):
        wanted = free  # an object that a person passed is read by attribute
    if wanted is not None:
        value = _make_config(wanted, settings, made)
        if value is not inspect.Parameter.empty:
            made.configs.append(value)
        return value
    if free is None and settings.empty:
        return _absent(parameter, made)
    if free is None and not isinstance(settings.whole, ModelConfig):
        return settings.whole
    values = copy.deepcopy(dict(settings.config))
    if free is None:
        return _over_default(values, parameter)
    defaults = _defaults(free, settings)
    made.configs += [] if defaults is None else [defaults]
    return WholeConfig(values, defaults)


def _over_default(values: dict[str, Any], parameter: inspect.Parameter) -> WholeConfig:
    """The values, and for what is not among them those of the parameter's default."""
    default = None if parameter.default is parameter.empty else parameter.default
    if isinstance(default, Mapping):
        return WholeConfig({**copy.deepcopy(dict(default)), **values})
    return WholeConfig(values, default)


def _reads_freely(parameter: inspect.Parameter, target: Callable[..., Any]) -> type | None:
    """The configuration class of the file, for a factory that does not say whether it makes one
    of the keys or expects one."""
    if isinstance(target, type) or parameter.name not in CONFIG_NAMES:
        return None
    return _file_config_class(target)


def _defaults(kind: type, settings: Settings) -> Any:
    """An object of the file's configuration class, if the keys are enough to make one."""
    try:
        value = _make_config(kind, settings, Call())
    except Exception:  # noqa: BLE001 - foreign code; the factory may make it in another way
        return None
    return None if value is inspect.Parameter.empty else value


def _make_config(wanted: type, settings: Settings, made: Call) -> Any:
    """A configuration of the class that the model asks for, or ``empty`` with what misses."""
    if isinstance(settings.whole, wanted):
        return settings.whole
    if issubclass(wanted, dict):
        return wanted(settings.config)
    if issubclass(wanted, NAMESPACES):
        return wanted(**settings.config)
    from_dict = getattr(wanted, "from_dict", None)
    if callable(from_dict):
        return from_dict(dict(settings.config))
    inner = arguments(wanted, settings)
    if inner.missing:
        made.missing += [f"{wanted.__name__}.{name}" for name in inner.missing]
        return inspect.Parameter.empty
    value = wanted(*inner.positional, **inner.keywords)
    if wanted.__init__ is object.__init__:  # its attributes are what it holds
        for key in settings.config:
            if hasattr(value, key):
                setattr(value, key, settings.config[key])
    return value


def _config_class(
    parameter: inspect.Parameter, hint: Any, target: Callable[..., Any], called: bool
) -> type | None:
    """The class of the configuration that a parameter takes, if it takes one: annotated, or of
    its default, or the only such class in the file where it is ``called`` a configuration."""
    annotated = _only_class(hint)
    if annotated is not None and _is_config_class(annotated):
        return annotated
    if not called:
        default = type(parameter.default)
        return default if annotated is None and _is_config_class(default) else None
    if annotated is not None:
        plain = (dict, *NAMESPACES)
        return annotated if annotated in plain else dict if annotated is Mapping else None
    if _is_config_class(type(parameter.default)):
        return type(parameter.default)
    return _file_config_class(target) if is_module_class(target) else None


def _only_class(hint: Any) -> type | None:
    """The class in ``X``, ``X | None`` or ``dict[str, int]``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [item for item in typing.get_args(hint) if item is not type(None)]
        hint = members[0] if len(members) == 1 else None
    hint = typing.get_origin(hint) or hint
    return hint if isinstance(hint, type) and hint is not object else None


def _is_config_class(cls: type) -> bool:
    if cls.__module__ == "builtins" or is_module_class(cls):
        return False
    return dataclasses.is_dataclass(cls) or bool(CONFIG_CLASS.search(cls.__name__))


def _file_config_class(target: Callable[..., Any]) -> type | None:
    namespace = getattr(getattr(target, "__init__", None), "__globals__", None)
    namespace = getattr(target, "__globals__", namespace) or {}
    found = {
        value
        for value in namespace.values()
        if isinstance(value, type)
        and value.__module__ == namespace.get("__name__")
        and _is_config_class(value)
        and CONFIG_CLASS.search(value.__name__)
    }
    return found.pop() if len(found) == 1 else None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - annotations are foreign code
        found = getattr(function, "__annotations__", {})
        return {name: hint for name, hint in found.items() if not isinstance(hint, str)}


def _missing(words: str, missing: list[str], settings: Settings) -> str:
    there = [key for key in settings.config if isinstance(key, str)]
    count = f"{len(missing)} arguments" if len(missing) > 1 else "an argument"
    return (
        f"{words} requires {count} that the configuration does not give: {listed(missing)}\n"
        f"  looked in: {settings.place}; keys there: {listed(there)}\n"
        "  add them there, name another file with --tb-config, or give them defaults"
    )
