"""Activation checkpointing: activations are computed again in the backward instead of kept."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import ConfigError, NotApplicable, error_line
from pytest_transformer_validate.probe.checkpointing import METHODS, flags, set_flags, wrap_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_ABSENT = object()


@contextlib.contextmanager
def recomputing(model: torch.nn.Module, *, asked: bool = True) -> Iterator[None]:
    """Inside, ``model`` keeps few activations: by its own method or flags where it has them, else
    each block of its lists of blocks is a checkpoint. Not ``asked`` for: nothing changes. Raises
    ConfigError where there is no way."""
    if not asked:
        yield
        return
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        _enable(model)
        changed = [(now, _changed(now, then)) for now, then in before]
        yield
    finally:
        for now, values in changed:
            for name, value in values.items():
                now.pop(name, None)
                if value is not _ABSENT:
                    now[name] = value


def _changed(now: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """What attributes were before that are others now, by name."""
    return {
        name: then.get(name, _ABSENT) for name in now if now[name] is not then.get(name, _ABSENT)
    }


def _enable(model: Any) -> None:
    try:
        if getattr(model, "supports_gradient_checkpointing", True):
            for name in METHODS:
                method = getattr(model, name, None)
                if callable(method):
                    _call(method, name)
                    return
        names = {name for module in model.modules() for name in flags(module)}
        for name in names:
            set_flags(model, name, True)
        if not names:
            wrap_blocks(model)
    except (NotApplicable, ValueError, NotImplementedError) as error:
        raise ConfigError(
            [f"activation_checkpointing: the model cannot: {error_line(error)}"]
        ) from error


def _call(method: Any, name: str) -> None:
    """Turn it on; not in the old form, whose backward needs inputs that ask for gradients."""
    if "gradient_checkpointing_kwargs" in inspect.signature(method).parameters:
        method(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        method(*[True] * name.startswith("set_"))
