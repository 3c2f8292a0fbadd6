"""From a batch to a loss: the one place that knows how the model is called in training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared
from pytest_transformer_validate.subject.inputs import complete
from pytest_transformer_validate.training.losses import (
    correct_sum,
    counted,
    loss_sum,
    pairs,
    target_count,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_transformer_validate.subject.subject import Subject
    from pytest_transformer_validate.task import TaskSpec

_MASKS = ("attention_mask", "token_type_ids", "decoder_attention_mask")


@dataclass(frozen=True)
class StepResult:
    """One micro-batch, on the model's device: the sum of the ``loss`` with its graph, and
    ``sums``: that of the loss and of the hits, without. All are scalars in float32."""

    loss: torch.Tensor
    sums: tuple[torch.Tensor, torch.Tensor]


class Stepper:
    """Calls ``model`` (the subject's, or what wraps it) on collated batches.

    A collated batch holds tensors by name: what the task reads, ``labels`` (by ``target_field``),
    and masks, which are given to a model that takes them.
    """

    def __init__(self, subject: Subject, task: TaskSpec) -> None:
        self.subject = subject
        self.model = subject.model
        self.task = task
        _ = subject.facts  # found once, before the model is wrapped
        found = (
            declared(subject.config, ("decoder_start_token_id", "bos_token_id")),
            getattr(subject.tokenizer, "bos_token_id", None),
            subject.pad_id,
        )
        self.start = next((start for start in found if isinstance(start, int)), None)

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """How many targets of a batch count."""
        return target_count(self._labels(batch), self.task)

    def counted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same, a scalar on the batch's device."""
        return counted(self._labels(batch), self.task)

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> StepResult:
        """Sums of loss and hits over the targets of a batch."""
        if self.subject.device.type != "cpu":
            self._refuse_strange_ids(batch)  # before a GPU sees them, which does not say where
        labels = self._labels(batch).to(self.subject.device, non_blocking=True)
        logits = None
        try:
            logits = self.subject.logits(self._inputs(batch, labels))
            scores, wanted = pairs(logits, labels, self.task)
            loss = loss_sum(scores, wanted, self.task)
        except (IndexError, ValueError, RuntimeError):
            self._refuse_strange_kinds(batch)
            self._refuse_strange_ids(batch)
            self._refuse_strange_shape(labels, logits)
            raise
        if not loss.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "the outputs depend on no parameter that asks for a gradient: the model detaches "
                "them, or runs under no_grad"
            )
        hits = correct_sum(scores.detach(), wanted, self.task)
        return StepResult(loss, (loss.detach(), hits))

    @contextlib.contextmanager
    def plain(self) -> Iterator[torch.nn.Module]:
        """Call the model itself inside, not what compiles or distributes it; gives it."""
        called = self.subject.model
        self.subject.model = self.model
        try:
            yield self.model
        finally:
            self.subject.model = called

    def _refuse_strange_kinds(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Raise ValueError for ids or labels that are no whole numbers."""
        for name in ("input_ids", "decoder_input_ids", self.task.target_field):
            if name in batch and batch[name].is_floating_point():
                kind = str(batch[name].dtype).removeprefix("torch.")
                raise ValueError(f"{name} must be whole numbers, given {kind}")

    def _refuse_strange_shape(self, labels: torch.Tensor, logits: torch.Tensor | None) -> None:
        """Raise ValueError for labels that the outputs cannot be held against."""
        if logits is not None and logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"{self.task.target_field} of shape {tuple(labels.shape)} and outputs of shape "
                f"{tuple(logits.shape)}: {self.task.task_type} has one label for each output"
            )

    def _refuse_strange_ids(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Raise ValueError for an id or a label that the model has no row for."""
        subject = self.subject
        width = subject.facts.width
        known = {"decoder_input_ids": subject.target_vocab_size} if subject.decodes else {}
        known |= {} if subject.vision else {"input_ids": subject.vocab_size}
        for name, size in {**known, self.task.target_field: width}.items():
            ids = batch.get(name)
            if ids is None or ids.is_floating_point():
                continue
            strange = (ids < 0) | (ids >= size)
            if name == self.task.target_field:
                strange &= ids != self.task.ignore_index
            if strange.any():
                place = strange.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} holds {int(ids[tuple(place)])} at {place}; the model has {size} "
                    f"(0 to {size - 1})"
                )

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
        if self.subject.facts.needs_labels or "labels" in signature.required:
            given["labels"] = labels.masked_fill(labels == self.task.ignore_index, 0)
        whole = Batch(given)
        if signature.required <= given.keys() or self.subject.vision:
            return whole
        return complete(self.subject, whole, labels=False).to(device)

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
