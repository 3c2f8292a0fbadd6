"""Tier 1: is it built right? Importing this registers the checks in the order they run in."""

from pytest_transformer_validate.checks.tier1 import (  # isort: skip
    load,
    shapes,
    stability,
    gradients,
    causality,
    batch,
)

__all__ = ["batch", "causality", "gradients", "load", "shapes", "stability"]
