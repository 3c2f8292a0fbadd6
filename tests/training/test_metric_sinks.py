"""Who is told the numbers of a run; and that nobody of them can stop it."""

from __future__ import annotations

import csv
import socket
import sqlite3
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_transformer_validate.errors import MissingDependency
from pytest_transformer_validate.training.config import TrainingConfig
from pytest_transformer_validate.training.metrics.experiment_db import ExperimentDB
from pytest_transformer_validate.training.metrics.tracker import MetricsTracker
from pytest_transformer_validate.training.metrics.wandb_sink import (
    TrackingWarning,
    WandbSink,
    choose_mode,
)
from pytest_transformer_validate.training.trainer import Trainer
from tests.real import needed
from tests.training.models import padded, rows, tiny_lm

if TYPE_CHECKING:
    from pathlib import Path


def config(folder: Path, **given: Any) -> TrainingConfig:
    settings = {"checkpoint_dir": str(folder / "checkpoints"), "epochs": 2, "run_name": "test"}
    return TrainingConfig(**{"precision": "32-true", **settings, **given})


def trained(settings: TrainingConfig) -> Trainer:
    trainer = Trainer(tiny_lm(), None, settings)
    trainer.train([padded(rows(2))] * 3, [padded(rows(2, seed=1))])
    return trainer


class TestTracker:
    def test_the_signature_of_the_predecessor(self) -> None:
        tracker = MetricsTracker(use_wandb=True, gradient_accumulation_steps=4)
        tracker.log_epoch(0, {"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0}, 1e-3, 0.7, 12.0)
        row = tracker.metrics_history[0]
        assert (row["val/loss"], row["learning_rate"], row["epoch_duration"]) == (1.0, 1e-3, 12.0)
        assert tracker.compute_perplexity(1000.0) == pytest.approx(2.6881171418161356e43)

    def test_accuracy_counts_labels_that_count(self) -> None:
        logits = torch.eye(3)
        found = MetricsTracker().compute_accuracy(logits, torch.tensor([0, 2, -100]))
        assert found == 0.5
        assert MetricsTracker().compute_accuracy(logits, torch.full((3,), -100)) == 0.0

    def test_what_is_not_committed_comes_with_the_next(self) -> None:
        told: list[Any] = []
        sink = SimpleNamespace(log_scalars=lambda values, step: told.append((values, step)))
        tracker = MetricsTracker(sinks=[sink])
        tracker.log_scalar("a", 1.0, step=3, commit=False)
        assert told == []
        tracker.log_scalar("b", 2.0, step=3)
        assert told == [({"a": 1.0, "b": 2.0}, 3)]

    def test_an_open_run_of_wandb_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[Any] = []
        run = SimpleNamespace(log=lambda values, step: told.append((values, step)))
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
        MetricsTracker().log_scalar("a", 1.0, step=1)
        MetricsTracker(use_wandb=False).log_scalar("b", 1.0, step=1)
        assert told == [({"a": 1.0}, 1)]


def test_the_console_gets_a_line_an_epoch(tmp_path, capsys):
    trained(config(tmp_path))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert "train/loss" in lines[0]
    assert "val/loss" in lines[0]
    trained(config(tmp_path, console=False))
    assert capsys.readouterr().err == ""


def test_files_are_written_where_they_are_asked_for(tmp_path):
    table, database = tmp_path / "out" / "metrics.csv", tmp_path / "experiments.db"
    trained(config(tmp_path, metrics_csv=str(table), experiment_db=str(database), notes="why"))
    with table.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    with ExperimentDB(database) as experiments:
        run = experiments.get_run(1)
        assert (run["run_name"], run["status"], run["notes"]) == ("test", "completed", "why")
        metrics = experiments.get_metrics(1)
    steps = metrics[metrics.metric_name == "train/loss"].step.dropna()
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    assert {"train/tokens_per_second", "system/peak_memory_mb"} <= set(metrics.metric_name)


def test_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = Trainer(tiny_lm(), None, config(tmp_path, checkpoint_dir=None)).train(
        [padded(rows(2))]
    )
    assert list(tmp_path.iterdir()) == []
    assert result["checkpoint_path"] is None


def test_a_database_that_is_locked_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pytest_transformer_validate.training.metrics.experiment_db.PATIENCE", 0.05
    )
    path = tmp_path / "experiments.db"
    ExperimentDB(path).close()
    holder = sqlite3.connect(path, isolation_level=None)

    class Hooks:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

        def on_training_start(self) -> None:
            holder.execute("BEGIN EXCLUSIVE")

    settings = config(tmp_path, experiment_db=str(path))
    with pytest.warns(UserWarning, match="numbers wait in memory"):
        result = Trainer(tiny_lm(), None, settings, hooks=Hooks()).train([padded(rows(2))])
    holder.close()
    assert len(result["loss_history"]) == 2


class TestMode:
    @pytest.mark.parametrize(
        ("environment", "mode"),
        [
            ({"WANDB_MODE": "offline"}, "offline"),
            ({"WANDB_MODE": "dryrun"}, "offline"),
            ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x"}, "disabled"),
            ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "x"}, "disabled"),
            ({"WANDB_MODE": "online"}, "online"),
            ({"WANDB_API_KEY": "x" * 40}, "online"),
        ],
    )
    def test_is_what_the_environment_says(self, environment, mode) -> None:
        assert choose_mode(environment) == mode

    def test_without_a_key_the_run_stays_here(self, tmp_path) -> None:
        with pytest.warns(TrackingWarning, match="wandb sync"):
            assert choose_mode({"NETRC": str(tmp_path / "none")}) == "offline"

    def test_a_login_is_a_key(self, tmp_path) -> None:
        found = tmp_path / "netrc"
        words = ["machine", "api.wandb.ai", "login", "user", "password", "x" * 40]
        found.write_text(" ".join(words) + "\n")
        found.chmod(0o600)
        assert choose_mode({"NETRC": str(found)}) == "online"

    def test_no_package_is_said_before_training(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(
            "pytest_transformer_validate.optional._is_there", lambda name: name != "wandb"
        )
        with pytest.raises(MissingDependency, match=r"pytest-transformer-validate\[track\]"):
            trained(config(tmp_path, use_wandb=True))


class TestWandb:
    """With the real client: nothing of it is replaced."""

    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needed("wandb")
        for name in ("WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL"):
            monkeypatch.delenv(name, raising=False)

    def test_offline_everything_is_in_its_folder(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        patience = {"deadline": 120.0}  # a busy machine takes longer than a run would wait
        monkeypatch.setattr(WandbSink.__init__, "__kwdefaults__", patience)
        trained(config(tmp_path, use_wandb=True, wandb_project="p"))
        (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
        names = {b"train/loss", b"val/loss", b"learning_rate", b"gradient_accumulation_steps"}
        until = time.monotonic() + 30  # another process of W&B writes it
        while missing := {name for name in names if name not in kept.read_bytes()}:
            assert time.monotonic() < until, missing
            time.sleep(0.05)

    def test_disabled_makes_nothing(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "disabled")
        trained(config(tmp_path, use_wandb=True))
        assert not (tmp_path / "wandb").exists()

    @pytest.mark.parametrize("kind", ["dead", "hanging"])
    def test_a_server_that_is_gone_costs_the_deadline_at_most(
        self, tmp_path, monkeypatch, kind
    ) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if kind == "hanging":
                server.listen()
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
            sink = WandbSink(config(tmp_path), "test", tmp_path, deadline=1.0)
            start = time.monotonic()
            for step in range(1, 5):
                sink.log_scalars({"train/loss": 1.0}, step)
            assert time.monotonic() - start < 0.5
            with pytest.warns(TrackingWarning, match="training goes on"):
                sink.close("completed")
            assert time.monotonic() - start < 3.0
