"""From a batch to a loss: the one place that knows how the model is called in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared
from pytest_transformer_validate.training.losses import correct_sum, loss_sum, target_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pytest_transformer_validate.subject.subject import Subject
    from pytest_transformer_validate.task import TaskSpec

_MASKS = ("attention_mask", "token_type_ids", "decoder_attention_mask")


@dataclass(frozen=True)
class StepResult:
    """Sums over one micro-batch, on the model's device: loss (with its graph) and hits."""

    loss: torch.Tensor
    correct: torch.Tensor


class Stepper:
    """Calls ``model`` (the subject's, or what wraps it) on collated batches.

    A collated batch holds tensors by name: what the task reads, ``labels`` (by ``target_field``),
    and masks, which are given to a model that takes them.
    """

    def __init__(self, subject: Subject, task: TaskSpec) -> None:
        self.subject = subject
        self.task = task
        _ = subject.facts  # found once, before the model is wrapped
        start = declared(subject.config, ("decoder_start_token_id", "bos_token_id"))
        self.start = start if isinstance(start, int) else subject.pad_id

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """How many targets of a batch count."""
        return target_count(self._labels(batch), self.task)

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> StepResult:
        """Sums of loss and hits over the targets of a batch."""
        labels = self._labels(batch).to(self.subject.device, non_blocking=True)
        logits = self.subject(self._inputs(batch, labels)).logits
        loss = loss_sum(logits, labels, self.task)
        return StepResult(loss, correct_sum(logits.detach(), labels, self.task))

    def _labels(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        try:
            return batch[self.task.target_field]
        except KeyError:
            raise ValueError(
                f"a batch needs {self.task.target_field!r} for {self.task.task_type}; "
                f"it has {', '.join(batch) or 'nothing'}"
            ) from None

    def _inputs(self, batch: Mapping[str, torch.Tensor], labels: torch.Tensor) -> Batch:
        signature, device = self.subject.signature, self.subject.device
        main = "pixel_values" if self.subject.vision else "input_ids"
        if main not in batch:
            raise ValueError(f"a batch needs {main!r}; it has {', '.join(batch) or 'nothing'}")
        given: dict[str, Any] = {main: batch[main].to(device, non_blocking=True)}
        if self.subject.decodes:
            given["decoder_input_ids"] = self._decoder_input(batch, labels)
        for name in _MASKS:
            if name in batch and signature.takes(name):
                given[name] = batch[name].to(device, non_blocking=True)
        whole = Batch(given)
        if signature.required <= given.keys() or self.subject.vision:
            return whole
        return self.subject.complete(whole, labels=False).to(device)

    def _decoder_input(
        self, batch: Mapping[str, torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        """The one in the batch, else the labels moved one to the right behind the start id."""
        if "decoder_input_ids" in batch:
            return batch["decoder_input_ids"].to(self.subject.device, non_blocking=True)
        if self.start is None:
            raise SubjectError(
                "the decoder's first id is not known: put decoder_input_ids into the batches, or "
                '"decoder_start_token_id" into config.json'
            )
        moved = labels.new_full(labels.shape, self.start)
        moved[:, 1:] = labels[:, :-1]
        filler = self.subject.pad_id if self.subject.pad_id is not None else self.start
        return moved.masked_fill(moved == self.task.ignore_index, filler)
