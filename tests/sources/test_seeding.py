from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pytest_transformer_validate.sources.seeding import seeded


def draw():
    return random.random(), float(torch.rand(1)), float(np.random.rand())


def test_one_seed_decides_everything():
    with seeded(3):
        one = draw()
    with seeded(3):
        assert draw() == one
    with seeded(-4):
        assert draw() != one


@pytest.mark.parametrize("error", [None, KeyError])
def test_states_are_given_back(error):
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = draw()
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    try:
        with seeded(3):
            draw()
            if error:
                raise error
    except KeyError:
        pass
    assert draw() == expected
