"""The trainer: one visible loop over objects that each do one thing.

An epoch is a pass over the training data; an optimizer step takes
``gradient_accumulation_steps`` micro-batches, fewer at the end of an epoch; a loss is a mean over
every target that counts in an optimizer step, whatever the micro-batches and ranks.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import Diverged
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.config import ConfigWarning, TrainingConfig
from pytest_transformer_validate.training.data.loaders import begin_epoch, grouped
from pytest_transformer_validate.training.hooks import TrainingHooks
from pytest_transformer_validate.training.losses import perplexity
from pytest_transformer_validate.training.nonfinite import first_bad_tensor
from pytest_transformer_validate.training.progress import Progress
from pytest_transformer_validate.training.recompute import recomputing
from pytest_transformer_validate.training.run import Run
from pytest_transformer_validate.training.seeds import set_random_seed, settings_kept
from pytest_transformer_validate.training.strategy import OneDevice, make_strategy
from pytest_transformer_validate.training.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_transformer_validate.training.data.loaders import Batches
    from pytest_transformer_validate.training.metrics.tracker import MetricsTracker
    from pytest_transformer_validate.training.window import StepNumbers


class Trainer:
    """Trains any model that the validator can load, in plain PyTorch.

    Args:
        model: the module; trained where it is, on the GPU if there is one.
        config: the model's configuration: an object with attributes, a dict, or None.
        training_config: the settings of the run.
        task_spec: what the model is trained for, or the name of a task; found from the model where
            it is None.
        tokenizer: turns texts into ids; a text task needs it, or a ``data_collator``.
        data_collator: makes a batch of a list of examples; chosen by the task where it is None.
        hooks: called while the run goes on.

    ``tracker`` holds the numbers of the last run. Raises TypeError for a model, a config
    or hooks of another kind.
    """

    tracker: MetricsTracker

    def __init__(
        self,
        model: torch.nn.Module,
        config: Any,
        training_config: TrainingConfig,
        task_spec: TaskSpec | str | None = None,
        tokenizer: Any = None,
        data_collator: Any = None,
        hooks: TrainingHooks | None = None,
    ) -> None:
        _refuse_strange(model, training_config, hooks)
        self.model = model
        self.config = config
        self.training_config = training_config
        self.task_spec = TaskSpec(task_spec) if isinstance(task_spec, str) else task_spec
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
            val_data: the same; without it ``validation_split`` of the training data is set aside
                (of a DataLoader nothing is).
            resume_from: a checkpoint of an earlier run of the same config.

        Returns:
            ``metrics_summary`` (a DataFrame, a row an epoch; a list of dicts without pandas),
            ``best_epoch``, ``final_loss``, ``checkpoint_path``, ``training_time`` (seconds),
            ``workspace_root``, ``run_name``, ``loss_history``, ``val_loss_history``.

        Raises:
            ValueError: the data gives no batch, or no labels.
            ConfigError: this process cannot have what the config asks for.
            Diverged: a loss or gradient is not finite; the weights are those of the last
                good step.
        """
        config = self.training_config
        for line in config.without_effect():
            warnings.warn(line, ConfigWarning, stacklevel=2)
        strategy = self.strategy()
        with settings_kept(), _modes_kept(self.model):
            set_random_seed(config.random_seed, config.deterministic)
            resume_from = resume_from or config.resume_from_checkpoint
            run = Run(self, (train_data, val_data), strategy, resume_from)
            self.tracker = run.tracker
            with recomputing(run.model, asked=config.activation_checkpointing):
                return self._fit(run)

    def strategy(self) -> OneDevice:
        """Where the run happens: on one device, or as one rank of several. Raises ConfigError."""
        return make_strategy(self.training_config)

    def _fit(self, run: Run) -> dict[str, Any]:
        start, status = time.perf_counter(), "failed"
        run.hooks.on_training_start()
        try:
            while run.epoch < run.config.epochs and not run.stopping.over:
                self._epoch(run)
            status = "completed"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            # Fused kernels write to weights without a trace that autograd, or a test, could see.
            torch.autograd.graph.increment_version(list(run.model.parameters()))
            run.tracker.close(status)
        run.hooks.on_training_end()
        run.strategy.wait()
        return run.saver.result(time.perf_counter() - start)

    def _epoch(self, run: Run) -> None:
        """One pass over the training data, one over the validation data, one row of metrics."""
        start = time.perf_counter()
        begin_epoch(run.train, run.epoch)
        run.hooks.on_epoch_start(run.epoch)
        numbers = self._train_epoch(run)
        if not any(n.tokens for n in numbers):
            raise ValueError("the training data has no target: every label is ignored")
        val = None if run.val is None else self._evaluate(run, run.val)
        norms = [n.norm for n in numbers if math.isfinite(n.norm)]
        row = run.tracker.log_epoch(
            run.epoch,
            _summary(numbers),
            val,
            learning_rate=numbers[-1].learning_rate,
            gradient_norm=sum(norms) / max(len(norms), 1),
            epoch_duration=time.perf_counter() - start,
        )
        run.epoch += 1
        run.stopping.see(row)
        run.saver.save(row, last=run.epoch == run.config.epochs or run.stopping.over)
        run.hooks.on_epoch_end(run.epoch - 1, row)

    def _train_epoch(self, run: Run) -> list[StepNumbers]:
        """The loop."""
        run.called.train()
        run.meter.restart()
        window, done = Window(), []
        with Progress(run, total=run.steps_an_epoch) as progress:
            for batches in grouped(run.train, run.config.gradient_accumulation_steps):
                count = run.strategy.sum(sum(map(run.stepper.count, batches)))
                share = run.strategy.share(count)
                sums = []
                for batch in batches:
                    with run.strategy.accumulating(run.called, last=batch is batches[-1]):
                        with run.precision.forward():
                            result = run.stepper(batch)
                        run.precision.backward(result.loss * share)
                    sums.append(result.sums)
                norm = run.precision.step(run.optimizer, run.config.gradient_clip_norm)
                run.optimizer.zero_grad(set_to_none=True)
                run.step += 1
                sums = run.strategy.pool(sums)
                window.add(run.step, sums, count, norm, run.schedule.learning_rate, batches)
                run.schedule.step()
                if window.due:
                    done += self._read(run, window, progress)
            done += self._read(run, window, progress)
        return done

    def _read(self, run: Run, window: Window, progress: Progress) -> list[StepNumbers]:
        """Take the numbers of the last steps from the device; stop at one that is not finite."""
        numbers = window.read()
        for n in numbers:
            if not math.isfinite(n.loss) or not (math.isfinite(n.norm) or run.precision.scales):
                self._stop(run, window, n)
            values = {"train/loss": n.loss, "train/accuracy": n.correct / max(n.tokens, 1)}
            values |= {"learning_rate": n.learning_rate, "gradient_norm": n.norm}
            run.tracker.log_scalars(values, n.step)
            run.hooks.on_batch_end(n.step - 1, n.loss)
        if numbers:
            speed = run.meter.read(numbers, window.batches(run.step))
            run.tracker.log_scalars(speed, run.step)
            progress.show(numbers, speed)
        window.forget()
        return numbers

    def _stop(self, run: Run, window: Window, wrong: StepNumbers) -> None:
        with run.stepper.plain():
            batches = window.batches(wrong.step)
            bad = first_bad_tensor(run.model, run.stepper, run.precision, batches)
        saved = run.saver.save_last_good()
        places = "the model" if saved is None else f"the model and in {saved}"
        raise Diverged(
            f"training stopped in optimizer step {wrong.step}: the loss was {wrong.loss:g}, the "
            f"norm of the gradients {wrong.norm:g}\n  first not finite: {bad}\n  that step was "
            f"not taken; the weights before it are in {places}"
        )

    @torch.no_grad()
    def _evaluate(self, run: Run, loader: Batches) -> dict[str, float]:
        """Loss, perplexity and accuracy over all targets of the validation data."""
        run.called.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=run.strategy.device)
        for batch in loader:
            with run.precision.forward():
                result = run.stepper(batch)
            count = torch.tensor(float(run.stepper.count(batch)), device=sums.device)
            sums += torch.stack([*result.sums, count])
        loss, correct, count = run.strategy.sum(sums).tolist()
        if not count:
            raise ValueError("the validation data has no target: every label is ignored")
        metrics = {"loss": loss / count, "accuracy": correct / count}
        metrics["perplexity"] = perplexity(metrics["loss"])
        run.hooks.on_validation_end(metrics)
        return metrics


class DeviceTrainer(Trainer):
    """A trainer in this one process, on the device where the model is."""

    def strategy(self) -> OneDevice:
        found = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return OneDevice(found)


def _refuse_strange(model: object, config: object, hooks: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}, no torch.nn.Module")
    if not isinstance(config, TrainingConfig):
        raise TypeError(
            f"training_config is a {type(config).__name__}; make one: TrainingConfig(epochs=3)"
        )
    names = [name for name in vars(TrainingHooks) if name.startswith("on_")]
    missing = [name for name in names if hooks is not None and not hasattr(hooks, name)]
    if missing:
        raise TypeError(
            f"hooks of type {type(hooks).__name__} have no {', '.join(missing)}; derive from "
            "TrainingHooks and override what you need"
        )


def _summary(numbers: list[StepNumbers]) -> dict[str, float]:
    """Means over all targets of an epoch."""
    tokens = max(sum(n.tokens for n in numbers), 1)
    loss = sum(n.loss * n.tokens for n in numbers) / tokens
    return {"loss": loss, "accuracy": sum(n.correct for n in numbers) / tokens}


@contextlib.contextmanager
def _modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Give every module the mode back that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
