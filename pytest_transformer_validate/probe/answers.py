"""What the model answers with: the last operation before its output, and which modules ran."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.probe.holders import own_weight
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.declared import (
    TARGET_VOCABULARY,
    VOCABULARY,
    declared_size,
    special_ids,
)
from pytest_transformer_validate.subject.guard import guard
from pytest_transformer_validate.subject.look import look
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.subject.outputs import Output

# Operations that move numbers to other places and leave them as they are.
_MOVES = re.compile(
    r"(Unsafe)?View|Alias|AsStrided|Clone|Expand|Permute|Reshape\w*|Select|Slice|Split\w*|"
    r"Squeeze|T|ToCopy|Transpose|Unbind|UnsafeSplit\w*|Unsqueeze"
)
_CHOICES = {"Round", "Sign", "Floor", "Ceil", "Trunc"}
NO_OUTPUT = "forward must return"
_WHOLE = re.compile(r"\b(u?int\d+|bool) tensor")
_ENTRY = 1e-3  # two float32 (or half precision) rows that sum to one are closer than this


@dataclass(frozen=True)
class Answer:
    """The output of one forward.

    ``operation`` is the last operation of the graph that computes (``Softmax``, ``Addmm``...),
    empty where there is no graph; ``shape``, ``field`` and ``kind`` are those of the output as
    the model returned it; ``sums_to_one``: all numbers are positive or zero and sum to one along
    the last axis; ``log_sums_to_zero``: they are logarithms of such numbers; ``whole``: every
    number is a whole one, by an operation without a gradient; ``negative``: at least one is below
    zero.
    """

    operation: str
    shape: tuple[int, ...]
    field: str
    kind: str
    sums_to_one: bool
    log_sums_to_zero: bool
    whole: bool
    negative: bool


@dataclass(frozen=True)
class Origin:
    """Where an output is from: ``where`` is the innermost module that gives the result of its
    last operation, ``ran`` are the modules that were called."""

    where: str
    ran: frozenset[str]


class Answers(Passes):
    """What the model answers with in eval mode, in training mode, and for one row."""

    @remembered
    def answer(self, condition: str = "eval", rows: int = 2) -> Answer:
        """One forward with its graph, in ``eval`` or ``training`` mode."""
        output = self._output(condition, rows)
        logits = output.logits.detach()
        return Answer(
            operation=_operation(_source(output.logits.grad_fn)),
            shape=tuple(logits.shape),
            field=output.field,
            kind=output.kind,
            **_values(logits, output.logits.grad_fn),
        )

    @remembered
    def origin(self, condition: str = "eval") -> Origin:
        """Where the output of ``answer`` is from."""
        results: list[tuple[str, torch.Tensor]] = []
        with contextlib.ExitStack() as hooks:
            for name, module in self.probe.subject.model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    hook = module.register_forward_hook(_collect(name or ROOT, results))
                    hooks.callback(hook.remove)
            source = _source(self._output(condition).logits.grad_fn)
        places = (n for n, t in results if source is not None and _source(t.grad_fn) is source)
        return Origin(next(places, ROOT), frozenset(name for name, _ in results))

    def _output(self, condition: str, rows: int = 2) -> Output:
        most, length = self.probe.subject.sizes
        batch = self.probe.batch(min(rows, most), length, "answer")
        with self.probe.under(condition), self.probe.running("answer", grad=True) as subject:
            return subject(batch)

    def unreadable(self) -> str | None:
        """Why the output cannot be judged at all (whole numbers only), ``None`` where it can."""
        subject = self.probe.subject
        try:
            _ = subject.facts
        except Exception:  # noqa: BLE001 - whatever else the first forward raised, load tells
            try:
                with guard(subject.model, self.probe.seed_for("unreadable")), torch.no_grad():
                    subject.model.eval()
                    look(subject)
            except SubjectError as error:
                text = str(error)
                return text if text.startswith(NO_OUTPUT) and _WHOLE.search(text) else None
            except Exception:  # noqa: BLE001 - as above
                return None
        return None

    def heads(self, width: int) -> list[str]:
        """Modules with a weight of ``width`` outputs or more that are no lookup tables, nor
        parts that torch's attention reads and never calls."""
        found = []
        no_heads = (torch.nn.Embedding, NonDynamicallyQuantizableLinear)
        for name, module in self.probe.subject.model.named_modules():
            weight = own_weight(module)
            if weight is None or weight.dim() != 2 or isinstance(module, no_heads):
                continue
            outputs = weight.shape[1] if getattr(module, "nf", None) else weight.shape[0]
            if outputs >= width:
                found.append(name)
        return found

    def widths(self) -> set[int]:
        """Widths of the vectors inside: of embedding tables, and of scales that are still one."""
        model = self.probe.subject.model
        tables = (m for m in model.modules() if isinstance(m, torch.nn.Embedding))
        scales = {p.shape[0] for p in model.parameters() if p.dim() == 1 and bool((p == 1).all())}
        return {m.embedding_dim for m in tables} | scales

    def ordinal(self) -> bool:
        """Whether the outputs (B, K) of a text are one score with a threshold each: whatever the
        text is, they lie as far apart. 64 u are allowed."""
        logits = self.probe.plain().double()
        apart = logits - logits[:, :1]
        limit = 64 * self.probe.eps * float(logits.abs().max())
        moved = float((logits - logits[:1]).abs().max())
        return float((apart - apart[:1]).abs().max()) <= limit < moved

    def as_wide(self) -> bool:
        """Whether the output is at least as wide as the vocabulary, as far as that is known."""
        subject = self.probe.subject
        try:
            wanted = subject.target_vocab_size if subject.decodes else subject.vocab_size
        except SubjectError:
            return True
        return subject.facts.width >= wanted

    def may_miss(self, first: int, stop: int) -> bool:
        """Whether the ids from ``first`` to ``stop`` need not be predicted: all are special, or
        no configuration declares them."""
        config = self.probe.subject.config
        keys = (*VOCABULARY, *TARGET_VOCABULARY)
        if declared_size(config, keys) is None:
            return True
        return set(range(first, stop)) <= special_ids(config) | {self.probe.subject.pad_id}

    def own_loss(self) -> tuple[float, float, float] | None:
        """The loss that the model makes of labels, and what two readings of its output give: as
        logits and as probabilities, at the alignment that fits best. ``None`` without labels."""
        probe = self.probe
        subject = probe.subject
        if not subject.signature.takes("labels"):
            return None
        batch = probe.batch(*subject.sizes, "answer")
        following = batch.inputs.get("decoder_input_ids", batch.main)
        try:
            with probe.running("own loss") as ready:
                output = ready(batch.with_(labels=following))
        except (SubjectError, RuntimeError, ValueError, TypeError, IndexError):
            return None
        if output.loss is None or output.loss.dim():
            return None
        logits = output.logits.double().reshape(-1, output.logits.shape[-1])
        if len(logits) != following.numel():
            return None
        return float(output.loss), *_readings(logits.view(*following.shape, -1), following)


def _readings(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Cross entropy of ``scores`` (B, T, V) read as logits and as probabilities, unshifted."""
    flat = labels.reshape(-1)
    rows = scores.reshape(-1, scores.shape[-1])
    as_logits = torch.nn.functional.cross_entropy(rows, flat)
    as_probabilities = torch.nn.functional.nll_loss(rows.clamp_min(1e-30).log(), flat)
    return float(as_logits), float(as_probabilities)


def _collect(name: str, results: list[tuple[str, torch.Tensor]]) -> Callable[..., None]:
    def record(_module: Any, _args: Any, output: Any) -> None:
        results.extend((name, tensor) for tensor in floating(output)[:4])

    return record


def _source(node: Any) -> Any:
    """The node that computes, behind those that only move numbers."""
    while node is not None and _MOVES.fullmatch(_operation(node)):
        node = node.next_functions[0][0] if node.next_functions else None
    return node


def _operation(node: Any) -> str:
    return "" if node is None else re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def _values(logits: torch.Tensor, node: Any) -> dict[str, bool]:
    finite = logits[logits.isfinite()]
    rows = logits.reshape(-1, logits.shape[-1]).double()
    wide = rows.shape[-1] > 1
    chosen = node is None or _operation(_source(node)) in _CHOICES
    negative = bool((finite < 0).any())
    sums = bool(wide and not negative and ((rows.sum(-1) - 1).abs() < _ENTRY).all())
    logs = bool(wide and (rows <= 0).all() and (rows.logsumexp(-1).abs() < _ENTRY).all())
    return {
        "sums_to_one": sums,
        "log_sums_to_zero": logs,
        "whole": chosen and len(finite.unique()) > 1 and bool((finite == finite.round()).all()),
        "negative": negative,
    }
