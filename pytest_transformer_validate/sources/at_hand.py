"""What a model file has at hand where its class asks for arguments that nothing else gives: a
configuration, a model that it makes, a function that builds one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.sources.construct import CONFIG_CLASS, NAMESPACES, arguments
from pytest_transformer_validate.sources.entrypoint import (
    Entry,
    describe,
    made_itself,
    usual_builders,
)
from pytest_transformer_validate.sources.settings import given_settings
from pytest_transformer_validate.sources.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from pytest_transformer_validate.sources.construct import Call
    from pytest_transformer_validate.sources.settings import Settings

_PLAIN = int | float | str | bool | None


def at_hand(
    entry: Entry, settings: Settings, module: ModuleType, path: Path, *, named: bool
) -> tuple[Entry, Settings]:
    """The entry and the settings that can be used, or those given where nothing can.

    A class whose arguments are not all given, or that would be built from the defaults of a
    library's configuration, is built from the only configuration of the file
    that gives them; unless the spec ``named`` it, the model that the file makes itself, or that
    its ``make_model()`` or the like gives, is taken next.
    """
    made = arguments(entry.target, settings) if entry.is_class else None
    if made is None or not (made.missing or _of_defaults(made, settings)):
        return entry, settings
    if settings.empty:
        fitting = {
            id(value): replace(given, place=f"{name} in {shown(path)}")
            for name, value in _configurations(module, made.missing)
            if (made.missing or not isinstance(value, Mapping))
            and (given := _fitting(entry, value)) is not None
        }
        if len(fitting) == 1:
            return entry, next(iter(fitting.values()))
    if named or not made.missing:
        return entry, settings
    other = made_itself(module) or _builder(module, settings)
    return other or entry, settings


def _of_defaults(made: Call, settings: Settings) -> bool:
    """Whether a configuration of a library was made of its defaults alone: those of a published
    model, which nobody means where the file holds a configuration of its own."""
    kinds = map(type, made.configs)  # a dict may take any attribute for a key
    library = any(callable(getattr(kind, "from_dict", None)) for kind in kinds)
    return settings.empty and library


def _fitting(entry: Entry, value: Any) -> Settings | None:
    """The settings of a configuration that gives all that is asked for: of keys that are given
    by name those alone, since a file may hold how to train in the same dict."""
    made = arguments(entry.target, given_settings(value))
    if made.missing:
        return None
    named = made.by_name and isinstance(value, Mapping)
    return given_settings({k: value[k] for k in made.keywords if k in value} if named else value)


def _configurations(module: ModuleType, missing: list[str]) -> Iterator[tuple[str, Any]]:
    """The objects and dicts of a file that may configure a model, by name; without any, its
    numbers that are called like the arguments that are ``missing``."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    found = [(name, value) for name, value in public.items() if _configures(value)]
    yield from found
    numbers = {name.lower(): value for name, value in public.items() if isinstance(value, _PLAIN)}
    if missing and not found and all(name in numbers for name in missing):
        yield "the numbers", {name: numbers[name] for name in missing}


def _configures(value: Any) -> bool:
    if isinstance(value, Mapping):
        keys = all(isinstance(key, str) for key in value)
        plain = all(isinstance(item, _PLAIN) for item in value.values())
        return keys and plain and any(type(item) is int for item in value.values())
    if isinstance(value, type):
        return False
    return isinstance(value, NAMESPACES) or bool(CONFIG_CLASS.search(type(value).__name__))


def _builder(module: ModuleType, settings: Settings) -> Entry | None:
    """The first function of a usual name that can be called with what there is."""
    for name, function in usual_builders(module):
        if not arguments(function, settings).missing:
            return describe(function, name)
    return None
