"""From an entry point to a loaded model: built, weighted, located."""

from __future__ import annotations

import contextlib
import copy
import inspect
import linecache
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import Loaded
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.sources.construct import arguments, bounds_in_force, call
from pytest_transformer_validate.sources.seeding import seeded
from pytest_transformer_validate.sources.size import refuse_too_large
from pytest_transformer_validate.sources.tokenizer import load_tokenizer
from pytest_transformer_validate.sources.weights import load_weights
from pytest_transformer_validate.sources.wording import clipped, listed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from pytest_transformer_validate.sources.base import LoadOptions
    from pytest_transformer_validate.sources.entrypoint import Entry
    from pytest_transformer_validate.sources.settings import Settings


def assemble(
    entry: Entry,
    settings: Settings,
    options: LoadOptions,
    *,
    origin: str,
    scope: AbstractContextManager[Any] | None = None,
) -> Loaded:
    """Make the model that ``entry`` gives. Raises SourceError; what the model's own code raises
    comes through."""
    scope = contextlib.nullcontext() if scope is None else scope
    with scope:
        model, made, weights = _make(entry, settings, options, origin)
        if options.weights is not None:
            weights = load_weights(model, options.weights)
        _refuse_unfinished(model, origin)
        location = _location(model, entry)
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    return Loaded(
        model=model,
        config=_bounded(_config(settings, made, model), entry.target),
        tokenizer=tokenizer,
        origin=origin,
        weights=weights,
        location=location,
        expect_fail=settings.expect_fail,
        scope=scope,
    )


def _make(
    entry: Entry, settings: Settings, options: LoadOptions, origin: str
) -> tuple[torch.nn.Module, list[Any], str]:
    """The model, the configurations made for it, and where its weights are from."""
    import torch

    target = entry.target
    if isinstance(target, torch.nn.Module):
        return (target if options.weights is None else copy.deepcopy(target)), [], "as given"
    if isinstance(target, type) and not entry.is_class:
        raise SourceError(f"{origin}: the class is no torch.nn.Module")
    if not callable(target):
        raise SourceError(f"{origin}: is {_kind(target)}, no torch.nn.Module")
    made = arguments(target, settings).configs if settings.empty else []
    sizes = ModelConfig(made[0]) if made else settings.config
    place = f"the defaults of {type(made[0]).__name__}" if made else settings.place
    refuse_too_large(lambda: call(target, origin, settings)[0], sizes, origin, place)
    with seeded(options.seed):
        value, made = call(target, origin, settings)
    if not isinstance(value, torch.nn.Module):
        hint = "; return the object, not its class" if isinstance(value, type) else ""
        raise SourceError(f"{origin}: gave {_kind(value)}, no torch.nn.Module{hint}")
    drawn = entry.is_class or entry.declared
    words = f"random (seed {options.seed})" if drawn else f"as built (seed {options.seed})"
    return value, made, words


def _refuse_unfinished(model: torch.nn.Module, origin: str) -> None:
    """Raise SourceError for lazy layers that have not seen an input."""
    from torch.nn.parameter import is_lazy

    named = (*model.named_parameters(), *model.named_buffers())
    lazy = [name for name, tensor in named if is_lazy(tensor)]
    if lazy:
        raise SourceError(
            f"{origin}: parameters without a size: {listed(lazy)}\n  lazy layers get one from the "
            "first input: run one through the model in build_model, or give the sizes"
        )


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {clipped(value.__name__, 60)}"
    return f"an object of type {clipped(type(value).__name__, 60)}"


def _config(settings: Settings, made: list[Any], model: torch.nn.Module) -> ModelConfig:
    """What is known of the model's configuration: the values given, over those of the object
    that was made from them; without any, what the model itself keeps as ``config``."""
    if settings.empty:
        if made:
            return ModelConfig(made[0])
        kept = getattr(model, "config", None)
        usable = isinstance(kept, Mapping) or hasattr(kept, "__dict__")
        return ModelConfig(kept) if usable and not callable(kept) else ModelConfig()
    if not made or not isinstance(settings.config.raw, Mapping):
        return settings.config
    return ModelConfig({**ModelConfig(made[0]), **settings.config})


def _bounded(config: ModelConfig, target: Any) -> ModelConfig:
    """The configuration, and what defaults in force say that it does not."""
    if not isinstance(config.raw, Mapping) or not callable(target):
        return config
    found = bounds_in_force(target, config)
    return ModelConfig({**found, **config}) if found else config


def _location(model: torch.nn.Module, entry: Entry) -> tuple[str, int] | None:
    """Where the model's class is written; for a class of torch itself, its factory."""
    kind = type(model)
    target = entry.target
    foreign = kind.__module__.partition(".")[0] == "torch"
    return locate(target if foreign and inspect.isfunction(target) else kind)


def locate(target: Any) -> tuple[str, int] | None:
    """The absolute path and the line of a class or function, if it can be found."""
    try:
        file = inspect.getsourcefile(target)
        linecache.checkcache(file)
        line = _only_class(target, file) or inspect.findsource(inspect.unwrap(target))[1] + 1
    except (OSError, TypeError):
        return None
    return (str(Path(file).absolute()), line) if file else None


def _only_class(target: Any, file: str | None) -> int | None:
    """The line of a class where a file has but one of that name: found without parsing it."""
    if not isinstance(target, type):
        return None
    start = re.compile(rf"\s*class\s+{re.escape(target.__name__)}\b")
    found = [n for n, line in enumerate(linecache.getlines(file or ""), 1) if start.match(line)]
    return found[0] if len(found) == 1 else None
