"""Tier 1: is it built right? Importing this registers the checks in the order they run in."""

from pytest_transformer_validate.checks.tier1 import (  # isort: skip
    load,
    output_kind,
    shapes,
    stability,
    gradients,
    causality,
    batch,
    padding,
    cache,
    resources,
)

__all__ = ["batch", "cache", "causality", "gradients", "load", "output_kind", "padding", "shapes"]
__all__ += ["resources", "stability"]
