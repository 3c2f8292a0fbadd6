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


@contextlib.contextmanager
def recomputing(model: torch.nn.Module, *, asked: bool = True) -> Iterator[None]:
    """Inside, ``model`` keeps few activations: by its own method or flags where it has them, else
    each block of its lists of blocks is a checkpoint. Not ``asked`` for: nothing changes. Raises
    ConfigError where there is no way."""
    if not asked:
        yield
        return
    before = [
        (module, {name: getattr(module, name) for name in flags(module)}, vars(module).copy())
        for module in model.modules()
    ]
    try:
        _enable(model)
        yield
    finally:
        for module, values, attributes in before:
            if "forward" not in attributes:
                vars(module).pop("forward", None)
            for name, value in values.items():
                setattr(module, name, value)


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
