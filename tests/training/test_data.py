"""UniversalDataModule: every kind of data, one way of making batches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_transformer_validate.errors import TrainingError
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.config import ConfigWarning, TrainingConfig
from pytest_transformer_validate.training.data import choose
from pytest_transformer_validate.training.data.collators import LanguageModelingDataCollator
from pytest_transformer_validate.training.data.files import read_file
from pytest_transformer_validate.training.data.loaders import make_loaders
from pytest_transformer_validate.training.data.module import UniversalDataModule
from pytest_transformer_validate.training.data.tokens import CharacterTokenizer, encode
from pytest_transformer_validate.training.strategy import OneDevice
from pytest_transformer_validate.training.trainer import Trainer
from tests.training.models import VOCABULARY, padded, rows, tiny_lm

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["abc", "abcd", "ab", "dcba", "aaaa", "bcd", "cab", "dab", "bad", "cad"]
TOKENIZER = CharacterTokenizer(TEXTS, VOCABULARY)


def module(data: Any, **given: Any) -> UniversalDataModule:
    settings = {"tokenizer": TOKENIZER, "batch_size": 3, "num_workers": 0, "val_split": 0.0}
    return UniversalDataModule(data, **{**settings, **given})


def seen(loader: Any) -> list[list[int]]:
    return [
        ids[mask.bool()].tolist()
        for batch in loader
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_rows_of_one_tensor_or_array_are_examples():
    ids = torch.randint(1, VOCABULARY, (6, 5))
    for data in (ids, ids.numpy()):
        assert sorted(seen(module(data).train_dataloader())) == sorted(ids.tolist())


@pytest.mark.parametrize("kind", ["texts", "mappings", "ids", "tensors", "iterator", "hf"])
def test_every_kind_of_data_gives_the_same_batches(kind):
    ids = [TOKENIZER.encode(text) for text in TEXTS]
    data: Any = {
        "texts": TEXTS,
        "mappings": [{"text": text} for text in TEXTS],
        "ids": [{"input_ids": i} for i in ids],
        "tensors": [torch.tensor(i) for i in ids],
        "iterator": iter(TEXTS),
    }.get(kind)
    if kind == "hf":
        data = pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS})
    assert seen(module(data).train_dataloader()) == seen(module(TEXTS).train_dataloader())
    assert sorted(seen(module(TEXTS).train_dataloader())) == sorted(ids)


def test_split_and_order_are_reproducible():
    one, other = module(TEXTS, val_split=0.3), module(TEXTS, val_split=0.3)
    assert seen(one.train_dataloader()) == seen(other.train_dataloader())
    assert seen(one.val_dataloader()) == seen(other.val_dataloader())
    assert (len(one.train_examples), len(one.val_examples)) == (7, 3)
    assert seen(module(TEXTS, seed=1).train_dataloader()) != seen(module(TEXTS).train_dataloader())


def test_every_epoch_is_shuffled_anew():
    loader = module(TEXTS).train_dataloader()
    first, second = seen(loader), seen(loader)
    assert first != second
    loader.set_epoch(0)
    assert seen(loader) == first


def test_workers_change_nothing():
    assert seen(module(TEXTS, num_workers=2).train_dataloader()) == seen(
        module(TEXTS).train_dataloader()
    )


def test_ranks_share_a_batch_and_spare_ones_do_not_count():
    loaders = [module(TEXTS, rank=r, world=4).train_dataloader() for r in range(4)]
    counted = [
        row
        for loader in loaders
        for batch in loader
        for row, labels in zip(batch["input_ids"], batch["labels"], strict=True)
        if (labels != -100).any()
    ]
    assert len({len(loader) for loader in loaders}) == 1
    assert len(counted) == len(TEXTS)


def test_texts_are_cut():
    assert max(map(len, seen(module(TEXTS, max_length=2).train_dataloader()))) == 2


def test_images_need_no_tokenizer():
    data = TensorDataset(torch.rand(5, 3, 4, 4), torch.arange(5))
    loader = module(data, task_spec=TaskSpec.vision_tiny(), tokenizer=None).train_dataloader()
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (3, 3, 4, 4)


def test_pairs_are_tokenized_on_both_sides():
    data = [{"text": "ab", "target": "ba"}]
    batch = next(iter(module(data, task_spec=TaskSpec("seq2seq")).train_dataloader()))
    assert batch["labels"].tolist() == [TOKENIZER.encode("ba")]


def test_labels_of_texts_are_kept():
    data = [{"text": "ab", "label": 1}, {"text": "b", "label": 0}]
    spec = TaskSpec("classification")
    batch = next(iter(module(data, task_spec=spec).train_dataloader()))
    assert sorted(batch["labels"].tolist()) == [0, 1]


def test_a_label_beside_a_text_is_nothing_to_a_language_model():
    data = [{"text": text, "label": 1} for text in TEXTS]
    assert seen(module(data).train_dataloader()) == seen(module(TEXTS).train_dataloader())


class TestCollators:
    def test_a_text_task_without_tokenizer_says_both_ways_out(self) -> None:
        with pytest.raises(ValueError, match="tokenizer=.*data_collator="):
            module(TEXTS, tokenizer=None)

    def test_given_beats_registered_beats_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choose, "_registered", {})
        task = TaskSpec("causal_lm")
        chosen = choose.choose_collator(task, TOKENIZER)
        assert type(chosen).__name__ == "LanguageModelingDataCollator"
        choose.register_collator("text", lambda *_: "modality")
        choose.register_collator("causal_lm", lambda *_: "task")
        assert choose.choose_collator(task, TOKENIZER) == "task"
        assert choose.choose_collator(TaskSpec("seq2seq"), TOKENIZER) == "modality"
        assert choose.choose_collator(task, TOKENIZER, "given") == "given"


class TestTokenizers:
    def test_characters_survive(self) -> None:
        assert TOKENIZER.decode(TOKENIZER.encode("abcd")) == "abcd"
        assert TOKENIZER.encode("aX") == [TOKENIZER.encode("a")[0], 2, 1]

    @pytest.mark.parametrize("pad", [0, 1, 15])
    def test_the_models_padding_id_pads_and_nothing_else(self, pad) -> None:
        tokenizer = CharacterTokenizer("abc", VOCABULARY, pad=pad, masks=True)
        ids = tokenizer.encode("abcX")
        assert tokenizer.pad_token_id == pad
        assert pad not in ids
        assert tokenizer.mask_token_id not in ids
        assert len({*tokenizer.all_special_ids, *ids[:3]}) == 7
        assert max(*tokenizer.all_special_ids, *ids) < VOCABULARY
        assert tokenizer.decode(ids) == "abc"
        assert LanguageModelingDataCollator(tokenizer, mlm=True)([ids])["labels"].shape == (1, 5)

    def test_a_vocabulary_without_room_is_refused(self) -> None:
        with pytest.raises(ValueError, match="given 3"):
            CharacterTokenizer("ab", 3)

    @pytest.mark.parametrize(
        "tokenizer",
        [TOKENIZER, TOKENIZER.encode, lambda text: {"input_ids": TOKENIZER.encode(text)}],
    )
    def test_any_kind_is_taken(self, tokenizer) -> None:
        assert encode(tokenizer, "ab") == TOKENIZER.encode("ab")

    def test_one_in_python_is_taken(self) -> None:
        transformers = pytest.importorskip("transformers")
        tokenizer = transformers.ByT5Tokenizer()
        assert not tokenizer.is_fast
        loader = module(["ab", "c"], tokenizer=tokenizer).train_dataloader()
        assert sorted(seen(loader)) == [[100, 101, 1], [102, 1]]

    def test_what_is_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="int has neither"):
            encode(3, "ab")


class TestFiles:
    @pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "txt", "parquet"])
    def test_every_kind_is_read(self, tmp_path: Path, kind: str) -> None:
        datasets = pytest.importorskip("datasets")
        path, data = tmp_path / f"data.{kind}", [{"text": text} for text in TEXTS]
        if kind == "parquet":
            datasets.Dataset.from_list(data).to_parquet(str(path))
        else:
            path.write_text(
                {
                    "json": json.dumps(data),
                    "jsonl": "\n".join(map(json.dumps, data)),
                    "txt": "\n".join(TEXTS),
                }.get(kind, "text\n" + "\n".join(TEXTS))
            )
        loader = module(path).train_dataloader()
        assert seen(loader) == seen(module(TEXTS).train_dataloader())

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.txt", None, "no file"),
            ("a.txt", b"", "is empty"),
            ("a.txt", b"\n \n", "every line is blank"),
            ("a.txt", b"a\nb\xff\n", "line 2: not UTF-8: b'b\\\\xff"),
            ("a.txt", b"a\n\0b\n", "line 2: holds a NUL"),
            ("a.txt", b"\x1f\x8b\x08", "compressed with gzip"),
            ("a.jsonl", b'{"text": "a"}\n{"text":\n', "line 2: no JSON"),
            ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2: an example is an object"),
            ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: no field 'text'; it has txt"),
            ("a.jsonl", b'{"text": "a", "n": 1}\n{"text": "b", "n": "2"}\n', "'n' is str"),
            ("a.jsonl", b'{"text": "a"}\n' + b"{\n" * 5, "line 2.*\n.*line 3.*\n.*line 4.*[^5]$"),
            ("a.txt", b"a" * (1 << 24) + b"b\n", "line 1: 16 MB in one line"),
            ("a.md", b"a\r\nb\xe9\r\n", "line 2: not UTF-8"),
            ("a.csv", b"text\n", "holds no row"),
            ("a.parquet", b"PAR1", "cannot be read as parquet"),
            ("a.pdf", b"x", "data files end in"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_line(self, tmp_path, name, content, said) -> None:
        pytest.importorskip("datasets")
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainingError, match=said):
            read_file(tmp_path / name)

    @pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
    def test_lines_of_windows_and_a_single_row(self, tmp_path: Path, kind: str) -> None:
        pytest.importorskip("datasets")
        header, row = ("text\r\n", "ab") if kind == "csv" else ("", "ab")
        row = '{"text": "ab", "more": null}' if kind == "jsonl" else row
        for count in (1, 3):
            path = tmp_path / f"{count}.{kind}"
            path.write_bytes((header + f"{row}\r\n" * count).encode())
            assert list(read_file(path)["text"]) == ["ab"] * count

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="is a folder"):
            read_file(tmp_path)


class TestLoadersOfTorch:
    """What people have: a TensorDataset and a DataLoader over it."""

    def settings(self) -> TrainingConfig:
        return TrainingConfig(epochs=1, checkpoint_dir=None, console=False, precision="32-true")

    def test_ids_alone_are_a_batch_of_a_causal_lm(self) -> None:
        ids = torch.randint(1, VOCABULARY, (6, 5))
        loader = DataLoader(TensorDataset(ids), batch_size=2)
        named = [{"input_ids": part, "labels": part} for part in ids.split(2)]
        losses = [
            Trainer(tiny_lm(), None, self.settings()).train(data)["loss_history"]
            for data in (loader, named)
        ]
        assert losses[0] == losses[1]

    def test_pairs_are_inputs_and_labels_of_classes(self) -> None:
        images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        loader = DataLoader(TensorDataset(images, labels), batch_size=2)
        size = {"image_size": 8, "num_channels": 3}
        trainer = Trainer(model, size, self.settings(), TaskSpec.vision_tiny())
        assert trainer.train(loader, loader)["val_loss_history"]

    def test_pairs_of_a_causal_lm_are_not_shifted_twice(self) -> None:
        ids = torch.randint(1, VOCABULARY, (6, 5))
        loader = DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=2)
        with pytest.raises(ValueError, match="'input_ids': ..., 'labels': ..."):
            Trainer(tiny_lm(), None, self.settings()).train(loader)

    def test_a_loader_without_a_length_names_the_way_out(self) -> None:
        class Endless(torch.utils.data.IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter([torch.tensor([1, 2, 3])] * 4)

        with pytest.raises(ValueError, match="or the data itself, which is read once"):
            Trainer(tiny_lm(), None, self.settings()).train(DataLoader(Endless(), batch_size=2))
        trainer = Trainer(tiny_lm(), None, self.settings(), None, TOKENIZER)
        assert trainer.train(Endless())["loss_history"]

    def test_batches_that_are_made_as_they_are_asked_for(self) -> None:
        made = [padded(rows(2, seed=seed)) for seed in range(3)]
        losses = [
            Trainer(tiny_lm(), None, self.settings()).train(data)["loss_history"]
            for data in (iter(made), made)
        ]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"batch_size": 2}, "batch_size=2 has no effect: the data comes in batches"),
            ({"max_train_samples": 2}, "max_train_samples=2"),
            ({"validation_split": 0.2}, "validation_split=0.2"),
        ],
    )
    def test_settings_that_made_batches_leave_no_room_for_are_said(self, given, said) -> None:
        config = self.settings().replace(**given)
        with pytest.warns(ConfigWarning, match=said):
            Trainer(tiny_lm(), None, config).train([padded(rows(2))])


class TestTrainer:
    def config(self, tmp_path: Path, **given: Any) -> TrainingConfig:
        settings = {"checkpoint_dir": str(tmp_path), "epochs": 2, "precision": "32-true"}
        return TrainingConfig(**{**settings, **given})

    def test_trains_on_texts_and_sets_validation_aside(self, tmp_path: Path) -> None:
        trainer = Trainer(
            tiny_lm(), None, self.config(tmp_path, validation_split=0.2), None, TOKENIZER
        )
        result = trainer.train(TEXTS)
        assert len(result["val_loss_history"]) == 2

    def test_two_runs_are_equal_and_epochs_differ_in_order(self, tmp_path: Path) -> None:
        models = tiny_lm(), tiny_lm()
        seen: list[list[int]] = [[], []]
        for model, ids in zip(models, seen, strict=True):
            hook = model.embed.register_forward_hook(
                lambda m, given, _, ids=ids: ids.extend(given[0][:, 0].tolist())
            )
            config = self.config(tmp_path, validation_split=0.0, batch_size=5)
            Trainer(model, None, config, None, TOKENIZER).train(TEXTS)
            hook.remove()
        assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
        assert seen[0] == seen[1]
        first, second = seen[0][-20:-10], seen[0][-10:]
        assert first != second
        assert sorted(first) == sorted(second)

    def test_samplers_of_ones_own_are_told_the_epoch(self, tmp_path: Path) -> None:
        told: list[int] = []

        class Sampler(torch.utils.data.SequentialSampler):
            def set_epoch(self, epoch: int) -> None:
                told.append(epoch)

        ids = torch.randint(1, VOCABULARY, (4, 5))
        data = TensorDataset(ids)
        loader = DataLoader(data, batch_size=2, sampler=Sampler(data))
        Trainer(tiny_lm(), None, self.config(tmp_path)).train(loader)
        assert told == [0, 1]

    def test_samples_are_counted(self, tmp_path: Path) -> None:
        config = self.config(tmp_path, max_train_samples=4, validation_split=0.0)
        strategy = OneDevice(torch.device("cpu"))
        for data in (TEXTS, iter(TEXTS)):
            train, val = make_loaders(data, None, config, TaskSpec("lm"), strategy, TOKENIZER)
            assert len(seen(train)) == 4
            assert val is None

    def test_samples_of_a_file_are_counted(self, tmp_path: Path) -> None:
        pytest.importorskip("datasets")
        path = tmp_path / "data.txt"
        path.write_text("\n".join(TEXTS))
        config = self.config(tmp_path, max_train_samples=4, validation_split=0.0)
        strategy = OneDevice(torch.device("cpu"))
        for given in (path, str(path)):
            train, _ = make_loaders(given, None, config, TaskSpec("lm"), strategy, TOKENIZER)
            assert len(seen(train)) == 4

    def test_short_sequences_are_said_before_training(self, tmp_path: Path) -> None:
        data = [*rows(5), torch.tensor([3])]
        with pytest.raises(ValueError, match="filter_short_sequences"):
            Trainer(tiny_lm(), None, self.config(tmp_path), None, TOKENIZER).train(data)
