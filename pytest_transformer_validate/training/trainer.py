"""The trainer: one visible loop over objects that each do one thing.

An epoch is a pass over the training data; an optimizer step takes
``gradient_accumulation_steps`` micro-batches, fewer at the end of an epoch; a loss is a mean over
every target that counts in an optimizer step, whatever the micro-batches and ranks.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader, Subset

from pytest_transformer_validate.errors import TrainingError
from pytest_transformer_validate.subject.subject import Subject
from pytest_transformer_validate.training.data.module import Loader, UniversalDataModule
from pytest_transformer_validate.training.data.quality import check_first_batches
from pytest_transformer_validate.training.losses import perplexity
from pytest_transformer_validate.training.metrics.tracker import MetricsTracker
from pytest_transformer_validate.training.nonfinite import first_bad_tensor
from pytest_transformer_validate.training.optim import Schedule, make_optimizer
from pytest_transformer_validate.training.precision import Precision
from pytest_transformer_validate.training.progress import Progress
from pytest_transformer_validate.training.saving import Saver
from pytest_transformer_validate.training.seeds import set_random_seed, settings_kept
from pytest_transformer_validate.training.steps import Stepper
from pytest_transformer_validate.training.stopping import EarlyStopping
from pytest_transformer_validate.training.strategy import ConfigWarning, make_strategy
from pytest_transformer_validate.training.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from pytest_transformer_validate.task import TaskSpec
    from pytest_transformer_validate.training.config import TrainingConfig
    from pytest_transformer_validate.training.hooks import TrainingHooks
    from pytest_transformer_validate.training.strategy import OneDevice
    from pytest_transformer_validate.training.window import StepNumbers

    Batches = Iterable[Mapping[str, torch.Tensor]]


class Run:
    """One run of a Trainer: everything that the loop calls."""

    def __init__(
        self,
        trainer: Trainer,
        train: Batches,
        val: Batches | None,
        strategy: OneDevice,
        resume_from: str | Path | None,
    ) -> None:
        self.config = config = trainer.training_config
        self.hooks = trainer.hooks
        self.train, self.val = train, val
        self.strategy = strategy
        self.precision = Precision(config.effective_precision, strategy.device)
        model = self.precision.prepare(trainer.model.to(strategy.device))
        self.subject = Subject(model, trainer.config, tokenizer=trainer.tokenizer)
        self.task = trainer.task_spec or self.subject.task
        self.stepper = Stepper(self.subject, self.task)
        self.model = model
        self.optimizer = make_optimizer(model, config.optim)
        self.steps_an_epoch = math.ceil(_length(train) / config.gradient_accumulation_steps)
        steps = self.steps_an_epoch * config.epochs
        self.schedule = Schedule(self.optimizer, steps, config.warmup_ratio)
        self.tracker = trainer.make_tracker()
        self.stopping = EarlyStopping(config, has_validation=val is not None)
        self.saver = Saver(self, trainer.run_name)
        self.step = 0
        self.epoch = 0
        if resume_from is not None:
            self.saver.restore(resume_from)
        self.called = trainer.called(strategy.wrap(model))
        self.subject.model = self.called


class Trainer:
    """Trains any model that the validator can load, in plain PyTorch.

    Args:
        model: the module; trained where it is, on the GPU if there is one.
        config: the model's configuration: an object with attributes, a dict, or None.
        training_config: the settings of the run.
        task_spec: what the model is trained for; found from the model where it is None.
        tokenizer: turns texts into ids; a text task needs it, or a ``data_collator``.
        data_collator: makes a batch of a list of examples; chosen by the task where it is None.
        hooks: called while the run goes on.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: Any,
        training_config: TrainingConfig,
        task_spec: TaskSpec | None = None,
        tokenizer: Any = None,
        data_collator: Any = None,
        hooks: TrainingHooks | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.training_config = training_config
        self.task_spec = task_spec
        self.tokenizer = tokenizer
        self.data_collator = data_collator
        self.hooks = hooks
        self.run_name = training_config.run_name or time.strftime("run_%Y%m%d_%H%M%S")

    def train(
        self, train_data: Any, val_data: Any = None, resume_from: str | Path | None = None
    ) -> dict[str, Any]:
        """Train, and return what came of it.

        Args:
            train_data: a DataLoader, or what UniversalDataModule takes.
            val_data: the same; without it ``validation_split`` of the training data is set aside.
            resume_from: a checkpoint of an earlier run of the same config.

        Returns:
            ``metrics_summary`` (a DataFrame, a row an epoch), ``best_epoch``, ``final_loss``,
            ``checkpoint_path``, ``training_time`` (seconds), ``workspace_root``, ``run_name``,
            ``loss_history``, ``val_loss_history``.

        Raises:
            ValueError: the data gives no batch, or no labels.
            ConfigError: this process cannot have what the config asks for.
            TrainingError: a loss or gradient is not finite; the weights are those of the last
                good step.
        """
        for line in self.training_config.without_effect():
            warnings.warn(line, ConfigWarning, stacklevel=2)
        resume_from = resume_from or self.training_config.resume_from_checkpoint
        with settings_kept():
            strategy = make_strategy(self.training_config)
            try:
                set_random_seed(
                    self.training_config.random_seed, self.training_config.deterministic
                )
                train, val = self.loaders(train_data, val_data, strategy)
                return self._fit(Run(self, train, val, strategy, resume_from))
            finally:
                strategy.close()

    def _fit(self, run: Run) -> dict[str, Any]:
        start, status = time.perf_counter(), "failed"
        was_training = self.model.training
        if run.strategy.rank == 0 and self.hooks:
            self.hooks.on_training_start()
        try:
            while run.epoch < run.config.epochs and not run.stopping.over:
                self._epoch(run)
            status = "completed"
        finally:
            self.model.train(was_training)
            run.tracker.close(status)
        if run.strategy.rank == 0 and self.hooks:
            self.hooks.on_training_end()
        return run.saver.result(time.perf_counter() - start)

    def _epoch(self, run: Run) -> None:
        """One pass over the training data, one over the validation data, one row of metrics."""
        start = time.perf_counter()
        if isinstance(run.train, Loader):
            run.train.set_epoch(run.epoch)
        if run.strategy.rank == 0 and self.hooks:
            self.hooks.on_epoch_start(run.epoch)
        numbers = self._train_epoch(run)
        tokens = max(sum(n.tokens for n in numbers), 1)
        train = {
            "loss": sum(n.loss * n.tokens for n in numbers) / tokens,
            "accuracy": sum(n.correct for n in numbers) / tokens,
        }
        val = None if run.val is None else self._evaluate(run, run.val)
        row = run.tracker.log_epoch(
            run.epoch,
            train,
            val,
            learning_rate=numbers[-1].learning_rate,
            gradient_norm=sum(n.norm for n in numbers) / len(numbers),
            epoch_duration=time.perf_counter() - start,
        )
        run.epoch += 1
        run.stopping.see(row)
        run.saver.save(row, last=run.epoch == run.config.epochs or run.stopping.over)
        if run.strategy.rank == 0 and self.hooks:
            self.hooks.on_epoch_end(run.epoch - 1, row)

    def _train_epoch(self, run: Run) -> list[StepNumbers]:
        """The loop."""
        run.called.train()
        window, done = Window(), []
        with Progress(run, total=run.steps_an_epoch) as progress:
            for batches in _grouped(run.train, run.config.gradient_accumulation_steps):
                count = run.strategy.sum(sum(run.stepper.count(batch) for batch in batches))
                scale = run.strategy.world / torch.as_tensor(count).clamp(min=1)
                loss = correct = torch.zeros((), device=run.strategy.device)
                for at, batch in enumerate(batches):
                    last = at == len(batches) - 1
                    with run.strategy.accumulating(run.called, last), run.precision.forward():
                        result = run.stepper(batch)
                        run.precision.backward(result.loss * scale)
                    loss = loss + result.loss.detach()
                    correct = correct + result.correct
                norm = run.precision.step(run.optimizer, run.config.gradient_clip_norm)
                run.optimizer.zero_grad(set_to_none=True)
                run.step += 1
                loss, correct = run.strategy.sum(torch.stack([loss, correct]))
                rate = run.schedule.learning_rate
                window.add(run.step, (loss, count, correct, norm), rate, batches)
                run.schedule.step()
                if window.due:
                    done += self._read(run, window, progress)
            done += self._read(run, window, progress)
        return done

    def _read(self, run: Run, window: Window, progress: Progress) -> list[StepNumbers]:
        """Take the numbers of the last steps from the device; stop at one that is not finite."""
        numbers = window.read()
        for n in numbers:
            wrong = not math.isfinite(n.loss) or not math.isfinite(n.norm)
            if wrong and not (run.precision.scales and math.isfinite(n.loss)):
                self._stop(run, window, n)
            values = {"train/loss": n.loss, "learning_rate": n.learning_rate}
            values |= {"gradient_norm": n.norm, "train/accuracy": n.correct / max(n.tokens, 1)}
            run.tracker.log_scalars(values, n.step)
            if run.strategy.rank == 0 and self.hooks:
                self.hooks.on_batch_end(n.step - 1, n.loss)
        progress.show(numbers)
        window.forget()
        return numbers

    def _stop(self, run: Run, window: Window, wrong: StepNumbers) -> None:
        bad = first_bad_tensor(self.model, run.stepper, run.precision, window.batches(wrong.step))
        saved = run.saver.save_last_good()
        raise TrainingError(
            f"training stopped in optimizer step {wrong.step}: the loss was {wrong.loss:g}, the "
            f"norm of the gradients {wrong.norm:g}\n  first not finite: {bad}\n  that step was "
            f"not taken; the weights before it are in the model and in {saved}"
        )

    @torch.no_grad()
    def _evaluate(self, run: Run, loader: Batches) -> dict[str, float]:
        """Loss, perplexity and accuracy over all targets of the validation data."""
        run.called.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=run.strategy.device)
        for batch in loader:
            with run.precision.forward():
                result = run.stepper(batch)
            count = torch.tensor(run.stepper.count(batch), device=sums.device)
            sums += torch.stack([result.loss, result.correct, count])
        loss, correct, count = run.strategy.sum(sums).tolist()
        if not count:
            raise ValueError("the validation data has no target: every label is ignored")
        metrics = {"loss": loss / count, "accuracy": correct / count}
        metrics["perplexity"] = perplexity(metrics["loss"])
        if run.strategy.rank == 0 and self.hooks:
            self.hooks.on_validation_end(metrics)
        return metrics

    # What tells one kind of run from another.

    def make_tracker(self) -> MetricsTracker:
        """Who is told about the run."""
        return MetricsTracker(
            gradient_accumulation_steps=self.training_config.gradient_accumulation_steps
        )

    def called(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model as the loop calls it: compiled where the config says so."""
        config = self.training_config
        if config.compile_mode is None:
            return model
        compiled = torch.compile(
            model,
            mode=config.compile_mode,
            fullgraph=config.compile_fullgraph,
            dynamic=config.compile_dynamic,
        )
        return cast("torch.nn.Module", compiled)

    def loaders(
        self, train_data: Any, val_data: Any, strategy: OneDevice
    ) -> tuple[Batches, Batches | None]:
        """Loaders of training and validation data; those that are given are taken as they are."""
        if _gives_batches(train_data):
            return train_data, val_data
        config = self.training_config
        data = UniversalDataModule(
            _first(train_data, config.max_train_samples),
            _first(val_data, config.max_val_samples),
            self.task_spec or Subject(self.model, self.config, tokenizer=self.tokenizer).task,
            self.tokenizer,
            self.data_collator,
            batch_size=config.batch_size,
            val_split=config.validation_split,
            num_workers=0,
            seed=config.random_seed,
            max_length=config.max_seq_len,
            rank=strategy.rank,
            world=strategy.world,
        )
        train = data.train_dataloader()
        check_first_batches(train, data.task.task_type)
        train.set_epoch(0)
        return train, data.val_dataloader()


def _gives_batches(data: Any) -> bool:
    """Whether data is a loader: torch's, or a sequence whose items are batches of tensors."""
    if isinstance(data, DataLoader | Loader):
        return True
    first = data[0] if isinstance(data, list | tuple) and data else None
    ids = first.get("input_ids", first.get("pixel_values")) if isinstance(first, dict) else None
    return isinstance(ids, torch.Tensor) and ids.dim() in (2, 4)


def _first(data: Any, most: int | None) -> Any:
    """At most ``most`` examples."""
    if data is None or most is None or not hasattr(data, "__len__") or len(data) <= most:
        return data
    if hasattr(data, "select"):
        return data.select(range(most))
    return data[:most] if isinstance(data, list | tuple) else Subset(data, list(range(most)))


def _grouped(loader: Batches, size: int) -> Iterator[list[Mapping[str, torch.Tensor]]]:
    """Batches by optimizer step; the last group of an epoch may be smaller."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def _length(loader: Batches) -> int:
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            "the number of batches has to be known, for the schedule: give a loader that has a "
            "length, or set max_train_samples"
        ) from None
    if not count:
        raise ValueError("the training data gives no batch")
    return count
