from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.subject.tables import TableReader

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def read(forward, **attributes) -> TableReader:
    model = nn.Module()
    for name, value in attributes.items():
        setattr(model, name, value)
    with torch.no_grad(), TableReader(model, {"input_ids": IDS}, 5) as reader:
        forward(model)
    return reader


TABLES = {
    "embedding": lambda m: m.table(IDS),
    "function": lambda m: nn.functional.embedding(IDS, m.table.weight),
    "indexing": lambda m: m.table.weight[IDS],
    "index_select": lambda m: m.table.weight.index_select(0, IDS.flatten()),
    "time_major": lambda m: m.table(IDS.T),
    "bag": lambda m: nn.functional.embedding_bag(IDS, m.table.weight),
    "prefixed": lambda m: m.table(nn.functional.pad(IDS, (1, 0), value=7)),
    "prompted": lambda m: m.table(torch.cat([torch.arange(12).expand(2, 12), IDS], dim=1)),
    "padded_to_a_block": lambda m: m.table(nn.functional.pad(IDS, (0, 27))),
    "in_patches": lambda m: m.table(nn.functional.pad(IDS, (0, 3)).view(2, 2, 4)),
    "shifted": lambda m: m.table(nn.functional.pad(IDS[:, :-1], (1, 0), value=7)),
    "last_id_folded": lambda m: m.table(IDS.clamp(max=8)),
    "text_by_text": lambda m: [m.table(text) for text in IDS],
    "one_hot": lambda m: nn.functional.one_hot(IDS, 13),
}


@pytest.mark.parametrize("how", TABLES)
def test_the_table_that_ids_index_gives_the_vocabulary(how):
    assert read(TABLES[how], table=nn.Embedding(13, 4)).vocabulary == {"input_ids": 13}


def test_a_table_with_a_part_for_each_of_several_places():
    places = torch.tensor([0, 3, 0, 3, 0])
    table = nn.Embedding(13, 4)
    assert read(lambda m: m.table(IDS + places), table=table).vocabulary == {"input_ids": 10}
    assert read(lambda m: m.table(IDS[:1] + places), table=table).vocabulary == {}
    assert read(lambda m: m.table(IDS * 2 % 13), table=table).vocabulary == {}


LIMITS = {
    "arange": (lambda m: m.positions(torch.arange(5)), 20),
    "rows": (lambda m: m.positions(torch.arange(5).expand(2, 5)), 20),
    "offset": (lambda m: m.positions(torch.arange(5) + 2), 18),
    "sliced": (lambda m: m.positions.weight[:5], 20),
    "sliced_behind": (lambda m: m.positions.weight[2:7], 18),
    "buffer": (lambda m: m.mask[:, :, :5, :5], 16),
    "plain_attribute": (lambda m: m.cache[0][:5], 17),
    "behind_a_prefix": (lambda m: m.positions(torch.arange(7)), 18),
    "from_the_end": (lambda m: m.cache[0][-5:], 17),
    "padded_to_a_multiple": (lambda m: m.positions(torch.tensor([2, 3, 4, 5, 6, 1, 1, 1])), 18),
}


@pytest.mark.parametrize("how", LIMITS)
def test_tables_read_by_position_bound_the_length(how):
    forward, limit = LIMITS[how]
    reader = read(
        forward,
        positions=nn.Embedding(20, 4),
        mask=nn.Buffer(torch.ones(1, 1, 16, 16)),
        cache=torch.ones(1, 17, 4),
    )
    assert (min(reader.limits), reader.vocabulary) == (limit, {})


def test_routed_tokens_are_no_positions():
    assert read(lambda m: torch.ones(20, 4)[torch.arange(5)]).limits == []


def test_relative_positions_bound_nothing():
    places = torch.arange(5)
    relative = places[None] - places[:, None] + 4
    assert read(lambda m: m.bias(relative), bias=nn.Embedding(9, 2)).limits == []


def test_a_prompt_of_the_models_own_is_no_run_of_positions():
    def forward(model):
        model.table(torch.cat([torch.arange(12).expand(2, 12), IDS], dim=1))

    assert read(forward, table=nn.Embedding(13, 4)).limits == []


def test_ids_that_the_forward_knows():
    assert read(lambda m: (IDS == 4) | (IDS != 9) | (torch.arange(5) == 3)).compared == {4, 9}
    assert read(lambda m: (IDS > 0) & ~(IDS <= 2)).compared == {0, 2}


def test_what_is_computed_in_the_forward_bounds_nothing():
    assert read(lambda m: torch.arange(99)[:5]).limits == []
