"""What a model does with labels: its loss, and the gradient of the loss at the logits.

The gradient tells what a value cannot: towards which label each output is drawn, and how much
each counts. Axes: B batch, T positions, V outputs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, SubjectError, error_line
from pytest_transformer_validate.probe.compare import difference
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT, traced
from pytest_transformer_validate.subject.inputs import random_ids
from pytest_transformer_validate.subject.layout import arrange
from pytest_transformer_validate.subject.outputs import field_of, read_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.outputs import Output

IGNORE = -100


@dataclass(frozen=True)
class Answer:
    """What came back for labels.

    ``labels`` (B, T) or (B,); ``logits`` in float64, (B, T, V) or (B, K), ``None`` where only a
    loss came; ``gradient`` of the loss at them, ``None`` where they are not on its path; ``eps``
    of the dtype that they came in; ``differentiable`` says whether the loss has a gradient at
    all; ``named`` whether results are called loss and logits.
    """

    labels: torch.Tensor
    loss: float
    logits: torch.Tensor | None
    gradient: torch.Tensor | None
    eps: float
    differentiable: bool
    named: bool


@dataclass(frozen=True)
class Made:
    """A decoder's input that is made from labels: how far outputs up to a label move when it
    changes (``before``), how far later ones do (``after``), the logits, and whether the caller's
    labels were ``rewritten``."""

    before: float
    after: float
    logits: torch.Tensor
    rewritten: bool


class Losses(Passes):
    """Passes with labels."""

    @property
    def per_token(self) -> bool:
        """Whether there is a label for every token."""
        return self.probe.subject.task.per_token

    @property
    def sizes(self) -> tuple[int, int]:
        """(B, T): few rows for a large model."""
        rows, length = self.probe.subject.sizes
        return (rows if self.probe.subject.small else min(rows, 2)), length

    @property
    def role(self) -> str:
        """Name of the parameter."""
        return self.probe.subject.signature.names["labels"]

    @property
    def is_half(self) -> bool:
        """Whether this is the decoder of a sequence-to-sequence model, which is given labels for
        inputs that were shifted before: it holds modules that never run, for the states of an
        encoder."""
        probe = self.probe
        text = probe.subject.signature.text
        if "encoder_hidden_states" not in text and "encoder_outputs" not in text:
            return False
        with probe.running("half") as subject, traced(subject.model) as calls:
            subject(self.batch())
        return any(
            "att" in name for name in probe.structure.idle_modules({call.name for call in calls})
        )

    @remembered
    def answer(self, kind: str, ignored: int = IGNORE) -> Answer:
        """The loss for labels that have nothing to do with the inputs.

        ``kind`` is ``full``, every label counts, ``again``, the same with other labels, or
        ``some``: ``ignored`` stands in some places, another number of them in every row. Raises
        NotApplicable where no loss comes.
        """
        probe = self.probe
        batch, labels = self.batch(), self.labels()
        if kind == "again":
            labels = labels.flip(0).roll(1, -1)
        if kind == "some":
            labels = labels.masked_fill(~self.counted(), ignored)
        with _config_kept(probe), probe.running("loss", grad=True) as subject:
            raw = subject.call(batch.with_(labels=labels), {})
            loss = _loss(raw)
            if loss is None:
                raise NotApplicable("forward takes labels and returns no loss")
            returned, eps = _logits(raw), probe.eps
            logits = None if returned is None else self._arranged(returned)
            if logits is not None and logits.shape[-1] != probe.subject.facts.width:
                returned = logits = None  # a memory: no logits came beside the loss
            gradient = None
            if returned is not None:
                eps = torch.finfo(returned.dtype).eps
                if loss.requires_grad and returned.requires_grad:
                    (gradient,) = torch.autograd.grad(loss, [returned], allow_unused=True)
            return Answer(
                labels=labels.cpu(),
                loss=float(loss.detach()),
                logits=logits,
                gradient=None if gradient is None else self._arranged(gradient),
                eps=eps,
                differentiable=loss.requires_grad,
                named=field_of(raw, "loss") is not None and field_of(raw, "logits") is not None,
            )

    @remembered
    def of_text(self) -> Answer:
        """The loss that forward makes of its own text where it is asked for one, beside the
        logits that it gives where it is not: both belong to the same ids."""
        batch = self.batch()
        logits = self._arranged(self.probe.forward(batch).logits)
        with self.probe.running("loss", grad=True) as subject:
            loss = _loss(subject.call(batch, {"return_loss": True}))
        if loss is None:
            raise NotApplicable("forward is asked for a loss and returns none")
        return Answer(
            labels=batch.main.cpu(),
            loss=float(loss.detach()),
            logits=logits,
            gradient=None,
            eps=self.probe.eps,
            differentiable=loss.requires_grad,
            named=False,
        )

    @remembered
    def plain(self) -> torch.Tensor | None:
        """The logits of the same inputs without labels, ``None`` where they need labels."""
        subject = self.probe.subject
        if "labels" in subject.signature.required or subject.facts.needs_labels:
            return None
        return self.probe.forward(self.batch()).logits.double().cpu()

    @remembered
    def draws(self) -> bool:
        """Whether the logits that come with labels depend on the random state."""
        batch, logits = self.batch().with_(labels=self.labels()), []
        for words in ("loss", "loss with another seed"):
            with _config_kept(self.probe), self.probe.running(words) as subject:
                returned = _logits(subject.call(batch, {}))
            if returned is None:
                return False
            logits.append(returned)
        return not torch.equal(*logits)

    @remembered
    def made(self) -> Made:
        """A decoder whose input is made from labels."""
        labels = self.labels()
        given = labels.clone()
        middle = labels.shape[1] // 2
        other = labels.clone()
        other[:, middle] = labels.roll(1, 0)[:, middle]
        first, second = (self._from_labels(tensor).logits for tensor in (given, other))
        moved = difference(first, second).flatten(2).amax((0, 2))
        return Made(
            before=float(moved[: middle + 1].max()),
            after=float(moved[middle + 1 :].max()),
            logits=first,
            rewritten=not torch.equal(given, labels),
        )

    def refused(self) -> str | None:
        """What is raised where some labels of which a decoder's input is made are ignored."""
        try:
            self._from_labels(self.labels().masked_fill(~self.counted(), IGNORE))
        except Exception as error:  # noqa: BLE001 - the check says what raising means
            return error_line(error, 100)
        return None

    def _from_labels(self, labels: torch.Tensor) -> Output:
        only = self.batch()
        only.inputs.pop("decoder_input_ids", None)
        with _config_kept(self.probe):
            return self.probe.forward(only.with_(labels=labels))

    def where(self) -> str:
        """The module that gives the loss: the innermost one that returns it."""
        probe = self.probe
        batch = self.batch().with_(labels=self.labels())
        with _config_kept(probe), probe.running("loss") as subject:
            with traced(subject.model) as calls:
                raw = subject.call(batch, {})
            loss = _loss(raw)
        for call in calls:
            if loss is not None and any(t.numel() == 1 and bool(t == loss) for t in call.outputs):
                return call.name
        return ROOT

    def batch(self) -> Batch:
        """The inputs."""
        batch = self.probe.batch(*self.sizes, "loss")
        inputs = {role: t for role, t in batch.inputs.items() if role != "labels"}
        return type(batch)(inputs)

    def labels(self) -> torch.Tensor:
        """Labels (B, T) or (B,): different from each other as far as there are enough outputs."""
        probe = self.probe
        subject = probe.subject
        generator = torch.Generator().manual_seed(probe.seed_for("labels"))
        rows, length = self.sizes
        width = subject.facts.width
        if not self.per_token:
            return torch.randint(width, (rows,), generator=generator).to(subject.device)
        vocabulary = subject.target_vocab_size if subject.decodes else subject.vocab_size
        drawn = random_ids(subject, 1, min(8 * vocabulary, 20_000), generator, vocabulary)[0]
        pool = drawn[drawn < width].unique()
        pool = pool if len(pool) > 1 else torch.arange(width)
        count = rows * length
        if len(pool) < count:
            chosen = torch.randint(len(pool), (count,), generator=generator)
        else:
            chosen = torch.randperm(len(pool), generator=generator)[:count]
        return pool[chosen].view(rows, length).to(subject.device)

    def counted(self) -> torch.Tensor:
        """Which labels count in ``some``: another number in every row, the first row all."""
        labels = self.labels()
        rows = torch.arange(labels.shape[0], device=labels.device)
        if labels.dim() == 1:
            return rows % 2 == 0
        steps = torch.arange(labels.shape[1], device=labels.device)
        ignored = (rows[:, None] * (labels.shape[1] - 3)) // max(1, labels.shape[0] - 1)
        counted = steps[None] >= ignored
        if labels.shape[1] > 4:
            counted[1:, -2] = False
        return counted

    def _arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returned logits, or their gradient, as (B, T, V) or (B, K) in float64."""
        subject = self.probe.subject
        rows, length = self.sizes
        layout = subject.facts.layout
        if layout != "rows":
            tensor = arrange(tensor, layout, rows, length)
        if self.per_token and tensor.dim() == 2 and tensor.shape[0] % rows == 0:
            tensor = tensor.reshape(rows, -1, tensor.shape[-1])
        return tensor.detach().double().cpu()


def _loss(raw: Any) -> torch.Tensor | None:
    """The loss: by name, else the first floating point number."""
    if isinstance(raw, torch.Tensor):
        return raw if raw.dim() == 0 else None
    named = field_of(raw, "loss")
    if isinstance(named, torch.Tensor):
        return named.squeeze() if named.numel() == 1 else None
    for name in map(str, range(8)):
        value = field_of(raw, name)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 0:
            return value
    return None


def _logits(raw: Any) -> torch.Tensor | None:
    try:
        return read_output(raw).logits
    except SubjectError:
        return None


@contextlib.contextmanager
def _config_kept(probe: Probe) -> Iterator[None]:
    """Plain values of the model's configuration come back: a forward with labels may fix the
    problem type in it for all later ones."""
    config = getattr(probe.subject.model, "config", None)
    attributes = getattr(config, "__dict__", {})
    before = {k: v for k, v in attributes.items() if isinstance(v, str | int | float | None)}
    try:
        yield
    finally:
        attributes.update(before)
