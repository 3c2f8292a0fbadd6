"""The loop against what it has to equal; and every mistake that trainers were known for."""

from __future__ import annotations

import copy
import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_transformer_validate.errors import CheckpointError, ConfigError, TrainingError
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.checkpoints import checkpoints
from pytest_transformer_validate.training.config import ConfigWarning, TrainingConfig
from pytest_transformer_validate.training.hooks import TrainingHooks
from pytest_transformer_validate.training.losses import loss_sum, pairs, target_count
from pytest_transformer_validate.training.optim import gradient_norm, warmup_cosine
from pytest_transformer_validate.training.precision import Precision
from pytest_transformer_validate.training.trainer import Trainer
from tests.training.models import TinyLM, padded, rows, tiny_lm


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "checkpoint_dir": str(tmp_path / "checkpoints"),
        "precision": "32-true",
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "epochs": 1,
        "run_name": "test",
    }


def trained(model: torch.nn.Module, data: Any, val: Any = None, **settings: Any) -> dict[str, Any]:
    return Trainer(model, None, TrainingConfig(**settings)).train(data, val)


def batches(texts: list[torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    return [padded(texts[at : at + size]) for at in range(0, len(texts), size)]


def same(one: torch.nn.Module, other: torch.nn.Module, rtol: float = 1e-5) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


class TestOneStep:
    """One optimizer step, written out by hand in torch."""

    @pytest.mark.parametrize("clip", [None, 0.01])
    def test_is_adamw_on_the_mean_over_all_targets(self, settings, clip) -> None:
        model, reference, batch = tiny_lm(), tiny_lm(), padded(rows(4))
        trained(model, [batch], **settings, gradient_clip_norm=clip, weight_decay=0.1)
        matrices = [p for p in reference.parameters() if p.dim() > 1]
        vectors = [p for p in reference.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.1},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=1e-2,
        )
        logits = reference(batch["input_ids"], batch["attention_mask"])
        labels = batch["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimizer.step()
        same(model, reference)


class TestAccumulation:
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_micro_batches_of_unequal_lengths_are_one_big_batch(self, settings, size) -> None:
        texts, one, many = rows(6), tiny_lm(), tiny_lm()
        big = trained(one, [padded(texts)], **settings)
        small = trained(
            many, batches(texts, size), **settings, gradient_accumulation_steps=6 // size
        )
        same(one, many)
        assert small["final_loss"] == pytest.approx(big["final_loss"], rel=1e-6)
        norm = "gradient_norm"
        assert small["metrics_summary"][norm][0] == pytest.approx(
            big["metrics_summary"][norm][0], rel=1e-5
        )

    def test_the_last_cycle_of_an_epoch_may_be_shorter(self, settings) -> None:
        texts, one, many = rows(5), tiny_lm(), tiny_lm()
        trained(one, [padded(texts[:2]), padded(texts[2:4]), padded(texts[4:])], **settings)
        trained(many, batches(texts, 1), **settings, gradient_accumulation_steps=2)
        same(one, many)

    def test_schedule_and_log_count_optimizer_steps(self, settings) -> None:
        trainer = Trainer(
            tiny_lm(),
            None,
            TrainingConfig(**settings | {"epochs": 2}, gradient_accumulation_steps=4),
        )
        trainer.train(batches(rows(10), 1))
        steps = trainer.tracker.get_step_metrics()
        rates = steps[steps.metric == "learning_rate"]
        assert list(rates.effective_step) == [1, 2, 3, 4, 5, 6]
        assert list(rates.step) == [4, 8, 12, 16, 20, 24]
        expected = [1e-2 * warmup_cosine(at, 6, 0) for at in range(6)]
        assert list(rates.value) == pytest.approx(expected)


class TestPadding:
    def test_never_changes_the_loss(self, settings) -> None:
        texts, one, many = rows(4), tiny_lm(), tiny_lm()
        narrow = trained(one, [padded(texts)], **settings)
        wide = trained(many, [padded(texts, width=20)], **settings)
        assert wide["final_loss"] == pytest.approx(narrow["final_loss"], rel=1e-6)
        same(one, many)

    def test_a_batch_of_ignored_labels_trains_nothing_and_is_no_nan(self, settings) -> None:
        batch = padded(rows(2))
        batch["labels"].fill_(-100)
        result = trained(tiny_lm(), [batch, padded(rows(2))], **settings)
        assert math.isfinite(result["final_loss"])


class TestEpochs:
    def test_the_epochs_loss_is_a_mean_over_targets(self, settings) -> None:
        texts, model = rows(5), tiny_lm()
        settings["learning_rate"] = 1e-30
        result = trained(model, batches(texts, 2), batches(texts, 3), **settings)
        batch = padded(texts)
        logits = model(batch["input_ids"], batch["attention_mask"])
        task = TaskSpec("causal_lm")
        total = loss_sum(*pairs(logits, batch["labels"], task), task)
        mean = total / target_count(batch["labels"], task)
        assert result["final_loss"] == pytest.approx(mean.item(), rel=1e-5)
        assert result["val_loss_history"] == pytest.approx([mean.item()], rel=1e-5)

    def test_the_result_has_the_keys_of_the_predecessor(self, settings, tmp_path) -> None:
        settings["epochs"] = 3
        result = trained(tiny_lm(), batches(rows(6), 2), batches(rows(2, seed=1), 2), **settings)
        columns = {"epoch", "train/loss", "train/perplexity", "train/accuracy", "val/loss"}
        columns |= {"val/perplexity", "val/accuracy", "learning_rate", "gradient_norm"}
        assert set(result["metrics_summary"]) == {*columns, "epoch_duration"}
        assert len(result["loss_history"]) == len(result["val_loss_history"]) == 3
        assert result["best_epoch"] in range(3)
        assert result["workspace_root"] == str(tmp_path)
        assert result["run_name"] == "test"
        assert torch.load(result["checkpoint_path"], weights_only=True)["epoch"] >= 1

    def test_early_stopping_watches_any_metric(self, settings) -> None:
        settings |= {"epochs": 20, "learning_rate": 1e-30}
        result = trained(
            tiny_lm(),
            [padded(rows(2))],
            [padded(rows(2))],
            **settings,
            early_stopping_patience=2,
            early_stopping_metric="val/accuracy",
            early_stopping_mode="max",
        )
        assert len(result["loss_history"]) == 3

    def test_an_unknown_metric_names_those_there_are(self, settings) -> None:
        with pytest.raises(ConfigError, match="there are train/loss"):
            trained(tiny_lm(), [padded(rows(2))], **settings, early_stopping_metric="train/los")

    def test_two_seeded_runs_are_equal(self, settings) -> None:
        one, other = tiny_lm(), tiny_lm()
        trained(one, batches(rows(6), 2), **settings)
        trained(other, batches(rows(6), 2), **settings)
        assert all(map(torch.equal, one.parameters(), other.parameters()))

    def test_weights_that_were_written_to_say_so(self, settings) -> None:
        model = tiny_lm()
        before = [p._version for p in model.parameters()]
        trained(model, [padded(rows(2))], **settings)
        assert all(p._version > v for p, v in zip(model.parameters(), before, strict=True))

    def test_the_models_mode_comes_back(self, settings) -> None:
        model = tiny_lm().eval()
        trained(model, [padded(rows(2))], **settings)
        assert not model.training


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_amp_is_within_the_error_of_its_dtype(settings, precision):
    full, low = tiny_lm(), tiny_lm()
    exact = trained(full, batches(rows(6), 2), **settings)
    mixed = trained(low, batches(rows(6), 2), **settings | {"precision": precision})
    unit = torch.finfo(torch.bfloat16 if precision[0] == "b" else torch.float16).eps
    assert mixed["final_loss"] == pytest.approx(exact["final_loss"], rel=8 * unit)
    assert {p.dtype for p in low.parameters()} == {torch.float32}


def test_gradients_are_clipped_after_they_were_unscaled(settings):
    """The scaler's factor of 65536 is in no norm, and what clips by that norm steps as without."""
    settings |= {"gradient_clip_norm": 1e-3}
    full, scaled = tiny_lm(), tiny_lm()
    exact = trained(full, [padded(rows(4))], **settings)
    found = trained(scaled, [padded(rows(4))], **settings | {"precision": "16-mixed"})
    norm = "gradient_norm"
    assert exact["metrics_summary"][norm][0] > 0.1
    assert found["metrics_summary"][norm][0] == pytest.approx(
        exact["metrics_summary"][norm][0], rel=8 * torch.finfo(torch.float16).eps
    )


def test_what_is_left_of_a_scaled_gradient_has_the_norm_that_was_asked_for():
    model, batch = tiny_lm(), padded(rows(2))
    precision = Precision("16-mixed", torch.device("cpu"))
    logits = model(batch["input_ids"], batch["attention_mask"])
    task = TaskSpec("causal_lm")
    precision.backward(loss_sum(*pairs(logits, batch["labels"], task), task))
    assert gradient_norm(model.parameters()) > 1e4  # scaled
    norm = precision.step(torch.optim.SGD(model.parameters(), lr=1.0), 1e-3)
    assert norm < 1e3
    assert gradient_norm(model.parameters()).item() == pytest.approx(1e-3, rel=1e-3)


def test_a_bigram_source_is_learned_to_its_entropy(settings):
    """The next id follows the last by a known table, so the best loss is the table's entropy."""
    generator = torch.Generator().manual_seed(0)
    table = torch.softmax(2 * torch.randn(8, 8, generator=generator), -1)
    ids = torch.zeros(64, 65, dtype=torch.long)
    for at in range(64):
        ids[:, at + 1] = torch.multinomial(table[ids[:, at]], 1, generator=generator)[:, 0]
    held = ids[:, :-1].flatten()
    entropy = -(table[held] * table[held].log()).sum(-1).mean().item()
    torch.manual_seed(0)
    data = [{"input_ids": part, "labels": part} for part in ids.split(16)]
    settings |= {"epochs": 60, "learning_rate": 2e-2, "save_every_n_epochs": 60}
    result = trained(TinyLM(8, 16), data, **settings, early_stopping_patience=None)
    assert result["final_loss"] == pytest.approx(entropy, abs=0.03)


class TestNonFinite:
    def test_the_run_stops_and_says_where(self, settings, tmp_path) -> None:
        model = tiny_lm()

        def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * (float("nan") if module.training and inputs[0].shape[0] == 1 else 1)

        model.mix.register_forward_hook(spoil)
        texts = rows(5)
        data = [padded(texts[:2]), padded(texts[2:4]), padded(texts[4:])]
        with pytest.raises(TrainingError) as caught:
            trained(model, data, **settings)
        text = str(caught.value)
        assert "optimizer step 3: the loss was nan" in text
        assert "first not finite: the output of mix" in text
        assert all(p.isfinite().all() for p in model.parameters())
        (saved,) = (tmp_path / "checkpoints").glob("*.pt")
        assert str(saved) in text

    def test_an_infinite_gradient_of_a_finite_loss_is_not_applied(self, settings) -> None:
        model = tiny_lm()
        model.head.weight.register_hook(lambda grad: grad * float("inf"))
        untouched = copy.deepcopy(model.state_dict())
        with pytest.raises(TrainingError, match="the gradient of head.weight"):
            trained(model, [padded(rows(2))], **settings)
        assert all(torch.equal(v, untouched[k]) for k, v in model.state_dict().items())


class TestResume:
    def test_at_the_end_of_an_epoch_is_the_same_run(self, settings) -> None:
        settings |= {"save_every_n_epochs": 1, "epochs": 4}
        data, whole, half = batches(rows(6), 2), tiny_lm(), tiny_lm()
        everything = trained(whole, data, **settings)

        class Stop(TrainingHooks):
            def on_epoch_end(self, epoch: int, metrics: Any) -> None:
                if epoch == 1:
                    raise KeyboardInterrupt

        config = TrainingConfig(**settings | {"run_name": "half"})
        trainer = Trainer(half, None, config, hooks=Stop())
        with pytest.raises(KeyboardInterrupt):
            trainer.train(data)
        saved = checkpoints(Path(settings["checkpoint_dir"]), "half")[-1].path
        again = tiny_lm(seed=5)
        result = Trainer(again, None, config).train(data, resume_from=saved)
        assert all(map(torch.equal, whole.parameters(), again.parameters()))
        assert result["loss_history"] == everything["loss_history"]

    def test_a_checkpoint_of_another_model_is_refused(self, settings) -> None:
        result = trained(tiny_lm(), [padded(rows(2))], **settings)
        other = Trainer(TinyLM(width=4), None, TrainingConfig(**settings))
        with pytest.raises(CheckpointError, match="of another model"):
            other.train([padded(rows(2))], resume_from=result["checkpoint_path"])

    def test_under_another_batch_size_and_rate_the_schedule_is_that_of_the_new_run(
        self, settings
    ) -> None:
        settings |= {"save_every_n_epochs": 1, "epochs": 2, "weight_decay": 0.5}
        trained(tiny_lm(), batches(rows(6), 1), **settings)
        (saved,) = Path(settings["checkpoint_dir"]).glob("*epoch0001*.pt")
        changed = {"epochs": 4, "learning_rate": 1e-3, "weight_decay": 0.0, "run_name": "again"}
        trainer = Trainer(tiny_lm(5), None, TrainingConfig(**{**settings, **changed}))
        trainer.train(batches(rows(6), 3), resume_from=saved)
        steps = trainer.tracker.get_step_metrics()
        rates = list(steps[steps.metric == "learning_rate"].value)
        assert rates == pytest.approx([1e-3 * warmup_cosine(at, 8, 0) for at in range(2, 8)])

    def test_a_second_run_of_the_same_name_leaves_the_first_ones_checkpoints(
        self, settings
    ) -> None:
        settings |= {"save_every_n_epochs": 1, "epochs": 2, "keep_best_only": True}
        data, folder = batches(rows(6), 2), Path(settings["checkpoint_dir"])
        first = trained(tiny_lm(), data, **settings | {"epochs": 8})
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        second = trained(tiny_lm(seed=5), data, **settings)
        assert second["final_loss"] > first["final_loss"]
        assert Path(second["checkpoint_path"]) not in kept
        assert torch.load(second["checkpoint_path"], weights_only=True)["epoch"] <= 2
        assert {path: path.read_bytes() for path in kept} == kept

    def test_a_run_that_goes_on_may_have_been_best_before(self, settings) -> None:
        settings |= {"save_every_n_epochs": 1, "keep_best_only": True}
        data, strange = batches(rows(6), 2), batches(rows(6, seed=7), 2)
        trained(tiny_lm(seed=5), data, **settings | {"epochs": 6})  # another's, and better
        first = trained(tiny_lm(), data, strange[:1], **settings | {"epochs": 2})
        again = {"epochs": 4, "learning_rate": 1.0}
        model, best = tiny_lm(), first["checkpoint_path"]
        config = TrainingConfig(**settings | again)
        result = Trainer(model, None, config).train(data, strange[:1], resume_from=best)
        assert min(result["val_loss_history"]) == min(first["val_loss_history"])
        assert result["checkpoint_path"] == best

    def test_the_folder_is_looked_at_before_training(self, settings, tmp_path) -> None:
        (tmp_path / "file").write_text("")
        settings["checkpoint_dir"] = str(tmp_path / "file" / "deep")
        with pytest.raises(ConfigError, match="file is a file, not a folder"):
            trained(tiny_lm(), [padded(rows(2))], **settings)


class TestArguments:
    def test_a_task_may_be_named(self, settings) -> None:
        config = TrainingConfig(**settings)
        result = Trainer(tiny_lm(), None, config, "lm").train([padded(rows(2))])
        assert result["loss_history"]

    def test_a_config_of_another_kind_is_said(self, settings) -> None:
        with pytest.raises(TypeError, match="training_config is a dict"):
            Trainer(tiny_lm(), None, settings)

    def test_hooks_need_every_method(self, settings) -> None:
        class Hooks:
            def on_epoch_end(self, epoch: int, metrics: Any) -> None:
                """All that is wanted."""

        with pytest.raises(TypeError, match="no on_training_start, .*derive from TrainingHooks"):
            Trainer(tiny_lm(), None, TrainingConfig(**settings), hooks=Hooks())


class TestWeights:
    def test_sparse_gradients_are_those_of_a_dense_table(self, settings) -> None:
        sparse, dense = tiny_lm(), tiny_lm()
        sparse.embed.sparse = True
        for model in (sparse, dense):
            trained(model, [padded(rows(3))] * 2, **settings)
        same(sparse, dense)

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_narrow_weights_are_said_where_the_precision_says_float32(
        self, settings, precision
    ) -> None:
        settings["precision"] = precision
        model = tiny_lm().bfloat16()
        with pytest.warns(ConfigWarning, match="the model has bfloat16, which they stay"):
            trained(model, [padded(rows(2))], **settings)

    def test_a_scaler_needs_float32(self, settings) -> None:
        settings["precision"] = "16-mixed"
        with pytest.raises(ConfigError, match=r"call model.float\(\) first"):
            trained(tiny_lm().half(), [padded(rows(2))], **settings)

    def test_a_model_that_gives_more_than_logits(self, settings) -> None:
        class Tuples(TinyLM):
            def forward(self, input_ids: torch.Tensor) -> Any:
                found = super().forward(input_ids)
                return found, [found * 0], None

        torch.manual_seed(0)
        more, plain, data = Tuples(), tiny_lm(), [{**padded([rows(1)[0]])}]
        del data[0]["attention_mask"]
        assert (
            trained(more, data, **settings)["loss_history"]
            == trained(plain, data, **settings)["loss_history"]
        )


class TestData:
    def test_no_batch_is_said(self, settings) -> None:
        with pytest.raises(ValueError, match="gives no batch"):
            trained(tiny_lm(), torch.utils.data.DataLoader([]), **settings)

    def test_a_batch_without_labels_names_what_it_has(self, settings) -> None:
        with pytest.raises(ValueError, match="needs 'labels' for causal_lm; it has input_ids"):
            trained(tiny_lm(), [{"input_ids": torch.ones(1, 3, dtype=torch.long)}], **settings)


def test_the_bar_shows_loss_speed_and_the_time_left(settings, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    trained(tiny_lm(), [padded(rows(2))] * 3, **settings, console=False)
    shown = capsys.readouterr().err
    assert re.search(r"epoch 1/1: 100%.*3/3 \[\d\d:\d\d<\d\d:\d\d.*loss=\d.*tokens=\d+/s", shown)


def test_hooks_are_called_in_order(settings):
    calls: list[str] = []

    class Hooks(TrainingHooks):
        def on_training_start(self) -> None:
            calls.append("start")

        def on_epoch_start(self, epoch: int) -> None:
            calls.append(f"epoch {epoch}")

        def on_batch_end(self, batch_idx: int, loss: float) -> None:
            calls.append(f"batch {batch_idx}")

        def on_validation_end(self, metrics: Any) -> None:
            calls.append(f"validated {sorted(metrics)}")

        def on_epoch_end(self, epoch: int, metrics: Any) -> None:
            calls.append(f"ended {epoch}")

        def on_training_end(self) -> None:
            calls.append("end")

    config = TrainingConfig(**settings)
    data = batches(rows(4), 2)
    Trainer(tiny_lm(), None, config, hooks=Hooks()).train(data, data)
    validated = "validated ['accuracy', 'loss', 'perplexity']"
    assert calls == ["start", "epoch 0", "batch 0", "batch 1", validated, "ended 0", "end"]


def test_settings_without_effect_warn(settings):
    with pytest.warns(ConfigWarning, match="export_dir='out' has no effect"):
        trained(tiny_lm(), [padded(rows(2))], **settings, export_dir="out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(tiny_lm(), [padded(rows(2))], **settings)
