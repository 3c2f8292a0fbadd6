"""Quality: what is said of data before it is trained on."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch

from pytest_transformer_validate.training.data.quality import (
    TASK_MIN_SEQ_LEN,
    QualityWarning,
    SequenceLengthValidator,
    check_first_batches,
    filter_short_sequences,
    severity_of,
)
from tests.training.models import padded


def data(short: int, long: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [1]}] * short + [{"input_ids": [1, 2, 3]}] * long


@pytest.mark.parametrize(
    ("rate", "severity"),
    [
        (0.0, "excellent"),
        (0.0999, "excellent"),
        (0.10, "good"),
        (0.20, "high"),
        (0.3999, "high"),
        (0.40, "very_high"),
        (0.60, "critical"),
        (1.0, "critical"),
    ],
)
def test_a_rate_on_a_border_is_the_worse_one(rate, severity):
    assert severity_of(rate) == severity


def test_the_report_has_the_predecessors_numbers():
    report = SequenceLengthValidator(2).validate(data(3, 17))
    assert (report.severity, report.passed) == ("good", True)
    assert report.metrics == {
        "filter_rate": 0.15,
        "sample_size": 20,
        "dataset_size": 20,
        "valid_sequences": 17,
        "filtered_sequences": 3,
    }
    assert "filter_short_sequences(dataset, min_length=2)" in report.warnings[0]
    assert not SequenceLengthValidator(2).validate(data(1, 99)).warnings


def test_the_sample_is_random_not_the_first_rows():
    report = SequenceLengthValidator(2, seed=1).validate(data(1_000, 9_000))
    assert report.metrics["sample_size"] == 1_000
    assert report.metrics["filter_rate"] == pytest.approx(0.1, abs=0.03)


def test_data_without_a_length_is_read_from_its_beginning():
    report = SequenceLengthValidator(2).validate(iter(data(0, 5)))
    assert report.metrics["dataset_size"] is None
    assert report.metrics["sample_size"] == 5


class TestCritical:
    def test_warns_where_nobody_can_be_asked(self, monkeypatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("no\n"))
        with pytest.warns(QualityWarning, match="hardly anything would be left"):
            SequenceLengthValidator(2).validate(data(9, 1))

    @pytest.mark.parametrize(("answer", "raises"), [("no\n", True), ("yes\n", False)])
    def test_asks_a_person(self, monkeypatch, answer, raises) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        if raises:
            with pytest.raises(ValueError, match="stopped"):
                SequenceLengthValidator(2).validate(data(9, 1))
        else:
            assert SequenceLengthValidator(2).validate(data(9, 1)).severity == "critical"


class TestFilter:
    def test_lists_stay_lists(self) -> None:
        with pytest.warns(QualityWarning, match="2 of 5 sequences"):
            assert filter_short_sequences(data(2, 3)) == data(0, 3)

    def test_lengths_are_those_of_the_mask(self) -> None:
        rows = [{"input_ids": [1, 2, 0], "attention_mask": [1, 0, 0]}, *data(0, 1)]
        assert filter_short_sequences(rows, verbose=False) == data(0, 1)

    def test_datasets_of_torch_become_subsets(self) -> None:
        class Rows(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 5

            def __getitem__(self, at: int) -> Any:
                return data(2, 3)[at]

        kept = filter_short_sequences(Rows(), verbose=False)
        assert [kept[at] for at in range(len(kept))] == data(0, 3)


class TestFilterArrow:
    """Hugging Face datasets: the same examples as a Python predicate for each row leaves."""

    def kinds(self) -> dict[str, Any]:
        datasets = pytest.importorskip("datasets")
        ids = [[1] * (n % 4) for n in range(20)]
        plain = datasets.Dataset.from_dict({"input_ids": ids, "row": list(range(20))})
        numbers = datasets.List(datasets.Value("int32"), length=3)
        masks = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
        fixed = {"input_ids": [[5, 6, 7]] * 4, "attention_mask": masks}
        features = datasets.Features({"input_ids": numbers, "attention_mask": numbers})
        return {
            "plain": plain,
            "chunks": datasets.concatenate_datasets([plain, plain.select(range(3, 9))]),
            "shuffled part": plain.select(range(5, 15)).shuffle(seed=1),
            "null": datasets.Dataset.from_dict({"input_ids": [None, [1, 2], [1]]}),
            "masks": datasets.Dataset.from_dict(fixed).select([3, 0, 1, 2]),
            "masks of one size": datasets.Dataset.from_dict(fixed, features=features),
            "nothing left": plain.select([0, 4]),
        }

    @pytest.mark.parametrize(
        "kind",
        [
            "plain",
            "chunks",
            "shuffled part",
            "null",
            "masks",
            "masks of one size",
            "nothing left",
        ],
    )
    def test_is_what_a_predicate_gives(self, kind: str) -> None:
        whole = self.kinds()[kind]

        def long(row: Any) -> bool:
            mask = row.get("attention_mask")
            return (len(row["input_ids"] or []) if mask is None else sum(mask)) >= 2

        found = filter_short_sequences(whole, 2, verbose=False)
        assert type(found) is type(whole)
        assert found[:] == whole.filter(long)[:]
        assert filter_short_sequences(found, 2, verbose=False)[:] == found[:]

    def test_what_is_left_looks_as_before_and_can_be_worked_on(self) -> None:
        whole = self.kinds()["plain"].with_format("torch", columns=["input_ids"])
        found = filter_short_sequences(whole, 3, verbose=False)
        assert found.format == whole.format
        assert isinstance(found[0]["input_ids"], torch.Tensor)
        again = filter_short_sequences(whole, 3, verbose=False)
        assert found._fingerprint == again._fingerprint != whole._fingerprint
        lengths = found.with_format(None).map(lambda row: {"n": len(row["input_ids"])})
        assert lengths["n"][:] == [3] * 5

    def test_texts_are_read(self) -> None:
        datasets = pytest.importorskip("datasets")
        data = datasets.Dataset.from_dict({"text": ["a", "abc"]})
        assert filter_short_sequences(data, 2, "text", verbose=False)["text"][:] == ["abc"]

    def test_not_one_row_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = self.kinds()["shuffled part"]
        monkeypatch.setattr(type(data), "_getitem", None)
        assert len(filter_short_sequences(data, 2, verbose=False)) == 5


class TestFirstBatches:
    def test_count_by_the_mask(self) -> None:
        batch = padded([torch.tensor([1]), torch.tensor([1, 2, 3])])
        with pytest.raises(ValueError, match="1 of the first 2 sequences have fewer than 2"):
            check_first_batches([batch], "causal_lm")
        check_first_batches([batch], "classification")

    def test_one_in_a_hundred_is_let_go(self) -> None:
        long, short = torch.tensor([1, 2, 3]), torch.tensor([1])
        check_first_batches([padded([long] * 99 + [short])], "causal_lm")
        with pytest.raises(ValueError, match="2 of the first 100"):
            check_first_batches([padded([long] * 98 + [short] * 2)], "causal_lm")

    def test_only_the_first_ten_are_read(self) -> None:
        batches = [padded([torch.tensor([1, 2])])] * 10 + [padded([torch.tensor([1])])]
        check_first_batches(batches, "causal_lm")


def test_the_least_lengths_are_the_predecessors():
    assert TASK_MIN_SEQ_LEN["lm"] == TASK_MIN_SEQ_LEN["seq2seq"] == 2
    assert TASK_MIN_SEQ_LEN["text_classification"] == 1
    assert TASK_MIN_SEQ_LEN["vision_classification"] == 0
