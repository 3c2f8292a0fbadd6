"""The usual mistakes behind a decoded text that is not the text at once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.decoding import Plan
    from pytest_transformer_validate.probe.probe import Probe


def likely_mistake(probe: Probe, plan: Plan, limit: Limit, position: int) -> str:
    """The usual mistake behind what is off, found out by decoding a little otherwise."""
    caches = probe.caches
    cached, index = plan.piece_at(position)
    size = plan.pieces[index]

    def holds(**other: Any) -> bool:
        found = caches.decoded(dataclasses.replace(plan, **other))
        return found.raised is None and found.misshapen is None and found.worst <= limit.value

    inside = not caches.protocol().handed_over
    if not cached:
        stale = (inside or plan.after == "another") and holds(after="clean")
        return _STALE if stale else _FIRST
    takes_positions = probe.subject.signature.takes("position_ids") and not probe.subject.decodes
    beyond = plan.length > (caches.window or plan.length) and cached + size >= plan.pieces[0] + 1
    singles = (1,) * min(plan.length, 12)
    guesses = (
        (RESTARTS, not plan.positions and takes_positions, {"positions": True}),
        (_NO_SOURCE_MASK, plan.source, {"source": False}),
        (_STALE, inside or plan.after == "another", {"after": "clean"}),
        (_OUTSIDE, plan.after == "prefix", {"after": "clean"}),
        (_ONE_ROW, plan.rows > 1 and not plan.padded, {"rows": 1}),
        (_NO_PAST_MASK, plan.padded, {"padded": False}),
        (_TRIMMED, beyond, {"pieces": (2, 1)}),
        (_TOP_LEFT, size > 1, {"pieces": singles}),
    )
    found = next((text for text, fits, other in guesses if fits and holds(**other)), None)
    if found is None and caches.recurrent():
        return _STATE
    later = plan.length - 1 if plan.pieces[-1] == 1 else position
    asks = found is None and not plan.padded and cached and plan.piece_at(later)[0] > 1
    return found or (_TOP_LEFT_OF_ONE if asks and caches.first_alone(plan, later) else _POSITIONS)


RESTARTS = "positions start at 0 again after cached tokens unless position_ids are given"
_FIRST = "with use_cache (or a position) the forward has another mask, or other positions"
_STALE = "something of the text before is kept (a cache that is not emptied or overwritten)"
_OUTSIDE = "something is kept outside of the cache that is handed over"
_ONE_ROW = "one row's cache is used for all, or the cache is laid out for one row"
_NO_PAST_MASK = "the mask is cut to the new tokens, or not moved with the cache"
_NO_SOURCE_MASK = "the mask over the source is dropped, or another one, where there is a cache"
_TRIMMED = "the window is cut too short or too long in the cache"
_TOP_LEFT = (
    "the mask of several tokens after cached ones: it has to be aligned at the bottom right "
    "(tril(diagonal=cached)), not at the top left; or new and old keys in the wrong order"
)
SEVERAL = (
    "a step for one token is taken for several after a state: its decay, its convolution or its "
    "shift has to go on from token to token"
)
_TOP_LEFT_OF_ONE = (
    "a step sees the first token alone: is_causal=True, or a causal mask without the offset, lets "
    "the first row see the first key; one new token needs no mask"
)
_STATE = (
    "a state that a step does not write back, that is kept before what the forward does to it (a "
    "convolution, a norm), or that is of another token than the last"
)
_POSITIONS = (
    "positions of cached tokens (restarted, or off by one), keys cached before or after what the "
    "forward does to them (rotation, norm), new and old in the wrong order, or a layer that does "
    "not cache"
)
