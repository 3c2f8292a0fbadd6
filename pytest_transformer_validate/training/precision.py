"""What a run computes in: autocast, and a scaler for float16."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.training.config import ConfigWarning
from pytest_transformer_validate.training.optim import clip_gradients, gradient_norm

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_NARROW = (torch.float16, torch.bfloat16)
_DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32}


class Precision:
    """One of ``config.PRECISIONS`` on a device.

    Mixed: weights stay float32 and operations run in the lower dtype under autocast; float16 with
    a scaler for the loss. ``true``: the weights themselves are of that dtype.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        kind, _, mode = name.partition("-")
        self.name = name
        self.device = device
        self.dtype = _DTYPES[kind]
        self.mixed = mode == "mixed"
        scaled = self.mixed and self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with weights of the dtype that training asks for. Raises ConfigError where
        the weights do not go with it, warns (ConfigWarning) where they stay narrower."""
        if not self.mixed and self.dtype is not torch.float32:
            return convert(model, self.dtype)
        narrow = {p.dtype for p in model.parameters() if p.dtype in _NARROW}
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
        advice = f"precision: {self.name!r} keeps weights in float32, and the model has {names}"
        if narrow and self.scales and torch.float16 in narrow:
            raise ConfigError([f"{advice}: call model.float() first"])
        if narrow:
            warnings.warn(f"{advice}, which they stay", ConfigWarning, stacklevel=2)
        return model

    @property
    def scales(self) -> bool:
        """Whether gradients that are not finite are part of the search for a scale."""
        return self.scaler.is_enabled()

    def forward(self) -> AbstractContextManager[object]:
        """The context of a forward with its loss."""
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of ``loss``, scaled where there is a scaler."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip: float | None) -> torch.Tensor:
        """Unscale, clip, step; the norm of all gradients before clipping, a scalar.

        Where that norm is not finite the step is not taken, which fused kernels of a GPU find out
        without a wait: weights stay as they were. Under a scaler that is how it looks for a scale;
        else the run has to stop, once somebody has read the norm.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in trained:
            if parameter.grad is not None and parameter.grad.is_sparse:  # AdamW takes none
                parameter.grad = parameter.grad.to_dense()
        norm = gradient_norm(trained)
        on_cpu = norm.device.type == "cpu"  # where looking at a number is no wait
        if clip and not (on_cpu and norm.item() <= clip):
            clip_gradients(trained, clip, norm)
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        elif optimizer.defaults.get("fused") and not on_cpu:
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif math.isfinite(norm.item()):
            optimizer.step()
        return norm
