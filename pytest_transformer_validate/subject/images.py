"""The size of the images that a vision model reads."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.errors import TaskError
from pytest_transformer_validate.sources.config import CHANNELS
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import IMAGE, declared, declared_size
from pytest_transformer_validate.subject.guard import derive_seed, guard
from pytest_transformer_validate.subject.outputs import read_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.sources.config import ModelConfig
    from pytest_transformer_validate.subject.subject import Subject

_ANY_SIZE = 64
_EXTRA = (0, 1, 2)  # rows of a table that are no patch's: class and distillation tokens
# What modules keep under these names: (C, H, W), a side, a patch's side.
_SHAPES = ("chw", "image_shape", "img_shape", "input_shape", "in_shape")
_SIDES = ("image_size", "img_size")
_PATCHES = ("patch_size", "patch")
_COUNTS = ("num_patches", "n_patches")
# What images mostly are, and colours.
_SIZES = (64, 224, 32, 28, 48, 96, 56, 112, 128, 256, 16, 384, 8)
_COLOURS, _FEW = (3, 1), (1, 2, 3, 4)


def image_shape(model: nn.Module, config: ModelConfig) -> tuple[int, int, int]:
    """(C, H, W): declared, else from the first convolution and a table with one row a patch, or
    from what modules keep: an image's shape or size, or that of a patch.

    Convolutions alone bound no size; they get 64 x 64. Raises TaskError where nothing tells.
    """
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    kept = next(_kept(model, _SHAPES), None)
    channels, *size = kept if isinstance(kept, tuple | list) and len(kept) == 3 else (None,)
    channels = declared_size(config, CHANNELS) or (
        convolution.in_channels if convolution else channels or _patch_channels(model, config)
    )
    found = _declared_size(config) or _size_by_table(model, config, convolution)
    found = found or (size and (int(size[0]), int(size[1]))) or _kept_size(model)
    if not found and convolution is None:
        raise TaskError(
            "the size of the image cannot be found: no config key, and no convolution reads it"
            '\n  declare it: "image_size" and "num_channels" in config.json'
        )
    height, width = found or (_ANY_SIZE, _ANY_SIZE)
    return int(channels), height, width


def fitting_shape(subject: Subject) -> tuple[int, int, int] | None:
    """The first (C, H, W) of those that images mostly have with which forward runs, where no size
    is declared. ``None`` where none does, or where the size decides how wide the output is."""
    model, config = subject.model, subject.config
    if declared(config, IMAGE) is not None:
        return None
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    told = declared_size(config, CHANNELS)
    read = (convolution.in_channels,) if convolution else ()  # of an image, or of what was cut up
    colours = (told,) if told else read if read and read[0] in _FEW else (*read, *_COLOURS)
    shapes = [(c, s, s) for s in _SIZES for c in colours]
    found: list[tuple[tuple[int, int, int], torch.Size]] = []
    for shape in shapes:
        images = Batch({"pixel_values": torch.zeros(2, *shape)})
        try:
            with guard(model, derive_seed(subject.seed, "image")), torch.no_grad():
                model.eval()
                given = images.to(subject.device, subject.dtype)
                found.append((shape, read_output(subject.call(given, {})).logits.shape))
        except Exception:  # noqa: BLE001 - most sizes are not the model's
            continue
        if len(found) > 1:
            break
    return found[0][0] if found and found[0][1] == found[-1][1] else None


@contextlib.contextmanager
def larger_images(subject: Subject) -> Iterator[None]:
    """Images of four times the side while inside, where no size is declared."""
    if not subject.vision or declared(subject.config, IMAGE) is not None:
        yield
        return
    channels, height, width = before = subject.image
    subject.image = (channels, 4 * height, 4 * width)
    try:
        yield
    finally:
        subject.image = before


def _declared_size(config: ModelConfig) -> tuple[int, int] | None:
    return _both(declared(config, IMAGE))


def _kept_size(model: nn.Module) -> tuple[int, int] | None:
    return next((size for value in _kept(model, _SIDES) if (size := _both(value))), None)


def _both(named: Any) -> tuple[int, int] | None:
    """(H, W) of a side, of a pair, or of a shape that ends with it."""
    if isinstance(named, dict):
        named = (named.get("height"), named.get("width"))
    if isinstance(named, int):
        return named, named
    if isinstance(named, list | tuple) and len(named) >= 2:
        return int(named[-2]), int(named[-1])
    return None


def _kept(model: nn.Module, names: tuple[str, ...]) -> Iterator[Any]:
    """What modules of the model's own keep under these names, the outermost first."""
    for module in model.modules():
        if not type(module).__module__.startswith("torch."):
            yield from (vars(module)[name] for name in names if name in vars(module))


def patch_side(model: nn.Module, config: ModelConfig) -> int | None:
    """The side of a patch, declared, kept, or to which images are unfolded without overlap."""
    unfolds = (m for m in model.modules() if isinstance(m, nn.Unfold))
    unfolded = (m.stride for m in unfolds if _both(m.stride) == _both(m.kernel_size))
    for value in (declared(config, _PATCHES), *_kept(model, _PATCHES), *unfolded):
        both = _both(value)
        if both is not None and both[0] == both[1] > 0:
            return both[0]
    return None


def _patch_channels(model: nn.Module, config: ModelConfig) -> int:
    """Of patches that a linear layer reads; 3 where nothing tells."""
    patch = patch_side(model, config)
    widths = [m.in_features for m in model.modules() if isinstance(m, nn.Linear)]
    whole = (w // patch**2 for w in widths if patch and w % patch**2 == 0)
    return next((channels for channels in whole if channels in _FEW), 3)


def _size_by_table(
    model: nn.Module, config: ModelConfig, convolution: nn.Conv2d | None
) -> tuple[int, int] | None:
    """The size of as many patches as are counted, or as a table has rows."""
    side = int(convolution.stride[0]) if convolution else patch_side(model, config)
    if side is None:
        return None
    counted = None if convolution else declared_size(config, _COUNTS)
    named = [(n, p.shape[1]) for n, p in model.named_parameters() if p.dim() == 3 and len(p) == 1]
    named.sort(key=lambda table: "pos" not in table[0])  # registers are no patches
    for rows in [counted] if counted else [rows for _, rows in named]:
        along = math.isqrt(rows)
        if along > 1 and rows - along * along in _EXTRA:
            return along * side, along * side
    return None
