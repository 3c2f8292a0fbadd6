"""Tier 3: does it learn? Importing this registers the checks in the order they run in."""

from pytest_transformer_validate.checks.tier3 import (  # isort: skip
    learning,
    equality,
    fine_tuning,
)

__all__ = ["equality", "fine_tuning", "learning"]
