"""Tier 3 from the command line, and the trainer in tests of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_transformer_validate.optional import find
from pytest_transformer_validate.training import Trainer, TrainingConfig
from tests.training.models import padded, rows, tiny_lm

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt"
REVERSED = """

class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient
"""
TEXT = "the cat sat on the mat\nthe dog ate the cat\n" * 40


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What training imports late is not imported within a run, which would take it out again."""
    find("datasets")
    config = TrainingConfig(epochs=1, checkpoint_dir=None, console=False)
    Trainer(tiny_lm(), None, config).train([padded(rows(2))])


@pytest.fixture
def example(pytester: pytest.Pytester) -> pytest.Pytester:
    for path in EXAMPLE.iterdir():
        if path.is_file():
            (pytester.path / path.name).write_bytes(path.read_bytes())
    (pytester.path / "data.txt").write_text(TEXT)
    return pytester


def test_every_check_of_tier_3_runs_and_its_curves_are_recorded(example):
    pytest.importorskip("datasets", reason="--tb-data is read by it")
    args = ("--tb-model=model.py", "--tier3", "--tb-data=data.txt", "--tb-epochs=1")
    result = example.runpytest(*args, "--tb-json=out.json", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, deselected=result.parseoutcomes()["deselected"])
    records = {
        r["check"]: r for r in json.loads((example.path / "out.json").read_text())["records"]
    }
    numbers = {name: record["numbers"] for name, record in records.items()}
    assert len(numbers["loss_curve"]["losses"]) == 40
    assert (
        numbers["one_batch_overfit"]["curves"]["0.003"][-1] < numbers["one_batch_overfit"]["start"]
    )
    assert numbers["fine_tuning"]["value"] < numbers["fine_tuning"]["start"]
    assert len(numbers["fine_tuning"]["val"]) == 1
    assert numbers["seeded_training"]["value"] == 0.0


def test_a_model_that_learns_nothing_fails_with_the_line_that_repeats_it(example):
    path = example.path / "model.py"
    last = "        return self.head("
    assert path.read_text().count(last) == 1
    reversed_ = "        return Reversed.apply(self.head("
    body = path.read_text().replace(last, reversed_)
    line = next(line for line in body.splitlines() if line.startswith(reversed_))
    body = body.replace(line, line + ")")
    path.write_text(body + REVERSED)
    args = ("--tb-model=model.py", "--tb-train", "model.py::tier3::one_batch_overfit")
    result = example.runpytest(*args, "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*one_batch_overfit (tier 3): one batch must be learned by heart",
            "*again: pytest --tb-model=model.py --tb-train 'model.py::tier3::one_batch_overfit'",
        ]
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--tb-data=none.txt", "--tb-data=none.txt: no such file or folder"),
        ("--tb-data=.", "--tb-data must name a file"),
        ("--tb-epochs=0", "--tb-epochs must be a whole number from 1 on, given '0'"),
        ("--tb-time-budget=-1", "--tb-time-budget must be a number of seconds"),
    ],
)
def test_what_is_typed_wrong_is_exit_4(example, option, said):
    result = example.runpytest("--tb-model=model.py", "--tier3", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}*"])


def test_data_that_cannot_be_learned_is_said_with_its_line(example):
    pytest.importorskip("datasets", reason="--tb-data is read by it")
    (example.path / "data.jsonl").write_text('{"text": "a"}\n{"text":\n')
    args = ("--tb-model=model.py", "--tb-train", "--tb-data=data.jsonl")
    result = example.runpytest(*args, "model.py::tier3::fine_tuning")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*data.jsonl, line 2: no JSON*"])


def test_the_time_budget_ends_a_training(example):
    args = ("--tb-model=model.py", "--tb-train", "--tb-time-budget=1e-9", "-rs")
    result = example.runpytest(*args, "model.py::tier3::one_batch_overfit", "--tb-allow-skipped")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*out of time: 1e-09 s*--tb-time-budget gives it more"])


def test_a_test_of_ones_own_trains_and_the_next_gets_the_model_as_loaded(example):
    example.makepyfile(
        """
        import torch

        def test_it_learns(tb_model, tb_trainer, tb_subject):
            ids = tb_subject.batch(2, 8)["input_ids"]
            before = [p.clone() for p in tb_model.parameters()]
            trainer = tb_trainer(epochs=20, learning_rate=1e-2)
            losses = trainer.train([{"input_ids": ids, "labels": ids}])["loss_history"]
            assert losses[-1] < losses[0]
            assert not all(map(torch.equal, before, tb_model.parameters()))
            torch.save(before, "before.pt")

        def test_as_loaded(tb_model):
            assert all(map(torch.equal, torch.load("before.pt"), tb_model.parameters()))
        """
    )
    result = example.runpytest("-o", "tb_model=model.py", "-p", "no:cacheprovider", "-k", "test_")
    result.assert_outcomes(passed=2, deselected=result.parseoutcomes().get("deselected", 0))
