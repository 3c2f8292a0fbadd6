"""What attention operations are given while a model runs: scores before the softmax."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.structure import POSITIONWISE
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.dispatch import Operations
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SOFTMAX = {"aten::_softmax", "aten::_safe_softmax", "aten::softmax"}
_PRODUCTS = {"aten::bmm", "aten::mm", "aten::matmul", "aten::baddbmm", "aten::_softmax"}
_FUSED = "scaled_dot_product"


@dataclass(frozen=True)
class Scores:
    """The scores (H, T, T) of one attention over one text, masks and biases added.

    ``module`` is the innermost module that was running, ``given`` its first input (T, D), as far
    as it has one.
    """

    module: str
    scores: torch.Tensor
    given: torch.Tensor | None

    def visible(self) -> torch.Tensor:
        """(H, T, T): which weights are not exactly zero."""
        return self.scores.nan_to_num(nan=float("-inf")).softmax(-1) > 0


class ScoreReader(Operations):
    """Records the scores of every self-attention over ``length`` tokens of one text.

    Sees softmax over the last axis and torch's fused attention; a softmax that is written out by
    hand is not seen, but for ``compares``: whether anything makes a product of every position
    with every other.
    """

    def __init__(self, model: torch.nn.Module, length: int) -> None:
        super().__init__()
        self.model = model
        self.length = length
        self.found: list[Scores] = []
        self.compares = False
        self._running: list[tuple[str, Any]] = [(ROOT, ())]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name if hasattr(func, "_schema") else ""
        if name in _SOFTMAX:
            axis = args[1] if len(args) > 1 else -1
            if axis in (-1, args[0].dim() - 1):
                self._note(args[0].detach())
        elif _FUSED in name and "backward" not in name:
            names = (argument.name for argument in func._schema.arguments)
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            self._note(fused_scores(given))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and tuple(result.shape[-2:]) == (self.length,) * 2:
            self.compares = self.compares or name in _PRODUCTS
        return result

    def _note(self, scores: torch.Tensor | None) -> None:
        if scores is None or scores.dim() < 3 or tuple(scores.shape[-2:]) != (self.length,) * 2:
            return
        self.compares = True
        module, given = self._running[-1]
        first = next(
            (t for a in floating(given) if (t := along(a, self.length)) is not None), None
        )
        flat = scores.reshape(-1, self.length, self.length).clone()
        self.found.append(Scores(module, flat, first))

    @contextlib.contextmanager
    def watching(self) -> Iterator[ScoreReader]:
        """Record while inside, and know which module is running."""
        handles: list[Any] = []
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) or type(module) in POSITIONWISE:
                continue
            handles.append(
                module.register_forward_pre_hook(self._enter(name or ROOT), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(self._leave))
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def record(_module: Any, args: Any, kwargs: Any) -> None:
            self._running.append((name, (args, kwargs)))

        return record

    def _leave(self, _module: Any, _args: Any, _output: Any) -> None:
        self._running.pop()


def along(tensor: torch.Tensor, length: int) -> torch.Tensor | None:
    """A tensor (1, T, D), or (T, 1, D), of one text as (T, D); ``None`` for any other."""
    if tensor.dim() != 3 or length not in tensor.shape[:2] or 1 not in tensor.shape[:2]:
        return None
    return tensor.detach().reshape(length, tensor.shape[-1])


def fused_scores(given: Mapping[str, Any]) -> torch.Tensor | None:
    """softmax's input (B, H, T, S) as torch's fused attention computes it; ``None`` for inputs
    with other axes."""
    query, key = (given[name].detach() for name in ("query", "key"))
    if query.dim() != 4:
        return None
    if query.shape[1] != key.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = given.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores: torch.Tensor = query @ key.transpose(-2, -1) * scale
    mask = next((given[n] for n in ("attn_mask", "attn_bias") if given.get(n) is not None), None)
    if mask is not None:
        masked = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else None
        scores = scores + mask if masked is None else masked
    if given.get("is_causal"):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores
