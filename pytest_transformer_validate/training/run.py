"""One run of a Trainer: everything that its loop calls."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from pytest_transformer_validate.subject.subject import Subject
from pytest_transformer_validate.training.data.loaders import count_batches, make_loaders
from pytest_transformer_validate.training.hooks import TrainingHooks
from pytest_transformer_validate.training.metrics.experiment_db import ExperimentDB
from pytest_transformer_validate.training.metrics.meter import Meter
from pytest_transformer_validate.training.metrics.sinks import ConsoleSink, CsvSink, DatabaseSink
from pytest_transformer_validate.training.metrics.tracker import MetricsTracker
from pytest_transformer_validate.training.metrics.wandb_sink import ActiveRun, WandbSink
from pytest_transformer_validate.training.optim import Schedule, make_optimizer
from pytest_transformer_validate.training.precision import Precision
from pytest_transformer_validate.training.saving import Saver
from pytest_transformer_validate.training.steps import Stepper
from pytest_transformer_validate.training.stopping import EarlyStopping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pytest_transformer_validate.training.config import TrainingConfig
    from pytest_transformer_validate.training.metrics.tracker import Sink
    from pytest_transformer_validate.training.strategy import OneDevice
    from pytest_transformer_validate.training.trainer import Trainer


class Run:
    """What a run is made of. ``model`` holds the weights, ``called`` is what the loop calls: the
    same, or what compiles and distributes it; ``epoch`` and ``step`` are done ones."""

    def __init__(
        self,
        trainer: Trainer,
        data: tuple[Any, Any],
        strategy: OneDevice,
        resume_from: str | Path | None,
    ) -> None:
        self.config = config = trainer.training_config
        self.strategy = strategy
        self.leads = strategy.rank == 0
        self.hooks = (trainer.hooks if self.leads else None) or TrainingHooks()
        self.precision = Precision(config.effective_precision, strategy.device)
        self.model = self.precision.prepare(trainer.model)
        task = trainer.task_spec
        subject = Subject(
            self.model,
            trainer.config,
            tokenizer=trainer.tokenizer,
            task=None if task is None else task.task_type,
        )
        self.task = task or subject.task
        self.train, self.val = make_loaders(
            *data,
            config,
            self.task,
            strategy,
            trainer.tokenizer,
            trainer.data_collator,
            None if subject.vision else subject.max_length,
        )
        self.model.to(strategy.device)  # now that the data was looked at
        self.stepper = Stepper(subject, self.task)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.steps_an_epoch = math.ceil(
            count_batches(self.train) / config.gradient_accumulation_steps
        )
        steps = self.steps_an_epoch * config.epochs
        self.schedule = Schedule(self.optimizer, steps, config.warmup_ratio)
        self.stopping = EarlyStopping(config, has_validation=self.val is not None)
        half = self.precision.dtype is not torch.float32 and config.compile_mode is None
        self.meter = Meter(self.stepper, strategy.device, half=half)
        self.saver = Saver(self, trainer.run_name)
        self.step = self.epoch = 0
        self.tracker = MetricsTracker(False, config.gradient_accumulation_steps)
        if resume_from is not None:
            self.saver.restore(resume_from)
        if self.leads:
            self.tracker.sinks += _sinks(config, trainer.run_name)
        self.called = strategy.wrap(_compiled(self.model, config))
        subject.model = self.called


def _compiled(model: torch.nn.Module, config: TrainingConfig) -> torch.nn.Module:
    """The model, compiled where the config says so."""
    if config.compile_mode is None:
        return model
    compiled = torch.compile(
        model,
        mode=config.compile_mode,
        fullgraph=config.compile_fullgraph,
        dynamic=config.compile_dynamic,
    )
    return cast("torch.nn.Module", compiled)


def _sinks(config: TrainingConfig, run_name: str) -> Iterator[Sink]:
    """Who is told about a run."""
    if config.console:
        yield ConsoleSink()
    if config.metrics_csv is not None:
        yield CsvSink(Path(config.metrics_csv))
    if config.experiment_db is not None:
        database = ExperimentDB(config.experiment_db)
        yield DatabaseSink(database, run_name, config.to_dict(), config.notes)
    if config.use_wandb:
        folder = Path(config.checkpoint_dir or ".").parent
        wandb = sys.modules.get("wandb")
        is_open = wandb is not None and wandb.run is not None
        yield ActiveRun() if is_open else WandbSink(config, run_name, folder)
