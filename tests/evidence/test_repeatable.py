"""Verdicts and numbers belong to model and seed, not to the order in which checks run."""

from __future__ import annotations

import random

import pytest

from pytest_transformer_validate.evidence import table
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.evidence.zoo import ZOO

TIMED = {"inference_speed"}


def numbers(records):
    return {
        record.name: (record.status, None if record.check in TIMED else record.numbers)
        for record in records
    }


@pytest.mark.parametrize("name", ["llama", "bert", "seq2seq", "moe", "vit"])
def test_any_order_gives_the_same_verdicts_and_numbers(name: str) -> None:
    healthy = ZOO[name]
    checks = table.of_tier(1)
    shuffled = random.Random(name).sample(checks, len(checks))
    in_order, mixed = (
        numbers(table.judge(name, healthy.build, healthy.config, chosen))
        for chosen in (checks, shuffled)
    )
    assert in_order == mixed


@pytest.mark.parametrize("name", ["mask_missing", "hard_gate"])
def test_a_check_alone_says_what_it_says_among_all(name: str) -> None:
    mutant = MUTANTS[name]
    among_all = table.judge(name, mutant.build, mutant.healthy.config, table.of_tier(1))
    alone = table.mutant_row(name).records
    assert numbers(alone).items() <= numbers(among_all).items()
