"""What a classifier's output depends on: every token of a text, every patch of an image."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.tier1.mixing import first_short, measured_from
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import context
from pytest_transformer_validate.measures.context import Context

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.probe import Probe


_AFFORDABLE = 256  # forwards of one image


def every_token(probe: Probe, floor: float) -> Context:
    """Every token of a text moves a classifier's output."""
    rule = "the output of a classifier must depend on every token of its text"
    if probe.subject.sizes[1] < 2:
        raise NotApplicable("the longest text is one token")
    measured = Context()
    longer = min(probe.subject.max_length or 64, 64)
    lengths = [probe.subject.sizes[1], *([longer] if probe.subject.small else [])]
    for length in dict.fromkeys(lengths):
        values = _text_dependencies(probe, length, floor)
        if probe.subject.ends:
            values = values[:-1]  # the id that ends the text may be taken for padding
        unseen = (values < floor).nonzero().flatten().tolist()
        measured = replace(measured_from(values, floor, len(unseen)), pairs=length, length=length)
        if not unseen:
            continue
        told = probe.tells_of_limits(holes=False)
        if told and len(unseen) < length - 1:
            note = f"{len(unseen)} of {length} tokens are not seen: a limited reach ({told})"
            return replace(measured, notes=(note,))
        where = first_short(probe, {"alone"}) or _first_losing(probe, length, unseen[-1])
        raise CheckFailed(
            f"{rule}\n"
            f"{len(unseen)} of {length} tokens have no influence (tokens "
            f"{', '.join(map(str, unseen[:8]))}{'...' if len(unseen) > 8 else ''}), with moved "
            "parameters too\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: the text is cut inside the model, pooling reads some positions only and no "
            "attention brings the others there, or a mask hides them",
            measured,
            where=where,
        )
    return measured


def _text_dependencies(probe: Probe, length: int, floor: float) -> torch.Tensor:
    first = context.relative(_text(probe, length, "eval"))
    if bool((first < floor).any()):
        first = first.maximum(context.relative(_text(probe, length, "noised")))
    if bool((first < floor).any()):
        with contextlib.suppress(Exception):  # a model may keep its largest id for itself
            topped = probe.mixing.text(length, "eval", topped=True)
            first = first if topped is None else first.maximum(context.relative(topped))
    return first


def _text(probe: Probe, length: int, condition: str) -> torch.Tensor:
    """By gradient; by replacing tokens where none can be read, or none arrives."""
    try:
        found = probe.mixing.text(length, condition)
    except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
        found = None
    if found is None or not bool(found.isfinite().all() and found.any()):
        return probe.mixing.text_swaps(length, condition)
    return found


def _first_losing(probe: Probe, length: int, token: int) -> str | None:
    before, after = (probe.row(b, token) for b in probe.mixing.swapped(length))
    return probe.mixing.first_losing(before, after)


def every_patch(probe: Probe, floor: float) -> Context:
    """Every patch and every channel of an image moves the output."""
    size = probe.mixing.patch
    values, channels = _patches(probe, size, "eval")
    if bool((values < floor).any() or (channels < floor).any()):
        again = _patches(probe, size, "noised")
        values, channels = values.maximum(again[0]), channels.maximum(again[1])
    unseen = (values < floor).nonzero().tolist()
    measured = replace(measured_from(values, floor, len(unseen)), length=values.numel())
    if not unseen:
        _every_channel(probe, channels, floor, measured)
        return measured
    where = probe.mixing.losing_patch(*unseen[0])
    raise CheckFailed(
        "the output of an image classifier must depend on every part of the image\n"
        f"{len(unseen)} of {values.numel()} patches of {size} x {size} pixels have no influence "
        f"(row, column: {', '.join(f'{a}, {b}' for a, b in unseen[:4])}...), with moved "
        "parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: patches are dropped or cut off, or nothing brings them to the token that is read",
        measured,
        where=where,
    )


def _every_channel(probe: Probe, channels: torch.Tensor, floor: float, measured: Context) -> None:
    unseen = (channels < floor).nonzero().flatten().tolist()
    if unseen:
        where = probe.mixing.losing_channel(unseen[0])
        raise CheckFailed(
            "the output of an image classifier must depend on every channel of the image\n"
            f"{len(unseen)} of {len(channels)} channels have no influence (number "
            f"{', '.join(map(str, unseen[:8]))}), with moved parameters too\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: a slice of the channels, one channel that stands for all, or one that is "
            "multiplied by zero",
            measured,
            where=where,
        )


def _patches(probe: Probe, size: int, condition: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What each patch, and each channel, moves, relative to the largest: by gradient, or by
    replacing them where none can be read, or none arrives."""
    try:
        pixels = probe.mixing.pixels(condition)
    except Exception:  # noqa: BLE001 - a frozen part may run under no_grad
        pixels = None
    if pixels is None or not bool(pixels.any()):
        if not probe.subject.small or probe.mixing.swaps_of_pixels(size) > _AFFORDABLE:
            raise NotApplicable("no gradient reaches the image: what reads it raises or is frozen")
        pixels = probe.mixing.pixel_swaps(size, condition)
    tiles = pixels.amax(0).unfold(0, size, size).unfold(1, size, size).amax((2, 3))
    patches = context.relative(tiles.flatten()).reshape(tiles.shape)
    return patches, context.relative(pixels.amax((1, 2)))
