"""The order of examples: by seed, epoch, position and rank alone."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.training.data.sampling import BatchOrder


@pytest.mark.parametrize("size", [1, 5, 8, 9, 11])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_together_take_every_example_once(size, world):
    ranks = [BatchOrder(size, 2, seed=3, rank=r, world=world) for r in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    taken = [i for r in ranks for at, b in enumerate(r) if not r.spare(at) for i in b]
    assert sorted(taken) == list(range(size))
    assert all(batch for rank in ranks for batch in rank)


def test_a_global_batch_is_the_same_whatever_the_ranks():
    alone = list(BatchOrder(12, 4, seed=1))
    two = [list(BatchOrder(12, 2, seed=1, rank=r, world=2)) for r in range(2)]
    for at, batch in enumerate(alone):
        assert sorted(batch) == sorted(two[0][at] + two[1][at])


def test_epochs_differ_and_come_back():
    order = BatchOrder(20, 4, seed=1)
    first = list(order)
    order.epoch = 1
    second = list(order)
    order.epoch = 0
    assert first != second
    assert list(order) == first
    assert list(BatchOrder(20, 4, seed=2)) != first


def test_a_pass_goes_on_in_its_middle():
    order = BatchOrder(20, 4, seed=1)
    order.epoch = 5
    whole = list(order)
    again = BatchOrder(20, 4)
    again.load_state_dict(order.state_dict(3))
    assert list(again) == whole[3:]
    again.epoch = 5
    assert list(again) == whole


def test_without_shuffling_the_order_is_that_of_the_data():
    assert list(BatchOrder(5, 2, shuffle=False)) == [[0, 1], [2, 3], [4]]
