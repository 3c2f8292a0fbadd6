"""One process or several: who holds the model, and how sums over all ranks are made.

Several processes are torch's own: the same script under ``torchrun``. In a notebook there is one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training.config import ConfigWarning
from pytest_transformer_validate.training.surroundings import in_notebook

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_transformer_validate.training.config import TrainingConfig
    from pytest_transformer_validate.training.window import Sums


class OneDevice:
    """One process on one device."""

    rank = 0
    world = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model as it is called in training."""
        return model

    def accumulating(self, model: torch.nn.Module, last: bool) -> AbstractContextManager[object]:
        """The context of a micro-batch; gradients are exchanged in the ``last`` of a step."""
        return contextlib.nullcontext()

    def sum(self, value: Any) -> Any:
        """A number or tensor summed over all ranks, left on the device where there are several."""
        return value

    def pool(self, sums: list[Sums]) -> list[Sums]:
        """The same for pairs of sums, which are to be added."""
        return sums

    def share(self, count: Any) -> Any:
        """What a sum of losses over this rank is multiplied by, so that the gradients of all
        ranks together are those of the mean over ``count`` targets."""
        return 1 / max(count, 1)

    def wait(self) -> None:
        """Until every rank is here."""


class DataParallel(OneDevice):
    """torch's DistributedDataParallel: gradients are averaged over the ranks.

    The group of processes is made where there is none, and kept until the process ends: a second
    one could not be told from the first.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=ids, find_unused_parameters=True
        )

    def accumulating(self, model: torch.nn.Module, last: bool) -> AbstractContextManager[object]:
        if last or not isinstance(model, torch.nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return model.no_sync()

    def sum(self, value: Any) -> Any:
        total = torch.as_tensor(value, device=self.device).clone()
        distributed.all_reduce(total)
        return total

    def pool(self, sums: list[Sums]) -> list[Sums]:
        total = torch.stack([torch.stack(pair) for pair in sums]).sum(0)
        loss, hits = self.sum(total)
        return [(loss, hits)]

    def share(self, count: Any) -> Any:
        return self.world / count.clamp(min=1)

    def wait(self) -> None:
        distributed.barrier()


def make_strategy(config: TrainingConfig) -> OneDevice:
    """The strategy that ``config`` asks for, where this process can have it. Raises ConfigError.

    Warns (ConfigWarning) where a notebook gets one device instead of several.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if config.strategy == "fsdp":
        raise ConfigError(["strategy: 'fsdp' is not available in this version; take 'ddp'"])
    wanted = config.devices if isinstance(config.devices, int) else 1
    several = config.strategy == "ddp" or wanted > 1 or config.num_nodes > 1
    if launched and (several or config.strategy == "auto"):
        _warn_of_other_world(config, int(os.environ["WORLD_SIZE"]))
        return DataParallel(_device(int(os.environ.get("LOCAL_RANK", "0"))))
    if several and in_notebook() and os.environ.get("ALLOW_NOTEBOOK_DDP") != "1":
        warnings.warn(
            f"strategy={config.strategy!r} with devices={config.devices!r} runs on one device: a "
            f"notebook is one process; for several put it in a script and run: {_command(config)}",
            ConfigWarning,
            stacklevel=2,
        )
    elif several and wanted > 1:
        raise ConfigError(
            [f"devices: {wanted} devices are {wanted} processes; run: {_command(config)}"]
        )
    elif several and "WORLD_SIZE" not in os.environ:
        warnings.warn(
            f"strategy={config.strategy!r} runs in this one process; for several run: "
            f"{_command(config)}",
            ConfigWarning,
            stacklevel=2,
        )
    return OneDevice(_device())


def _warn_of_other_world(config: TrainingConfig, world: int) -> None:
    """Warn (ConfigWarning) where torchrun started another number of processes than was set."""
    if isinstance(config.devices, int) and config.devices * config.num_nodes != world:
        warnings.warn(
            f"devices={config.devices} has no effect: torchrun started {world} processes; for "
            f"as many as that run: {_command(config)}",
            ConfigWarning,
            stacklevel=3,
        )


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _device(index: int = 0) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _command(config: TrainingConfig) -> str:
    nodes = f"--nnodes={config.num_nodes} " if config.num_nodes > 1 else ""
    count = config.devices if isinstance(config.devices, int) else "gpu"
    return f"torchrun {nodes}--nproc-per-node={count} train.py"
