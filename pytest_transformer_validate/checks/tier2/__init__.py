"""Tier 2: does it behave? Importing this registers the checks in the order they run in."""

from pytest_transformer_validate.checks.tier2 import (  # isort: skip
    equivalence,
    checkpointing,
    generation,
    reference,
)

__all__ = [
    "checkpointing",
    "equivalence",
    "generation",
    "reference",
]
