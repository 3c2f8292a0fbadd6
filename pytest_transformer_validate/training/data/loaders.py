"""What the loop reads: loaders made of data, and those that a caller made."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset
from torch.utils.data.distributed import DistributedSampler

from pytest_transformer_validate.training.config import DEFAULTS, ConfigWarning
from pytest_transformer_validate.training.data.files import read_file
from pytest_transformer_validate.training.data.module import Loader, UniversalDataModule, read_in
from pytest_transformer_validate.training.data.quality import check_first_batches, warn_of_overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.task import TaskSpec
    from pytest_transformer_validate.training.config import TrainingConfig
    from pytest_transformer_validate.training.strategy import OneDevice

Batches = Iterable[Mapping[str, torch.Tensor]]


def make_loaders(
    train_data: Any,
    val_data: Any,
    config: TrainingConfig,
    task: TaskSpec,
    strategy: OneDevice,
    tokenizer: Any = None,
    collator: Any = None,
    longest: int | None = None,
) -> tuple[Batches, Batches | None]:
    """Loaders of training and validation data; those that are given are taken as they are.

    ``longest`` is what the model takes. Raises ValueError for data that gives no batch, or whose
    sequences are too short or too long.
    """

    def module(train: Any, val: Any, split: float) -> UniversalDataModule:
        return UniversalDataModule(
            train,
            val,
            task,
            tokenizer,
            collator,
            batch_size=config.batch_size,
            val_split=split,
            num_workers=0,
            seed=config.random_seed,
            max_length=config.max_seq_len or longest,
            rank=strategy.rank,
            world=strategy.world,
        )

    train_data = _given(train_data, config.max_train_samples, task, "training")
    if val_data is not None:
        val_data = _given(val_data, config.max_val_samples, task, "validation")
    val = val_data if val_data is None or gives_batches(val_data) else None
    _warn_of_no_effect(config, train=gives_batches(train_data), val=val is not None)
    if gives_batches(train_data):
        _warn_of_repeats(train_data, strategy)
        if val_data is not None and val is None:
            val = module(val_data, None, 0.0).ordered_dataloader()
        with _random_kept():
            check_first_batches(_again(train_data), task.task_type, longest)
        return train_data, val
    split = config.validation_split if val_data is None else 0.0
    if val_data is not None and val is None:
        warn_of_overlap(train_data, val_data)
    data = module(train_data, None if val is not None else val_data, split)
    train = data.train_dataloader()
    check_first_batches(train, task.task_type, longest)
    return train, data.val_dataloader() if val is None else val


def _again(loader: Any) -> Any:
    """A loader that can be looked into; nothing of one that is read only once."""
    stream = isinstance(loader, Named) and isinstance(loader.loader.dataset, IterableDataset)
    return () if stream else loader


@contextlib.contextmanager
def _random_kept() -> Iterator[None]:
    """Looking into a loader draws an order, which has to be drawn again by the first epoch."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def gives_batches(data: Any) -> bool:
    """Whether data is a loader: torch's, or a sequence whose items are batches of tensors."""
    if isinstance(data, DataLoader | Loader | Named):
        return True
    first = data[0] if isinstance(data, list | tuple) and data else None
    ids = first.get("input_ids", first.get("pixel_values")) if isinstance(first, dict) else None
    return isinstance(ids, torch.Tensor) and ids.dim() in (2, 4)


def begin_epoch(loader: Batches, epoch: int) -> None:
    """Tell a loader, or its sampler, which epoch comes, so that each has its own order."""
    sampler = getattr(loader, "sampler", None)
    for part in (loader, sampler):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)  # type: ignore[union-attr]


def grouped(loader: Batches, size: int) -> Iterator[list[Mapping[str, torch.Tensor]]]:
    """Batches by optimizer step; the last group of an epoch may be smaller."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def count_batches(loader: Batches) -> int:
    """How many batches a loader gives. Raises ValueError for none, or an unknown number."""
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            "the number of batches has to be known, for the schedule: give a loader that has a "
            "length, or the data itself, which is read once"
        ) from None
    if not count:
        raise ValueError("the training data gives no batch")
    return count


class Named:
    """A loader of torch's, whose batches become mappings.

    Pairs are what a TensorDataset gives: the input and its labels; of a causal LM the input alone
    is taken, because labels that are moved already would be moved once more.
    """

    def __init__(self, loader: DataLoader[Any], task: TaskSpec) -> None:
        self.loader, self.task = loader, task
        self.sampler = loader.sampler
        self.main = "pixel_values" if task.modality == "vision" else "input_ids"

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        return map(self._named, self.loader)

    def _named(self, batch: Any) -> Mapping[str, torch.Tensor]:
        if isinstance(batch, Mapping):
            return batch
        parts = batch if isinstance(batch, list | tuple) else [batch]
        if all(isinstance(part, torch.Tensor) for part in parts):
            if self.task.shifts and len(parts) == 1:
                parts = [parts[0], parts[0]]
            elif self.task.shifts:
                parts = []
            if len(parts) == 2:
                return dict(zip((self.main, self.task.target_field), parts, strict=True))
        raise ValueError(
            f"a batch for {self.task.task_type} is a mapping of tensors: "
            f"{{{self.main!r}: ..., {self.task.target_field!r}: ...}}; the loader gives "
            f"{type(batch).__name__}; a collate_fn or data_collator makes it one"
        )


def _given(data: Any, most: int | None, task: TaskSpec, what: str) -> Any:
    """Data that is read in, or a loader whose batches are mappings; at most ``most`` examples."""
    if isinstance(data, DataLoader):
        return Named(data, task)
    if isinstance(data, str | os.PathLike):
        data = read_file(os.fspath(data))
    elif not isinstance(data, Loader | list | tuple):
        data = read_in(_first(data, most), what)
    return _first(data, most)


def _first(data: Any, most: int | None) -> Any:
    """At most ``most`` examples."""
    if most is None or gives_batches(data):
        return data
    if not hasattr(data, "__len__"):
        return itertools.islice(data, most)
    if len(data) <= most:
        return data
    if hasattr(data, "select"):
        return data.select(range(most))
    return data[:most] if isinstance(data, list | tuple) else Subset(data, list(range(most)))


def _warn_of_no_effect(config: TrainingConfig, *, train: bool, val: bool) -> None:
    """Warn (ConfigWarning) of settings that batches which are made already leave no room for."""
    idle = ["batch_size", "max_train_samples", "max_seq_len", "validation_split"] * train
    for name in [*idle, *["max_val_samples"] * val]:
        if getattr(config, name) != DEFAULTS[name]:
            warnings.warn(
                f"{name}={getattr(config, name)!r} has no effect: the data comes in batches",
                ConfigWarning,
                stacklevel=4,
            )


def _warn_of_repeats(loader: Any, strategy: OneDevice) -> None:
    shared = isinstance(loader, Loader) or isinstance(
        getattr(loader, "sampler", None), DistributedSampler
    )
    if strategy.world > 1 and not shared:
        warnings.warn(
            f"each of the {strategy.world} ranks reads all batches of the loader that was given: "
            "use torch's DistributedSampler, or give the data itself",
            ConfigWarning,
            stacklevel=4,
        )
