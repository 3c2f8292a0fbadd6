"""Data of any kind as loaders of batches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from pytest_transformer_validate.errors import TrainingError, error_line
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.data.choose import choose_collator
from pytest_transformer_validate.training.data.files import read_file
from pytest_transformer_validate.training.data.sampling import BatchOrder
from pytest_transformer_validate.training.data.tokens import Tokenized

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 600.0  # seconds for an iterable without a length to end


class UniversalDataModule:
    """Training and validation data as loaders, reproducible by seed.

    Args:
        train_data: a Hugging Face dataset, a PyTorch dataset, a list of texts, tensors or
            mappings, any iterable (read once, into memory), or the path of a local csv, tsv,
            json, jsonl, text or parquet file.
        val_data: the same; None sets ``val_split`` of the training data aside.
        task_spec: what the batches are for; a text task by default.
        tokenizer: turns texts into ids.
        data_collator: makes batches; None takes the registered one, then that of the task.
        batch_size: examples a batch and rank.
        val_split: part of the training data, 0 to 0.5.
        num_workers: processes that load; 0 loads in this one.
        seed: of split, order and workers.
        max_length: texts are cut to that many tokens.
        rank, world: this process, and how many there are.

    Raises:
        ValueError: no example, or a text task without tokenizer or collator.
        TrainingError: a file that cannot be read.
    """

    def __init__(
        self,
        train_data: Any,
        val_data: Any = None,
        task_spec: TaskSpec | None = None,
        tokenizer: Any = None,
        data_collator: Any = None,
        batch_size: int = 32,
        val_split: float = 0.2,
        num_workers: int = 2,
        seed: int = 42,
        *,
        max_length: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.task = task_spec or TaskSpec.language_modeling()
        self.tokenizer, self.max_length = tokenizer, max_length
        self.collator = choose_collator(self.task, tokenizer, data_collator)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.rank, self.world = rank, world
        train = self._examples(train_data, "training")
        if val_data is not None:
            val: Any = self._examples(val_data, "validation")
        else:
            train, val = self._split(train, val_split)
        self.train_examples, self.val_examples = train, val

    def train_dataloader(self) -> Loader:
        """Shuffled batches; ``set_epoch`` on the loader chooses the order."""
        return self._loader(self.train_examples, shuffle=True)

    def ordered_dataloader(self) -> Loader:
        """Batches of the training data in its own order."""
        return self._loader(self.train_examples, shuffle=False)

    def val_dataloader(self) -> Loader | None:
        """Batches in the order of the data; ``None`` without validation data."""
        return (
            None if self.val_examples is None else self._loader(self.val_examples, shuffle=False)
        )

    def _loader(self, examples: Any, *, shuffle: bool) -> Loader:
        order = BatchOrder(
            len(examples),
            self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            rank=self.rank,
            world=self.world,
        )
        return Loader(examples, order, self.collator, self.num_workers, self.task)

    def _examples(self, data: Any, what: str) -> Any:
        if isinstance(data, str | os.PathLike):
            data = read_file(os.fspath(data))
        data = read_in(data, what)
        if not len(data):
            raise ValueError(f"the {what} data has no example")
        if self.tokenizer is None or self.task.modality != "text":
            return data
        return Tokenized(data, self.tokenizer, self.max_length, self.task.task_type)

    def _split(self, examples: Any, part: float) -> tuple[Any, Any]:
        count = int(len(examples) * part)
        if not count:
            return examples, None
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(examples), generator=generator).tolist()
        return Subset(examples, sorted(order[count:])), Subset(examples, sorted(order[:count]))


def read_in(data: Any, what: str) -> Any:
    """Data that has a length and a place for each example; an iterable is read into a list.

    Raises ValueError for what is no examples, TrainingError for an iterable that raises or does
    not end.
    """
    kind = type(data).__name__
    if isinstance(data, Mapping) or hasattr(data, "iloc"):
        raise ValueError(
            f"the {what} data is a {kind}, a table of columns or splits, not of examples: give "
            "one split of it, datasets.Dataset.from_dict(table), or datasets.Dataset.from_pandas"
        )
    if isinstance(data, Sized) and hasattr(data, "__getitem__"):
        return data
    if not isinstance(data, Iterable):
        raise ValueError(
            f"the {what} data is of type {kind}: give a list of examples, a dataset, a loader of "
            "batches, or the path of a file"
        )
    return _read(data, what)


def _read(data: Iterable[Any], what: str) -> list[Any]:
    found: list[Any] = []
    start = time.monotonic()
    try:
        for example in data:
            found.append(example)
            if time.monotonic() - start > PATIENCE:
                break
        else:
            return found
    except Exception as error:
        raise TrainingError(
            f"the {what} data raised at example {len(found)}: {error_line(error)}"
        ) from error
    raise TrainingError(
        f"the {what} data has given {len(found)} examples in {PATIENCE:g} s and does not end; set "
        "max_train_samples or max_val_samples"
    )


class Loader:
    """A pass over examples in batches, of one rank.

    Each epoch has an order of its own, which ``set_epoch`` chooses; passes without it count up.
    """

    def __init__(
        self, examples: Any, order: BatchOrder, collator: Any, num_workers: int, task: TaskSpec
    ) -> None:
        self.order, self.task = order, task
        self._next = 0
        self._generator = torch.Generator()
        self._loader = DataLoader(
            examples,
            batch_sampler=order,
            collate_fn=collator,
            num_workers=num_workers,
            generator=self._generator,
            persistent_workers=False,
        )

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of ``epoch``, from 0."""
        self._next = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.order.epoch = epoch = self._next
        self._next += 1
        self._generator.manual_seed((self.order.seed << 20) + epoch)
        for at, batch in enumerate(self._loader):
            if self.order.spare(at):
                labels = batch[self.task.target_field]
                batch[self.task.target_field] = torch.full_like(labels, self.task.ignore_index)
            yield batch
