"""Every mutant, by name."""

from __future__ import annotations

from pytest_transformer_validate.evidence.mutants import (
    batch_independence,
    causality,
    gradient_flow,
    load,
    output_stability,
    shape_robustness,
)
from pytest_transformer_validate.evidence.mutants.surgery import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for family in (
        load,
        shape_robustness,
        gradient_flow,
        output_stability,
        causality,
        batch_independence,
    )
    for mutant in family.MUTANTS
}
