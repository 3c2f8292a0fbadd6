"""Which entries of a tensor belong to real tokens, wherever rows and positions stand."""

from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate.probe.real_tokens import blanked, narrowed, real_entries

KEEP = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])


@pytest.mark.parametrize(
    ("shape", "real"),
    [
        ((2, 5, 3), 6 * 3),
        ((5, 2, 3), 6 * 3),
        ((2, 4, 5, 5), 4 * (16 + 4)),
        ((10, 3), 6 * 3),
        ((8, 5, 5), 4 * (16 + 4)),
        ((2, 7), 14),
    ],
)
def test_entries_of_real_tokens(shape, real):
    assert int(real_entries(torch.zeros(shape), KEEP).expand(shape).sum()) == real


def test_a_tensor_without_rows_belongs_to_nobody():
    assert real_entries(torch.zeros(7, 5), KEEP) is None
    assert real_entries(torch.zeros(()), KEEP) is None


def test_a_part_of_rows_and_positions():
    numbers = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    assert torch.equal(narrowed(numbers, 2, [1], 5, 1, 3), numbers[[1], 1:4])
    folded = narrowed(numbers.flatten(0, 1), 2, [1], 5, 1, 3)
    assert torch.equal(folded, numbers[1, 1:4])
    turned = narrowed(numbers.transpose(0, 1), 2, [0], 5, 0, 2)
    assert torch.equal(turned, numbers[[0], :2].transpose(0, 1))


def test_a_convolution_reads_zeros_at_padding():
    x, weight = torch.randn(2, 3, 5), torch.randn(3, 3, 3)
    blank = x * KEEP[:, None]
    with blanked(KEEP):
        found = torch.nn.functional.conv1d(x, weight, padding=1)
    assert torch.equal(found, torch.nn.functional.conv1d(blank, weight, padding=1))
    with blanked(None):
        assert torch.equal(torch.relu(x), x.relu())


def test_a_table_of_positions_has_no_rows_folded_in():
    table = torch.arange(64.0)[:, None].expand(64, 8)
    assert torch.equal(narrowed(table, 2, [1], 64, 0, 32), table[:32])
    folded = torch.arange(128.0)[:, None].expand(128, 8)
    assert torch.equal(narrowed(folded, 2, [1], 64, 0, 32), folded[64:96])
