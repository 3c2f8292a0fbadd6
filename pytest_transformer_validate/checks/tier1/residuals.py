"""Whether layers pass on what they are given, and what their parts add to it, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.structure import (
    Structure,
    around_attention,
    behind_attention,
    doubled,
    keep,
    lost_inside,
    stack_without_residual,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.probe.identities import Identity
    from pytest_transformer_validate.probe.probe import Probe

LAYERS = "layers of one kind must each have their own weights and pass their input on"


def judge_residuals(probe: Probe, measured: Structure) -> None:
    """Raise CheckFailed where a residual is missing, or is none, in the layers of a list."""
    _judge_stacks(probe, measured)
    _judge_streams(probe, measured)


def _judge_stacks(probe: Probe, measured: Structure) -> None:
    """Raise where layers with attention do not pass on what they are given, or what their
    attention adds to it, once."""
    groups = probe.siblings.attending()
    stack = stack_without_residual(groups)
    if stack is not None:
        raise CheckFailed(
            f"{LAYERS}\n"
            f"an input number of {stack.layer}, and of every layer in its list, moves its own "
            f"output number by {stack.share:.2g} of its step; other lists of layers pass it on\n"
            f"module: {stack.layer}\n"
            "likely: one of the sums x = x + f(x) is missing in this kind of layer",
            measured,
            where=stack.layer,
        )
    _judge_both_sums(probe, measured, groups)
    twice = doubled(groups)
    if twice is not None:
        raise CheckFailed(
            f"{LAYERS}\n"
            f"an input number of {twice.layer} moves its own output number by {twice.share:.3g} "
            "of its step\n"
            f"module: {twice.layer}\n"
            "likely: the input is added twice (x = x + f(x) + x, or f returns x + f(x) already)",
            measured,
            where=twice.layer,
        )
    lost = {one.inner.layer: one for one in lost_inside(groups) if one.inner}
    added = probe.streams.added({part: one.layer for part, one in lost.items()}) if lost else []
    for part in added[:1]:
        one = lost[part]
        share = one.inner.share if one.inner else 0.0
        raise CheckFailed(
            f"{LAYERS}\n"
            f"what {part} gives is added to the input of {one.layer}, and moves its output by "
            f"{share:.2g} of its step, the input by {one.share:.2g}\n"
            f"module: {one.layer}\n"
            "likely: a later residual starts from the layer's input again, not from the sum "
            "(x = residual + f(x), and residual was not set to x before)",
            measured,
            where=one.layer,
        )


def _judge_both_sums(
    probe: Probe, measured: Structure, groups: Sequence[Sequence[Identity]]
) -> None:
    """Raise where one of the two sums of every layer, around its attention and behind it, is
    missing in all layers, and the other one is there."""
    groups = [group for group in groups if probe.siblings.built_for_sums(group)]
    for first, *_ in around_attention(groups):
        assert first.inner is not None
        raise CheckFailed(
            f"{LAYERS}\n"
            f"what {first.inner.layer} gives moves the output of {first.layer} by "
            f"{first.inner.share:.2g} of its step, what the layer is given by {first.share:.2g}; "
            "so in every layer of the list\n"
            f"module: {first.layer}\n"
            "likely: the residual connection around the attention is missing (x = f(x) for "
            "x = x + f(x))",
            measured,
            where=first.layer,
        )
    for group in behind_attention(groups):
        first = group[0]
        parts = {one.inner.layer: one.layer for one in group if one.inner}
        added = len(probe.streams.added(parts)) == len(parts)
        if added or keep(probe.siblings.of_parts(list(parts)), len(parts)):
            raise CheckFailed(
                f"{LAYERS}\n"
                f"the attention of {first.layer} is added to what the layer is given, and an "
                f"input number of the layer moves its own output number by {first.share:.2g} of "
                "its step; so in every layer of the list\n"
                f"module: {first.layer}\n"
                "likely: the residual connection behind the attention, around the feed-forward, "
                "is missing (x = f(x) for x = x + f(x))",
                measured,
                where=first.layer,
            )


def _judge_streams(probe: Probe, measured: Structure) -> None:
    """Raise where what one part of every layer is given is lost, and that of the others is added
    to what they give."""
    for parts in probe.streams.parts():
        lost = [part for part in parts if part.streams and not part.kept]
        if len(lost) == 1 and all(part.added for part in parts if part is not lost[0]):
            (part,) = lost
            others = ", ".join(other.name for other in parts if other is not part)
            raise CheckFailed(
                f"{LAYERS}\n"
                f"what {part.name} is given is not used again, and what {others} is given is "
                "added to what it gives\n"
                f"module: {part.first}\n"
                "likely: the residual connection is missing around this part (x = f(x), or "
                "x = x + x behind it, for x = f(x) + x)",
                measured,
                where=part.first,
            )
