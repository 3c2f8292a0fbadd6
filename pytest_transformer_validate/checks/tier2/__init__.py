"""Tier 2: does it behave? Importing this registers the checks in the order they run in."""

from pytest_transformer_validate.checks.tier2 import (  # isort: skip
    equivalence,
    checkpointing,
    generation,
    export,
    quantisation,
    reference,
    attention,
    attention_mask,
    attention_reach,
    attention_scale,
    attribution,
    perturbation,
    representation,
    text,
)

__all__ = [
    "attention",
    "attention_mask",
    "attention_reach",
    "attention_scale",
    "attribution",
    "checkpointing",
    "equivalence",
    "export",
    "generation",
    "perturbation",
    "quantisation",
    "reference",
    "representation",
    "text",
]
