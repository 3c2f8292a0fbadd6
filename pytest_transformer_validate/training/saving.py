"""What of a run is saved when, and what is given back at its end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import CheckpointError, ConfigError, first_line
from pytest_transformer_validate.optional import find
from pytest_transformer_validate.training import checkpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pytest_transformer_validate.training.run import Run


class Saver:
    """Writes checkpoints of a run on rank 0 and reads one back."""

    def __init__(self, run: Run, run_name: str) -> None:
        self.run = run
        self.run_name = run_name
        folder = run.config.checkpoint_dir
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and run.leads:
            _refuse_unwritable(self.folder)
        # What lies there already is another run's, which may have had this name.
        known = [] if self.folder is None else self.folder.glob("checkpoint_*.json")
        self.others = {path.stem for path in known}
        self.commit = checkpoints.git_commit()

    def save(self, row: Mapping[str, Any], *, last: bool) -> None:
        """Save after an epoch: the last one, every n-th, and each that is the best so far."""
        run = self.run
        due = last or run.epoch % run.config.save_every_n_epochs == 0
        better = run.stopping.waited == 0
        asked = better or last or (due and not run.config.keep_best_only)
        if run.leads and asked and self.folder is not None:
            self._write(self.folder, row)
            checkpoints.retain(
                self.own(), mode=run.stopping.mode, best_only=run.config.keep_best_only
            )

    def own(self) -> list[checkpoints.Saved]:
        """The checkpoints of this run, those included that it went on from; oldest step first."""
        if self.folder is None:
            return []
        saved = checkpoints.checkpoints(self.folder, self.run_name)
        return [each for each in saved if each.path.stem not in self.others]

    def save_last_good(self) -> Path | None:
        """Save the state before a step that was not taken; where, if anywhere."""
        if self.folder is None or not self.run.leads:
            return None
        return self._write(self.folder, {})

    def restore(self, path: str | Path) -> None:
        """Go on where a checkpoint was written. Raises CheckpointError where it does not fit."""
        run, state = self.run, checkpoints.load(path)
        try:
            run.model.load_state_dict(state["model_state_dict"])
            _restore_optimizer(run.optimizer, state["optimizer_state_dict"])
        except (RuntimeError, ValueError, KeyError) as error:
            line = first_line(error)
            raise CheckpointError(f"{path} is of another model or optimizer: {line}") from error
        self.others -= {Path(path).name.removesuffix(".pt")}
        self.others.difference_update(state["custom_state"].get("checkpoints", ()))
        run.schedule.begin(state["epoch"] / run.config.epochs)
        run.precision.scaler.load_state_dict(state["scaler_state_dict"])
        run.tracker.metrics_history[:] = state["custom_state"]["metrics_history"]
        for row in run.tracker.metrics_history:
            run.stopping.see(row)
        run.epoch, run.step = state["epoch"], state["global_step"]
        checkpoints.set_rng_state(state["rng_state"])

    def result(self, seconds: float) -> dict[str, Any]:
        """What ``Trainer.train`` returns."""
        tracker = self.run.tracker
        history = tracker.metrics_history
        saved = self.own()
        best = checkpoints.best(saved, self.run.stopping.mode) or saved[-1:]
        metric, mode = self.run.stopping.metric, self.run.stopping.mode
        return {
            "metrics_summary": history if find("pandas") is None else tracker.get_summary(),
            "best_epoch": tracker.get_best_epoch(metric, mode),
            "final_loss": history[-1]["train/loss"] if history else None,
            "checkpoint_path": str(best[0].path) if best else None,
            "training_time": seconds,
            "workspace_root": str(self._root),
            "run_name": self.run_name,
            "loss_history": [row["train/loss"] for row in history],
            "val_loss_history": [row["val/loss"] for row in history if "val/loss" in row],
        }

    @property
    def _root(self) -> Path:
        return Path() if self.folder is None else self.folder.parent

    def _write(self, folder: Path, row: Mapping[str, Any]) -> Path:
        run = self.run
        state = {
            "epoch": run.epoch,
            "global_step": run.step,
            "model_state_dict": run.model.state_dict(),
            "optimizer_state_dict": run.optimizer.state_dict(),
            "scheduler_state_dict": run.schedule.state_dict(),
            "scaler_state_dict": run.precision.scaler.state_dict(),
            "metrics": dict(row),
            "monitor": run.stopping.metric,
            "monitor_value": row.get(run.stopping.metric),
            "rng_state": checkpoints.rng_state(),
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "git_commit": self.commit,
            "custom_state": {
                "training_config": run.config.to_dict(),
                "metrics_history": run.tracker.metrics_history,
                "workspace_root": str(self._root),
                "run_name": self.run_name,
                "checkpoints": [saved.path.stem for saved in self.own()],
            },
        }
        return checkpoints.save(folder, state, mode=run.stopping.mode)


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take moments and counts; rates and decay are those of this run. Raises ValueError where
    they are of other parameters."""
    groups, own = saved["param_groups"], optimizer.state_dict()["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise ValueError("its parameters are in other groups")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})


def _refuse_unwritable(folder: Path) -> None:
    """Raise ConfigError before training, not after the first epoch of it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError([f"checkpoint_dir: {there} is a file, not a folder"])
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError([f"checkpoint_dir: {there} cannot be written to"])
