"""The same training through PyTorch Lightning: same loss, data, optimizer, checkpoints."""

from __future__ import annotations

import functools
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import Diverged
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.subject.subject import Subject
from pytest_transformer_validate.training.config import TrainingConfig
from pytest_transformer_validate.training.data.loaders import count_batches
from pytest_transformer_validate.training.data.module import UniversalDataModule
from pytest_transformer_validate.training.metrics.tracker import MetricsTracker
from pytest_transformer_validate.training.optim import Schedule, make_optimizer
from pytest_transformer_validate.training.precision import Precision
from pytest_transformer_validate.training.saving import Saver
from pytest_transformer_validate.training.steps import Stepper
from pytest_transformer_validate.training.stopping import EarlyStopping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.task import TaskSpec

_SHORT = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}


@dataclass
class Parts:
    """What a run is made of, as the Saver knows it."""

    config: TrainingConfig
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    stopping: EarlyStopping
    tracker: MetricsTracker
    precision: Precision
    leads: bool = True
    step: int = 0
    epoch: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)


class TrainingCoordinator:
    """Trains through ``pytorch_lightning.Trainer``.

    Args:
        output_dir: checkpoints go to the folder ``checkpoints`` in it.
        use_gpu: take a GPU where there is one.
        precision: Lightning's name for it; ``16``, ``bf16`` and ``32`` are short for ``16-mixed``,
            ``bf16-mixed`` and ``32-true``. None: ``16-mixed`` on a GPU, else ``32-true``.
        gradient_clip_val: bound of the norm of all gradients, 0 or None: no bound.
        strategy, devices, num_nodes: Lightning's.
        max_epochs: used where ``train`` names none.
        precision_str: another name of ``precision``.

    Raises MissingDependency without pytorch-lightning.
    """

    def __init__(
        self,
        output_dir: str | Path = "./training_output",
        use_gpu: bool = True,
        precision: str | None = None,
        gradient_clip_val: float | None = 1.0,
        strategy: str = "auto",
        devices: Any = None,
        num_nodes: int = 1,
        *,
        max_epochs: int = 3,
        precision_str: str | None = None,
    ) -> None:
        self._lightning: Any = require("pytorch_lightning", extra="lightning")
        self.output_dir = Path(output_dir)
        self.gpu = use_gpu and torch.cuda.is_available()
        named = precision_str or precision or ("16-mixed" if self.gpu else "32-true")
        self.precision = _SHORT.get(named, named)
        self.clip = gradient_clip_val or None
        self.strategy, self.devices, self.num_nodes = strategy, devices, num_nodes
        self.max_epochs = max_epochs

    def train(
        self,
        model: torch.nn.Module,
        dataset: Any = None,
        datamodule: Any = None,
        tokenizer: Any = None,
        max_epochs: int | None = None,
        batch_size: int = 16,
        learning_rate: float = 1e-4,
        val_split: float = 0.1,
        resume_from_checkpoint: str | Path | None = None,
        seed: int = 42,
        run_name: str | None = None,
        *,
        config: Any = None,
        task_spec: TaskSpec | None = None,
    ) -> dict[str, Any]:
        """Train on ``dataset`` (what UniversalDataModule takes) or on a Lightning ``datamodule``.

        ``resume_from_checkpoint`` is a checkpoint of this class or of ``Trainer``; ``config`` is
        the model's. Returns what ``Trainer.train`` does, and ``best_model_path``,
        ``final_metrics`` (the last epoch's), ``trainer`` (Lightning's), ``model``,
        ``checkpoint_manager``, ``tokenizer``. Raises ValueError for no data or both kinds.
        """
        if (dataset is None) == (datamodule is None):
            raise ValueError("give a dataset or a datamodule, one of the two")
        name = run_name or time.strftime("run_%Y%m%d_%H%M%S")
        settings = TrainingConfig(
            epochs=max_epochs or self.max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_split=val_split,
            random_seed=seed,
            gradient_clip_norm=self.clip,
            checkpoint_dir=str(self.output_dir / "checkpoints"),
            save_every_n_epochs=1,
            early_stopping_patience=None,
            run_name=name,
        )
        self._lightning.seed_everything(seed, verbose=False)
        task = None if task_spec is None else task_spec.task_type
        subject = Subject(model, config, tokenizer=tokenizer, task=task)
        stepper = Stepper(subject, task_spec or subject.task)
        module = _lightning(Steps, "LightningModule")(stepper, settings, resume_from_checkpoint)
        if datamodule is None:
            kind = _lightning(Data, "LightningDataModule")
            datamodule = kind(dataset, settings, stepper.task, tokenizer)
        start = time.perf_counter()
        trainer = self._trainer(settings.epochs - module.first_epoch())
        trainer.fit(module, datamodule=datamodule)
        result = module.saver.result(time.perf_counter() - start)
        return {
            **result,
            "best_model_path": result["checkpoint_path"],
            "final_metrics": module.parts.tracker.metrics_history[-1],
            "trainer": trainer,
            "model": model,
            "checkpoint_manager": module.saver,
            "tokenizer": tokenizer,
        }

    def _trainer(self, epochs: int) -> Any:
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        return self._lightning.Trainer(
            default_root_dir=str(self.output_dir),
            accelerator="gpu" if self.gpu else "cpu",
            devices=self.devices or (1 if self.strategy == "auto" else "auto"),
            num_nodes=self.num_nodes,
            strategy=self.strategy,
            precision=self.precision,
            gradient_clip_val=self.clip,
            max_epochs=epochs,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            logger=False,
        )


class Steps:
    """The methods of the LightningModule."""

    trainer: Any
    parts: Parts
    saver: Saver

    def __init__(self, stepper: Stepper, config: TrainingConfig, resume: Any) -> None:
        super().__init__()
        self.model = stepper.model
        self.stepper, self.config, self.resume = stepper, config, resume

    def first_epoch(self) -> int:
        """How many epochs are done in the checkpoint that the run goes on from."""
        if self.resume is None:
            return 0
        from pytest_transformer_validate.training.checkpoints import load

        return int(load(self.resume)["epoch"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.config.optim)
        validates = bool(self.trainer.num_val_batches or self._validates())
        steps = count_batches(self.trainer.train_dataloader or self._train_loader())
        self.parts = Parts(
            self.config,
            self.model,
            optimizer,
            Schedule(optimizer, steps * self.config.epochs, self.config.warmup_ratio),
            EarlyStopping(self.config, has_validation=validates),
            MetricsTracker(False),
            Precision("32-true", torch.device("cpu")),
            self.trainer.is_global_zero,
        )
        run: Any = self.parts
        self.saver = Saver(run, self.config.run_name)
        if self.resume is not None:
            self.saver.restore(self.resume)
        return optimizer

    def _train_loader(self) -> Any:
        return self.trainer.datamodule.train_dataloader()

    def _validates(self) -> bool:
        loader = self.trainer.datamodule.val_dataloader()
        return loader is not None and len(loader) > 0

    def on_train_epoch_start(self) -> None:
        self._start = time.perf_counter()
        self.parts.sums.clear()

    def training_step(self, batch: Mapping[str, torch.Tensor], index: int) -> torch.Tensor:
        result, count = self._run("train", batch)
        total = self.trainer.strategy.reduce(count.clone(), reduce_op="sum").clamp(min=1)
        loss: torch.Tensor = result.loss * self.trainer.world_size / total
        return loss

    def validation_step(self, batch: Mapping[str, torch.Tensor], index: int) -> None:
        self._run("val", batch)

    def _run(self, split: str, batch: Mapping[str, torch.Tensor]) -> Any:
        result = self.stepper(batch)
        count = self.stepper.counted(batch).to(result.loss)
        sums = torch.stack([*result.sums, count.detach()]).double()
        self.parts.sums[split] = self.parts.sums.get(split, torch.zeros_like(sums)) + sums
        return result, count

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(grads).detach()

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.parts.step += 1
        self._rate = self.parts.schedule.learning_rate
        self.parts.schedule.step()

    def on_train_epoch_end(self) -> None:
        parts = self.parts
        row = parts.tracker.log_epoch(
            parts.epoch,
            self._means("train"),
            self._means("val") if "val" in parts.sums else None,
            learning_rate=self._rate,
            gradient_norm=float(self._norm),
            epoch_duration=time.perf_counter() - self._start,
        )
        if not math.isfinite(row["train/loss"]):
            raise Diverged(f"the loss of epoch {parts.epoch} is {row['train/loss']:g}")
        parts.epoch += 1
        parts.stopping.see(row)
        self.saver.save(row, last=parts.epoch == parts.config.epochs)

    def _means(self, split: str) -> dict[str, float]:
        sums = self.trainer.strategy.reduce(self.parts.sums[split], reduce_op="sum")
        loss, correct, count = sums.tolist()
        return {"loss": loss / max(count, 1), "accuracy": correct / max(count, 1)}


class Data:
    """The methods of a LightningDataModule over UniversalDataModule."""

    trainer: Any

    def __init__(self, data: Any, config: TrainingConfig, task: TaskSpec, tokenizer: Any) -> None:
        super().__init__()
        self.given = data, config, task, tokenizer

    def setup(self, stage: str | None = None) -> None:
        data, config, task, tokenizer = self.given
        self.data = UniversalDataModule(
            data,
            None,
            task,
            tokenizer,
            batch_size=config.batch_size,
            val_split=config.validation_split,
            num_workers=0,
            seed=config.random_seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )

    def train_dataloader(self) -> Any:
        loader = self.data.train_dataloader()
        loader.set_epoch(self.trainer.lightning_module.first_epoch())
        return loader

    def val_dataloader(self) -> Any:
        loader = self.data.val_dataloader()
        return [] if loader is None else loader


@functools.cache
def _lightning(methods: type, base: str) -> Any:
    """A class of Lightning's with these methods, made when Lightning is there."""
    return type(
        methods.__name__,
        (methods, getattr(require("pytorch_lightning", extra="lightning"), base)),
        {},
    )
