"""Collators: what is real is trained, what is padding is not, whatever the ids are."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from pytest_transformer_validate.training.data.collators import (
    ClassificationDataCollator,
    LanguageModelingDataCollator,
    Seq2SeqDataCollator,
    VisionDataCollator,
)


@dataclass
class Tokenizer:
    """As much of a tokenizer as collators ask for."""

    pad_token_id: int | None = 0
    eos_token_id: int | None = 0
    mask_token_id: int | None = 3
    all_special_ids: list[int] = field(default_factory=lambda: [0, 1, 3])

    def __len__(self) -> int:
        return 50


TEXTS = [{"input_ids": [5, 0, 6]}, {"input_ids": [7, 8, 9, 0, 0]}]


@pytest.mark.parametrize(
    ("side", "mask"),
    [("right", [[1, 1, 1, 0, 0], [1] * 5]), ("left", [[0, 0, 1, 1, 1], [1] * 5])],
)
def test_real_tokens_equal_to_the_padding_id_are_trained(side, mask):
    batch = LanguageModelingDataCollator(Tokenizer(), padding_side=side)(TEXTS)
    assert batch["attention_mask"].tolist() == mask
    for row, text in enumerate(TEXTS):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == text["input_ids"]
        assert batch["labels"][row][real].tolist() == text["input_ids"]
        assert (batch["labels"][row][~real] == -100).all()


@pytest.mark.parametrize(("eos", "filler"), [(7, 7), (None, 0)])
def test_without_a_padding_id_another_fills_up(eos, filler):
    tokenizer = Tokenizer(pad_token_id=None, eos_token_id=eos)
    batch = LanguageModelingDataCollator(tokenizer)([{"input_ids": [5, 6]}, {"input_ids": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6], [8, filler]]
    assert batch["labels"].tolist() == [[5, 6], [8, -100]]


def test_lists_tensors_and_mappings_are_the_same():
    collate = LanguageModelingDataCollator(Tokenizer())
    ids = [text["input_ids"] for text in TEXTS]
    tensors = [{"input_ids": torch.tensor(i)} for i in ids]
    for examples in (ids, tensors):
        assert all(torch.equal(collate(examples)[k], v) for k, v in collate(TEXTS).items())


def test_labels_of_examples_are_kept():
    examples = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [5], "labels": [5]},
    ]
    labels = LanguageModelingDataCollator(Tokenizer(), padding_side="left")(examples)["labels"]
    assert labels.tolist() == [[-100, 6, 7], [-100, -100, 5]]


def test_masking_hides_and_trains_the_same_tokens():
    torch.manual_seed(0)
    examples = [{"input_ids": [1, *range(10, 40), 0]}] * 200
    collate = LanguageModelingDataCollator(Tokenizer(), mlm=True)
    batch = collate(examples)
    whole = torch.tensor([example["input_ids"] for example in examples])
    trained = batch["labels"] != -100
    assert torch.equal(batch["labels"][trained], whole[trained])
    assert torch.equal(batch["input_ids"][~trained], whole[~trained])
    assert not trained[:, [0, -1]].any()
    share = trained[:, 1:-1].float().mean().item()
    assert share == pytest.approx(0.15, abs=0.02)
    hidden = (batch["input_ids"] == 3)[trained].float().mean().item()
    same = (batch["input_ids"] == whole)[trained].float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.05)
    assert same == pytest.approx(0.1, abs=0.04)


def test_a_batch_that_is_too_small_to_draw_any_hides_one():
    collate = LanguageModelingDataCollator(Tokenizer(), mlm=True, mlm_probability=1e-6)
    batch = collate([{"input_ids": [1, 10, 11, 12, 0]}, {"input_ids": [1, 13]}])
    hidden = batch["labels"] != -100
    assert hidden.sum() == 1
    assert batch["labels"][hidden].item() in {10, 11, 12, 13}
    assert (collate([{"input_ids": [1, 0]}])["labels"] == -100).all()


def test_masking_draws_from_torchs_generator():
    collate = LanguageModelingDataCollator(Tokenizer(), mlm=True)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(collate([list(range(4, 40))])["input_ids"])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"padding_side": "both"}, "'right' or 'left'"),
        ({"mlm_probability": 0.0}, "in \\(0, 1\\]"),
        ({"mlm": True, "tokenizer": Tokenizer(mask_token_id=None)}, "mask token"),
    ],
)
def test_a_wrong_collator_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        LanguageModelingDataCollator(**{"tokenizer": Tokenizer(), **given})


@pytest.mark.parametrize("examples", [[], [{"input_ids": []}]])
def test_an_empty_batch_is_refused(examples):
    with pytest.raises(ValueError, match="an empty batch"):
        LanguageModelingDataCollator(Tokenizer())(examples)


def test_an_example_without_ids_names_what_it_has():
    with pytest.raises(ValueError, match="it has text, label"):
        LanguageModelingDataCollator(Tokenizer())([{"text": "a", "label": 1}])


def test_sources_and_targets_are_padded_apart():
    examples = [{"input_ids": [5, 6], "labels": [7, 0, 8]}, {"input_ids": [5], "labels": [9]}]
    batch = Seq2SeqDataCollator(Tokenizer())(examples)
    assert batch["input_ids"].tolist() == [[5, 6], [5, 0]]
    assert batch["labels"].tolist() == [[7, 0, 8], [9, -100, -100]]


def test_classes_are_one_number_an_example():
    examples = [{"input_ids": [5, 6], "label": 1}, {"input_ids": [5], "label": 0}]
    batch = ClassificationDataCollator(Tokenizer())(examples)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match="needs 'labels'"):
        ClassificationDataCollator(Tokenizer())([{"input_ids": [5]}])


@pytest.mark.parametrize("label", ["pos", "1", 0.7, None, [0, 1], torch.ones(2), float("nan")])
def test_a_label_is_the_number_of_a_class(label):
    with pytest.raises(ValueError, match="a label is the number of its class"):
        ClassificationDataCollator(Tokenizer())([{"input_ids": [5], "label": label}])
    for fine in (1, 1.0, True, torch.tensor(1)):
        batch = ClassificationDataCollator(Tokenizer())([{"input_ids": [5], "label": fine}])
        assert batch["labels"].tolist() == [1]


class TestVision:
    def test_bytes_are_scaled_and_normalised(self) -> None:
        image = torch.full((3, 4, 4), 255, dtype=torch.uint8)
        batch = VisionDataCollator()([{"image": image, "label": 2}])
        expected = [
            (1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        ]
        assert batch["pixel_values"].shape == (1, 3, 4, 4)
        assert batch["pixel_values"][0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)
        assert batch["labels"].tolist() == [2]

    def test_pairs_are_taken_and_left_as_they_are(self) -> None:
        image = torch.rand(1, 4, 4)
        batch = VisionDataCollator(normalize=False)([(image, 1)])
        assert torch.equal(batch["pixel_values"][0], image)

    @pytest.mark.parametrize(
        ("examples", "said"),
        [
            ([], "an empty batch"),
            ([(torch.rand(3, 4, 4), 0), (torch.rand(3, 5, 4), 0)], "need one shape"),
            ([(torch.rand(1, 4, 4), 0)], "1 channels, mean and std 3"),
            ([{"label": 1}], "'pixel_values' or 'image'"),
        ],
    )
    def test_what_cannot_be_a_batch_is_said(self, examples, said) -> None:
        with pytest.raises(ValueError, match=said):
            VisionDataCollator()(examples)
