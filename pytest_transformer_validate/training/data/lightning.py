"""A data module of PyTorch Lightning for data that is tokenized already."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from pytest_transformer_validate.optional import require
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.data.choose import choose_collator

if TYPE_CHECKING:
    SimpleDataModule: Any


class Loaders:
    """Loaders of tokenized examples.

    Args:
        train_dataset: a dataset or list of mappings with ``input_ids`` (and ``labels``).
        val_dataset: the same; None: no validation.
        batch_size, num_workers: those of torch's DataLoader.
        task_spec: what the batches are for; causal language modelling by default.
        tokenizer: gives the padding id to the dynamic collator.
        use_dynamic_collator: pad each batch to its longest example; else all examples have
            one length and every field becomes a tensor.
        padding_side: ``right`` or ``left``, for the dynamic collator.
    """

    def __init__(
        self,
        train_dataset: Any,
        val_dataset: Any = None,
        batch_size: int = 16,
        num_workers: int = 2,
        task_spec: TaskSpec | None = None,
        tokenizer: Any = None,
        use_dynamic_collator: bool = False,
        padding_side: str = "right",
    ) -> None:
        super().__init__()
        self.train_dataset, self.val_dataset = train_dataset, val_dataset
        self.batch_size, self.num_workers = batch_size, num_workers
        task = task_spec or TaskSpec.language_modeling()
        self.collator = (
            choose_collator(task, tokenizer, padding_side=padding_side)
            if use_dynamic_collator
            else None
        )

    def train_dataloader(self) -> Any:
        return self._loader(self.train_dataset, shuffle=True)

    def val_dataloader(self) -> Any:
        return [] if self.val_dataset is None else self._loader(self.val_dataset)

    def _loader(self, data: Any, *, shuffle: bool = False) -> Any:
        return DataLoader(
            data,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=self.collator,
        )


@functools.cache
def _simple_data_module() -> Any:
    """The class, made when Lightning is there."""
    base = require("pytorch_lightning", extra="lightning").LightningDataModule
    return type("SimpleDataModule", (Loaders, base), {"__doc__": Loaders.__doc__})


def __getattr__(name: str) -> Any:
    if name == "SimpleDataModule":
        return _simple_data_module()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
