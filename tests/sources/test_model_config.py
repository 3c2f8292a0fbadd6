"""A configuration is read whatever it came as."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from pytest_transformer_validate.sources.config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    vocab_size: int = 9
    width: int = 8


class Fields(NamedTuple):
    vocab_size: int = 9
    width: int = 8


@pytest.mark.parametrize(
    "raw",
    [
        Slots(),
        Fields(),
        SimpleNamespace(vocab_size=9, width=8, _own=1),
        {"vocab_size": 9, "width": 8},
    ],
)
def test_the_keys_of_a_configuration(raw):
    config = ModelConfig(raw)
    assert dict(config) == {"vocab_size": 9, "width": 8}
    assert config.first("n_vocab", "vocab_size") == 9


def test_the_keys_of_a_derived_configuration():
    @dataclasses.dataclass(frozen=True, slots=True)
    class Derived(Slots):
        depth: int = 2

    assert dict(ModelConfig(Derived())) == {"vocab_size": 9, "width": 8, "depth": 2}
