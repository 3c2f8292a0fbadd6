"""The size of the images that a vision model reads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from pytest_transformer_validate.errors import TaskError
from pytest_transformer_validate.subject.declared import CHANNELS, IMAGE, declared, declared_size

if TYPE_CHECKING:
    from pytest_transformer_validate.sources.config import ModelConfig

_ANY_SIZE = 64


def image_shape(model: nn.Module, config: ModelConfig) -> tuple[int, int, int]:
    """(C, H, W): declared, else from the first convolution and a table with one row a patch.

    Convolutions alone bound no size; they get 64 x 64. Raises TaskError where nothing tells.
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = declared_size(config, CHANNELS)
    if channels is None:
        channels = convolutions[0].in_channels if convolutions else 3
    size = _declared_size(config) or _structural_size(model, convolutions)
    return channels, *size


def _declared_size(config: ModelConfig) -> tuple[int, int] | None:
    named = declared(config, IMAGE)
    if isinstance(named, dict):
        named = (named.get("height"), named.get("width"))
    if isinstance(named, int):
        return named, named
    if isinstance(named, list | tuple) and len(named) >= 2:
        return int(named[-2]), int(named[-1])
    return None


def _structural_size(model: nn.Module, convolutions: list[nn.Conv2d]) -> tuple[int, int]:
    if not convolutions:
        raise TaskError(
            "the size of the image cannot be found: no config key, and no convolution reads it"
            '\n  declare it: "image_size" and "num_channels" in config.json'
        )
    stride = int(convolutions[0].stride[0])
    for parameter in model.parameters():
        if parameter.dim() == 3 and parameter.shape[0] == 1:
            side = math.isqrt(parameter.shape[1])
            if side > 1 and parameter.shape[1] - side * side in (0, 1, 2):
                return side * stride, side * stride
    return _ANY_SIZE, _ANY_SIZE
