"""Data that is not what it should be is said before, or instead of, a traceback from inside."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pytest_transformer_validate.errors import TrainingError
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training import (
    CharacterTokenizer,
    Trainer,
    TrainingConfig,
    UniversalDataModule,
)
from pytest_transformer_validate.training.data import module as data_module
from pytest_transformer_validate.training.data.quality import QualityWarning
from tests.training.models import VOCABULARY, TinyLM, padded, rows, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = ["abc", "abcd", "ab", "dcba", "aaaa", "bcd"]
TOKENIZER = CharacterTokenizer(TEXTS, VOCABULARY)


class Positions(TinyLM):
    """At most eight positions, which a table says."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, 8)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        return self.head(self.norm(hidden))


class Classifier(nn.Module):
    """Two classes of the mean of the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids).mean(1))


def trained(data: Any, model: nn.Module | None = None, val: Any = None, **given: Any) -> Any:
    settings = {"epochs": 1, "checkpoint_dir": None, "console": False, "precision": "32-true"}
    config = TrainingConfig(**{**settings, **given})
    trainer = Trainer(model or tiny_lm(), None, config, None, TOKENIZER)
    return trainer.train(data, val)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_an_id_outside_of_the_vocabulary_is_named_with_its_place(wrong):
    batch = padded(rows(2, shortest=6))
    batch["input_ids"][1, 3] = wrong
    with pytest.raises(ValueError, match=rf"input_ids holds {wrong} at \[1, 3\].*\(0 to 15\)"):
        trained([batch])


def test_a_tokenizer_of_a_larger_vocabulary_is_found_by_its_ids():
    large = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz", 64)
    config = TrainingConfig(epochs=1, checkpoint_dir=None, console=False, validation_split=0.0)
    with pytest.raises(ValueError, match="the model has 16"):
        Trainer(tiny_lm(), None, config, None, large).train(["uvwxyz", "stuvwxyz"])


def test_the_first_id_of_a_decoder_is_declared_or_the_tokenizers():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, 8)
            self.head = nn.Linear(8, VOCABULARY)
            self.first: list[int] = []

        def forward(
            self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor
        ) -> torch.Tensor:
            self.first += decoder_input_ids[:, 0].tolist() if self.training else []
            return self.head(self.embed(decoder_input_ids) + self.embed(input_ids).mean(1, True))

    data = [{"text": text, "target": text[::-1]} for text in TEXTS]
    settings = {"epochs": 1, "checkpoint_dir": None, "console": False, "precision": "32-true"}
    for config, first in ((None, TOKENIZER.bos_token_id), ({"decoder_start_token_id": 5}, 5)):
        model = Pairs()
        task = TaskSpec("seq2seq")
        Trainer(model, config, TrainingConfig(**settings), task, TOKENIZER).train(data)
        assert set(model.first) == {first}


@pytest.mark.parametrize("wrong", [2, -1])
def test_a_label_outside_of_the_classes_is_named(wrong):
    data = [{"input_ids": [3, 4], "label": n % 2} for n in range(5)]
    data.append({"input_ids": [3, 4], "label": wrong})
    with pytest.raises(ValueError, match=rf"labels holds {wrong} at .*the model has 2"):
        trained(data, Classifier(), validation_split=0.0, batch_size=6)


def test_one_class_is_said():
    data = [{"input_ids": [3, 4], "label": 1}] * 4
    with pytest.warns(QualityWarning, match="each of the first 4 examples has the label 1"):
        trained(data, Classifier(), validation_split=0.0)


def test_labels_that_are_all_ignored_are_no_loss_of_zero():
    batch = padded(rows(2))
    batch["labels"].fill_(-100)
    with pytest.raises(ValueError, match="the training data has no target"):
        trained([batch])


def test_a_batch_of_padding_alone_is_refused_and_later_no_nan():
    good, empty = padded(rows(2)), padded(rows(2))
    empty["labels"].fill_(-100)
    empty["attention_mask"].fill_(0)
    with pytest.raises(ValueError, match="2 of the first 4 sequences have fewer than 2 tokens"):
        trained([empty, good])
    late = trained([good] * 10 + [empty], learning_rate=1e-30)
    assert late["final_loss"] == pytest.approx(trained([good], learning_rate=1e-30)["final_loss"])


def test_batches_of_ones_own_are_looked_at_and_no_shuffling_is_lost():
    ids = torch.randint(1, VOCABULARY, (8, 6))
    short = [{"input_ids": ids[:, :1], "labels": ids[:, :1]}]
    with pytest.raises(ValueError, match="8 of the first 8 sequences have fewer than 2 tokens"):
        trained(short)
    with pytest.raises(ValueError, match="a sequence has 12 tokens and the model takes 8"):
        trained([{"input_ids": torch.ones(1, 12, dtype=torch.long)}], Positions())
    orders: list[list[int]] = [[], []]
    for order in orders:
        data = [(at, row) for at, row in enumerate(ids)]

        def collate(examples: Any, order: list[int] = order) -> Any:
            order.extend(at for at, _ in examples)
            found = torch.stack([row for _, row in examples])
            return {"input_ids": found, "labels": found}

        loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate)
        if order is orders[0]:
            trained(loader)
        else:
            torch.manual_seed(42)  # a bare loop's order for the seed of the run
            list(loader)
    assert orders[0][8:] == orders[1]


def test_another_ignored_label_is_ignored_everywhere():
    task = TaskSpec("causal_lm", ignore_index=-7)
    config = TrainingConfig(epochs=1, checkpoint_dir=None, console=False, precision="32-true")
    one = Trainer(tiny_lm(), None, config, task, TOKENIZER).train(TEXTS)
    assert one["final_loss"] == pytest.approx(trained(TEXTS)["final_loss"])


def test_texts_are_cut_to_what_the_model_takes():
    assert trained(["ab" * 20, "ba" * 20] * 3, Positions())["loss_history"]


def test_ids_that_are_too_long_are_said():
    with pytest.raises(ValueError, match="a sequence has 12 tokens and the model takes 8"):
        trained([torch.ones(12, dtype=torch.long)] * 4, Positions())


def test_validation_on_the_training_data_is_said():
    with pytest.warns(QualityWarning, match="the validation data is the training data"):
        trained(TEXTS, val=list(TEXTS))


def test_other_validation_data_of_the_same_size_is_not():
    trained(TEXTS, val=[text[::-1] for text in TEXTS])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "the training data is of type NoneType: give a list of examples"),
        (5, "of type int"),
        ([], "the training data has no example"),
        ({"text": TEXTS}, "a dict, a table of columns or splits.*datasets.Dataset.from_dict"),
        ([{"text": "abc"}, {"text": None}], "'text' of example 1 is no text: NoneType"),
        ([{"text": "abc"}, {"text": 7}], "'text' of example 1 is no text: int"),
        ([{"text": "abc"}, {"other": 7}], "an example needs 'input_ids'; it has other"),
        ([{"text": "abc", "label": "pos"}], "a label is the number of its class"),
    ],
)
def test_what_is_no_data_is_said(data, said):
    labelled = isinstance(data, list) and data and "label" in data[0]
    model = Classifier() if labelled else None
    with pytest.raises(ValueError, match=said):
        trained(data, model, validation_split=0.0)


def test_a_table_is_said():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"a DataFrame, .*from_pandas"):
        trained(pandas.DataFrame({"text": TEXTS}))


ONES = torch.ones(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("ids", "labels", "said"),
    [
        (ONES, ONES[:, 1:], r"labels of shape \(2, 4\) and outputs of shape \(2, 5, 16\)"),
        (ONES, ONES.float(), "labels must be whole numbers, given float32"),
        (ONES.float(), ONES, "input_ids must be whole numbers, given float32"),
    ],
)
def test_batches_that_do_not_fit_are_said(ids, labels, said):
    with pytest.raises(ValueError, match=said):
        trained([{"input_ids": ids, "labels": labels}])


class Detached(TinyLM):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids).detach()


class Shortened(TinyLM):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids)[:, :-1]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Detached, "the outputs depend on no parameter"),
        (Shortened, r"labels of shape \(2, 5\) and outputs of shape \(2, 4, 16\)"),
    ],
)
def test_models_that_cannot_learn_are_said(model, said):
    with pytest.raises(ValueError, match=said):
        trained([{"input_ids": ONES, "labels": ONES}], model())


def test_what_the_model_raises_is_left_as_it_is():
    class Raises(TinyLM):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("my own words")
            return super().forward(input_ids)

    with pytest.raises(RuntimeError, match="my own words"):
        trained([{"input_ids": ONES, "labels": ONES}], Raises())


def test_a_function_is_no_model():
    with pytest.raises(TypeError, match=r"is a function, no torch.nn.Module"):
        trained([{"input_ids": ONES, "labels": ONES}], lambda ids: ids)


class TestIterators:
    def test_one_that_raises_is_named_with_its_place(self) -> None:
        def data() -> Iterator[str]:
            yield from TEXTS[:3]
            raise RuntimeError("the file ends here")

        with pytest.raises(TrainingError, match="training data raised at example 3: RuntimeError"):
            trained(data())

    def test_one_that_never_ends_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data_module, "PATIENCE", 0.05)
        with pytest.raises(TrainingError, match="does not end; set max_train_samples"):
            trained(itertools.cycle(TEXTS))

    def test_a_part_of_it_will_do(self) -> None:
        assert trained(itertools.cycle(TEXTS), max_train_samples=8)["loss_history"]

    def test_a_worker_that_dies_ends_the_pass(self) -> None:
        class Deadly(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 4

            def __getitem__(self, at: int) -> Any:
                os._exit(3)

        loader = UniversalDataModule(
            Deadly(), None, None, TOKENIZER, val_split=0.0, num_workers=1
        ).train_dataloader()
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            next(iter(loader))
