"""Ids and positions outside of a model's range."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models
from tests.models import probe_of

CHECKS = {check.name: check.function for check in all_checks()}


class Changes(models.Decoder):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, input_ids):
        return self.head(self.hidden(self.change(input_ids)))


@pytest.mark.parametrize(
    ("change", "likely"),
    [
        (lambda ids: ids % models.VOCAB, "ids % vocab_size"),
        (lambda ids: ids.clamp(max=models.VOCAB - 1), r"ids.clamp\(0, vocab_size - 1\)"),
        (lambda ids: ids.clamp(min=0), r"ids.clamp\(0, vocab_size - 1\)"),
        (lambda ids: ids.abs(), "ids are changed"),
    ],
    ids=["remainder", "largest", "smallest", "absolute"],
)
def test_ids_that_are_folded_back_are_found(change, likely):
    with pytest.raises(CheckFailed, match=likely) as caught:
        CHECKS["vocabulary_bounds"](probe_of(Changes(change)))
    assert caught.value.where == "(model)"


@pytest.mark.parametrize("change", ["remainder", "largest"])
def test_ids_of_the_vocabulary_that_are_read_as_others_are_found(change):
    most = models.VOCAB - 7
    changes = {"remainder": lambda ids: ids % most, "largest": lambda ids: ids.clamp(max=most)}
    with pytest.raises(CheckFailed, match="and the logits are the same for both") as caught:
        CHECKS["vocabulary_bounds"](probe_of(Changes(changes[change])))
    assert caught.value.where == "(model)"


def test_ids_beyond_one_table_that_another_reads_are_read():
    class Adaptive(models.Decoder):
        def __init__(self):
            super().__init__()
            self.rare = nn.Embedding(models.VOCAB, 32)

        def forward(self, input_ids):
            rare = input_ids >= 50
            x = self.tokens(input_ids.masked_fill(rare, 0)).masked_fill(rare[..., None], 0)
            return self.head(x + self.rare(input_ids.masked_fill(~rare, 0)))

    with pytest.raises(NotApplicable, match="no table is indexed by the ids as they are"):
        CHECKS["vocabulary_bounds"](probe_of(Adaptive()))


def test_unknown_and_padding_stand_for_others():
    model = Changes(lambda ids: torch.where((ids >= models.VOCAB) | (ids < 0), 3, ids))
    measured = CHECKS["vocabulary_bounds"](probe_of(model, {"unk_token_id": 3}))
    assert any("padding or unknown" in note for note in measured.notes)
    with pytest.raises(CheckFailed):
        CHECKS["vocabulary_bounds"](probe_of(model))


class Pads(models.Decoder):
    """A table whose padding is one id."""

    def __init__(self, padding, *, tied=False):
        super().__init__()
        self.tokens = nn.Embedding(models.VOCAB, 32, padding_idx=padding)
        if tied:
            self.head.weight = self.tokens.weight


@pytest.mark.parametrize(
    ("padding", "config", "tied"),
    [
        (5, {"pad_token_id": 5}, False),
        (0, {"pad_token_id": 5, "bos_token_id": 0}, False),
        (0, {"pad_token_id": 5}, True),
        (0, {}, False),
    ],
    ids=["same", "special", "tied", "undeclared"],
)
def test_padding_of_a_table_that_nothing_contradicts(padding, config, tied):
    model = Pads(padding, tied=tied).eval()
    CHECKS["vocabulary_bounds"](Probe(Subject(model, config)))


@pytest.mark.parametrize("padding", [0, 7])
def test_a_token_that_only_the_table_takes_for_padding_is_never_learned(padding):
    probe = Probe(Subject(Pads(padding).eval(), {"pad_token_id": 5}))
    with pytest.raises(CheckFailed, match=f"id {padding} .* is never learned") as caught:
        CHECKS["vocabulary_bounds"](probe)
    assert caught.value.where == "tokens"


def test_plain_indexing_reads_negative_ids_from_the_end():
    measured = CHECKS["vocabulary_bounds"](probe_of(models.Indexed()))
    assert any("as plain indexing does" in note for note in measured.notes)


@pytest.mark.parametrize("size", [100, 96])
def test_tables_and_heads_may_be_padded(size):
    CHECKS["vocabulary_bounds"](probe_of(models.Decoder(), {"vocab_size": size}))


def test_a_head_that_lacks_ids_and_a_table_that_lacks_a_row():
    model = models.Decoder()
    model.head = nn.Linear(32, models.VOCAB - 1)
    with pytest.raises(CheckFailed, match="100 columns for 101 ids") as caught:
        CHECKS["vocabulary_bounds"](probe_of(model, {"vocab_size": models.VOCAB}))
    assert caught.value.where == "head"
    with pytest.raises(CheckFailed, match="the table has 101 rows") as caught:
        CHECKS["vocabulary_bounds"](probe_of(models.Decoder(), {"vocab_size": 102}))
    assert caught.value.where == "tokens"


class Folds(models.Decoder):
    def __init__(self, fold) -> None:
        super().__init__()
        self.fold = fold

    def hidden(self, ids):
        steps = self.fold(torch.arange(ids.size(1), device=ids.device))
        x = self.tokens(ids) + self.positions(steps)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.mark.parametrize(
    ("fold", "positions"),
    [(lambda s: s % 48, "0 and 48"), (lambda s: s.clamp(max=47), "47 and 48")],
    ids=["remainder", "clamp"],
)
def test_positions_that_share_a_row_above_the_limit(fold, positions):
    with pytest.raises(CheckFailed, match=f"positions {positions} read row"):
        CHECKS["length_limit"](probe_of(Folds(fold)))


def test_raising_is_right_and_so_is_running():
    assert "IndexError" in CHECKS["length_limit"](probe_of(models.Decoder())).raised

    class Free(models.Decoder):
        def hidden(self, ids):
            return self.norm(self.blocks[0](self.tokens(ids)))

    measured = CHECKS["length_limit"](probe_of(Free(), {"max_seq_len": 40}))
    assert measured.positions == 41
    with pytest.raises(NotApplicable, match="bounds the length"):
        CHECKS["length_limit"](probe_of(Free()))


def test_rows_that_repeat_below_the_limit_are_no_positions():
    """Relative distances in buckets read one row many times at any length."""

    class Buckets(models.Decoder):
        def hidden(self, ids):
            steps = torch.arange(ids.size(1), device=ids.device)
            near = self.positions((steps[:, None] - steps).clamp(0, 7)).mean(1)
            return self.norm(self.blocks[0](self.tokens(ids) + near))

    CHECKS["length_limit"](probe_of(Buckets(), {"max_seq_len": 24}))


@pytest.mark.parametrize("task", [None, "classification"])
def test_a_text_that_is_cut_is_found(task):
    class Cuts(models.Decoder):
        def forward(self, input_ids):
            x = self.hidden(input_ids[:, :48])
            return self.head(x.mean(1) if task else x)

    words = "nothing depends on the last token" if task else "the output has 48 positions"
    with pytest.raises(CheckFailed, match=words):
        CHECKS["length_limit"](probe_of(Cuts(), {"max_seq_len": 48}, task))
