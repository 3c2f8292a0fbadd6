"""Which collator makes the batches: given by hand, then registered, then the task's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.training.data.collators import (
    ClassificationDataCollator,
    LanguageModelingDataCollator,
    Seq2SeqDataCollator,
    VisionDataCollator,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.task import TaskSpec

    Maker = Callable[[TaskSpec, Any, str], Any]

_registered: dict[str, Maker] = {}


def register_collator(name: str, make: Maker) -> None:
    """Use ``make(task_spec, tokenizer, padding_side)`` for a task type, or for all of a modality
    (``text`` or ``vision``)."""
    _registered[name] = make


def choose_collator(
    task: TaskSpec, tokenizer: Any, given: Any = None, padding_side: str = "right"
) -> Any:
    """The collator of a task. Raises ValueError for a text task without tokenizer or collator."""
    if given is not None:
        return given
    for name in (task.task_type, task.modality):
        if name in _registered:
            return _registered[name](task, tokenizer, padding_side)
    if task.modality == "vision":
        return VisionDataCollator()
    if tokenizer is None:
        raise ValueError(
            f"{task.task_type} reads text: give a tokenizer (tokenizer=...), a collator that "
            "makes batches of your examples (data_collator=...), or a DataLoader of batches that "
            "are ready"
        )
    if task.task_type == "seq2seq":
        return Seq2SeqDataCollator(tokenizer, padding_side, task.ignore_index)
    if task.task_type == "classification":
        return ClassificationDataCollator(tokenizer, padding_side)
    masked = task.task_type == "masked_lm"
    return LanguageModelingDataCollator(
        tokenizer, mlm=masked, padding_side=padding_side, ignore_index=task.ignore_index
    )
