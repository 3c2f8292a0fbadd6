"""Tier 1: is it built right?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


@check(tier=1)
def load(probe: Probe) -> Measurement:
    """The model builds, has parameters, and its forward runs in eval mode."""
    count = probe.context()["parameters"]
    if not count:
        raise CheckFailed("a transformer has parameters; this model has none")
    return Measurement(value=float(count))
