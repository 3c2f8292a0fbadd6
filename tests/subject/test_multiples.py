"""Lengths that have to be multiples of something."""

from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate import validate
from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import complete
from pytest_transformer_validate.subject.multiples import find_multiple
from pytest_transformer_validate.subject.subject import Subject
from tests import models


class Asserts(models.Decoder):
    def forward(self, input_ids):
        assert input_ids.size(1) % 8 == 0
        return super().forward(input_ids)


class Raises(models.Decoder):
    def forward(self, input_ids):
        if input_ids.size(1) // 12 * 12 != input_ids.size(1):
            raise ValueError("the length must be divisible by the window")
        return super().forward(input_ids)


class Fails(models.Decoder):
    """A shape that does not fit is no statement."""

    def forward(self, input_ids):
        return super().forward(input_ids.view(len(input_ids), -1, 8).flatten(1))


class Alone(models.Decoder):
    """Tokens are mixed by a matrix: one length alone."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(12, 12)

    def hidden(self, ids):
        return self.mix(super().hidden(ids).mT).mT


class Gates(models.Decoder):
    """Tokens are mixed by a parameter, over which a single one would be spread."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.randn(1, 12, 12))

    def hidden(self, ids):
        return torch.einsum("btd,omt->bmd", super().hidden(ids), self.mix)


class Typed(models.Decoder):
    """The same length alone, by a mistake."""

    def hidden(self, ids):
        hidden = super().hidden(ids)
        return hidden.reshape(len(ids), 12, hidden.shape[-1])


class Uncut(models.Decoder):
    """A causal mask of the maximum length, as it is; ``learned`` makes it a table of weights."""

    def __init__(self, learned=False):
        super().__init__(length=12)
        scores = torch.zeros(12, 12).masked_fill(torch.ones(12, 12).triu(1) > 0, float("-inf"))
        self.scores = torch.nn.Parameter(scores) if learned else scores
        self.out = torch.nn.Linear(32, 32)

    def hidden(self, ids):
        x = super().hidden(ids)
        return x + self.out((x @ x.mT + self.scores).softmax(-1) @ x)


class Whole(models.Decoder):
    """A classifier that reads all vectors of a text side by side, and adds a table as it is."""

    def __init__(self, length, flat=True):
        super().__init__(length=length)
        self.flat, self.labels = flat, torch.nn.Linear(32 * length if flat else 32, 5)

    def forward(self, input_ids):
        x = self.tokens(input_ids) + self.positions.weight
        for block in self.blocks:
            x = block(x, causal=False)
        x = self.norm(x)
        return self.labels(x.flatten(1) if self.flat else x[:, 0])


class Columns(models.Decoder):
    """One id a column: as many as the model has, and says."""

    def __init__(self):
        super().__init__(length=6)
        self.num_columns = 6

    def forward(self, input_ids):
        assert input_ids.shape[-1] == self.num_columns
        return super().forward(input_ids)


class SaysColumns(models.Decoder):
    def forward(self, input_ids):
        if input_ids.shape[-1] != self.positions.num_embeddings - 39:
            raise ValueError("pass 9 values")
        return super().forward(input_ids)


class Mistaken(models.Decoder):
    """Speaks of a number that it does not take."""

    def forward(self, input_ids):
        raise ValueError("pass 9 values")


@pytest.mark.parametrize(
    ("model", "config", "multiple", "length"),
    [
        (Columns, None, 6, 6),
        (SaysColumns, None, 9, 9),
        (Typed, {"max_seq_len": 12}, 1, 11),
        (Uncut, {"max_seq_len": 12}, 1, 11),
        (lambda: Uncut(learned=True), {"max_seq_len": 12}, 12, 12),
        (Alone, {"max_seq_len": 12}, 12, 12),
        (Gates, None, 12, 12),
        (models.Decoder, {"max_seq_len": 12}, 1, 11),
        (Asserts, None, 8, 16),
        (Asserts, {"max_seq_len": 44}, 8, 16),
        (Asserts, {"max_seq_len": 8}, 8, 8),
        (Raises, None, 12, 12),
        (Fails, None, 1, 11),
        (models.Decoder, None, 1, 11),
    ],
)
def test_what_forward_says_is_kept(model, config, multiple, length):
    subject = Subject(model().eval(), config)
    assert (subject.multiple, subject.sizes[1]) == (multiple, length)
    assert subject.max_length is None or subject.max_length % multiple == 0


def test_another_length_is_not_tried():
    subject = Subject(Asserts().eval())
    with pytest.raises(NotApplicable, match="multiples of 8"):
        subject.batch(2, 9)
    with pytest.raises(NotApplicable, match="multiples of 8"):
        complete(subject, Batch({"input_ids": torch.zeros(2, 3, dtype=torch.long)}))


@pytest.mark.parametrize("model", [Columns, SaysColumns])
def test_the_one_length_that_a_refusal_names(model):
    subject = Subject(model().eval())
    assert subject.max_length == subject.multiple
    assert subject.other_sizes[1] == subject.sizes[1]


def test_what_refuses_the_length_that_it_names_raises():
    with pytest.raises(ValueError, match="pass 9 values"):
        _ = Subject(Mistaken().eval()).facts


def test_a_single_length_is_no_multiple():
    assert find_multiple(None, lambda length: length == 16) == 1


@pytest.mark.parametrize("named", [{}, {"max_seq_len": 40}])
def test_a_block_size_may_be_what_lengths_are_multiples_of(named):
    subject = Subject(Asserts(), {"block_size": 8, **named})
    assert (subject.max_length, subject.multiple) == (named.get("max_seq_len", 48), 8)


def test_a_block_size_that_the_model_does_not_speak_of_is_the_longest_text():
    subject = Subject(models.Decoder(), {"block_size": 8})
    assert (subject.max_length, subject.multiple) == (8, 1)


def test_healthy_at_one_length():
    result = validate(Columns(), task="masked_lm")
    assert {record.check for record in result.failures} == {"bidirectionality"}, str(result)


def test_healthy():
    checks = ["causality", "batch_independence", "shape_robustness", "prefix_consistency"]
    result = validate(Asserts(), checks=checks)
    assert not result.failures, str(result)
    passed = {record.check for record in result if record.status == "passed"}
    assert passed == set(checks)


@pytest.mark.parametrize("length", [16, 20])
def test_the_length_that_a_layer_reads_whole_is_the_only_one(length):
    result = validate(Whole(length), task="classification")
    assert not result.failures, str(result)
    assert Subject(Whole(length), {"task": "classification"}).max_length == length


def test_a_table_that_is_not_cut_gives_a_classifier_one_length():
    result = validate(Whole(20, flat=False), task="classification")
    assert not result.failures, str(result)
    assert Subject(Whole(20, flat=False), {"task": "classification"}).max_length == 20


class Board(models.Decoder):
    """Ids on a board: tables of rows and columns, read for the whole of it."""

    def __init__(self):
        super().__init__()
        self.rows, self.columns = torch.nn.Embedding(6, 32), torch.nn.Embedding(6, 32)

    def forward(self, input_ids):
        places = self.rows.weight[:, None] + self.columns(torch.arange(6, device=input_ids.device))
        x = self.tokens(input_ids) + places.flatten(0, 1)
        for block in self.blocks:
            x = block(x, causal=False)
        return self.head(self.norm(x))


def test_a_board_has_one_length():
    result = validate(Board(), task="masked_lm")
    assert not result.failures, str(result)
    assert Subject(Board(), {"task": "masked_lm"}).max_length == 36


class Growing(models.Decoder):
    """A decoder whose table of positions is not cut to the text."""

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.mark.parametrize("config", [{}, {"block_size": 24}])
def test_a_decoder_has_to_take_shorter_texts(config):
    result = validate(Growing(length=24), config=config)
    [failure] = result.failures
    assert (failure.check, failure.case) == ("shape_robustness", "typical")
    assert "a table of 24 positions is added whole" in failure.message
