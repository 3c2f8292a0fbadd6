"""Numbers about random draws, and about what a call leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_transformer_validate.measures.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class Determinism(Measurement):
    """How far two random states move the logits in evaluation; ``ways`` were tried."""

    ways: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Statelessness(Measurement):
    """How far the logits of an input are from those of the model as loaded, ``calls`` later."""

    calls: int = 0


@dataclass(frozen=True, kw_only=True)
class DropoutUse(Measurement):
    """How far two random states move the logits in training.

    ``modules`` are the dropout modules that are called, ``functional`` the other modules that
    draw, ``uncalled`` the dropout modules that are not called.
    """

    modules: int = 0
    functional: int = 0
    uncalled: tuple[str, ...] = ()
