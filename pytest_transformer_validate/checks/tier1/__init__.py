"""Tier 1: is it built right? Importing this registers the checks in the order they run in."""

from pytest_transformer_validate.checks.tier1 import (  # isort: skip
    load,
    output_kind,
    initialization,
    shapes,
    stability,
    states,
    gradients,
    causality,
    batch,
    structure,
    padding,
    cache,
    loss,
    resources,
    context,
    position,
    invariance,
    storage,
    precision,
    bounds,
)

__all__ = [
    "batch",
    "cache",
    "causality",
    "gradients",
    "load",
    "loss",
    "output_kind",
    "padding",
    "shapes",
]
__all__ += ["initialization", "resources", "stability", "storage", "structure"]
__all__ += ["precision", "states"]
