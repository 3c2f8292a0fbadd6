"""The same model, computed in another way: another attention function, flag, or kernel.

What can be switched is found in the model: a method that sets an implementation, attributes that
are called after a kernel, calls of torch's attention, layers with a fast path of their own.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.probe.compare import difference, over, sequence, trace
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.quiet import quietly
from pytest_transformer_validate.probe.trace import first_to_differ
from pytest_transformer_validate.subject.masks import padding_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_transformer_validate.subject.batch import Batch

# A method that sets an implementation, where its name is kept, and what it may be on any device.
_METHODS = (
    ("set_attn_implementation", "_attn_implementation", ("eager", "sdpa")),
    ("set_experts_implementation", "_experts_implementation", ("eager", "grouped_mm")),
)
_FLAG = re.compile(r"(^|_)(flash|sdpa|xformers|fused_(attn|attention|sdpa|kernel))(_|$)")
_NAMES = frozenset(
    {"eager", "sdpa", "math", "manual", "naive", "flash", "native", "vanilla", "torch", "einsum"}
)
_CONFIGS = ("config", "cfg", "args")
_FAST = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(frozen=True)
class Switch:
    """One thing to switch: ``kind`` is ``method``, ``attribute``, ``kernel`` or ``fast path``."""

    kind: str
    name: str
    value: str | bool

    def __str__(self) -> str:
        if self.kind == "method":
            return f"{self.name}({self.value!r})"
        if self.kind == "attribute":
            return f"{self.name} = {self.value!r}"
        return self.name


@dataclass(frozen=True)
class Switched:
    """The outputs of one text both ways; ``moved`` is how far they are apart at real tokens,
    ``raised`` what the other way raised."""

    moved: float
    reference: torch.Tensor
    raised: str = ""


class Backends(Passes):
    """Passes over one text, in one way and in another."""

    @remembered
    def switches(self) -> list[Switch]:
        """Everything that can be switched, what people write themselves first."""
        model = self.probe.subject.model
        found = [*_methods(model), *_attributes(model)]
        with self.probe.running("forward") as subject, _CountsAttention() as counts:
            subject(self.text("plain"))
        if counts.calls:
            found.append(Switch("kernel", "the math kernel of scaled_dot_product_attention", True))
        fast = any(isinstance(module, _FAST) for module in model.modules())
        if fast and torch.backends.mha.get_fastpath_enabled():
            found.append(Switch("fast path", "nn.MultiheadAttention without its fast path", True))
        return found

    def fast_path_moves(self, limit: float) -> bool:
        """Whether torch's fast path, which its layers take in eval mode without gradients, gives
        no numbers, or logits further apart than ``limit`` from those that they give off it."""
        fast = next((s for s in self.switches() if s.kind == "fast path"), None)
        if fast is None:
            return False
        batch = self.text("plain")
        reference = self.probe.forward(batch).logits
        with switched(self.probe.subject.model, fast):
            other = self.probe.forward(batch).logits
        moved = float(difference(reference, other).max())
        return not bool(other.isnan().any()) and not moved <= limit

    @remembered
    def texts(self) -> list[str]:
        """The kinds of padding that the model can be told of: ``plain`` and others."""
        subject = self.probe.subject
        if subject.vision or subject.sizes[1] < 6 or not self.probe.padding.told():
            return ["plain"]
        causal = subject.task.task_type == "causal_lm"
        return ["plain", "right", "left"] if causal else ["plain", "right"]

    @remembered
    def compared(self, switch: Switch, text: str, condition: str) -> Switched:
        """One text both ways; ``condition`` is ``plain`` or ``noised``."""
        probe = self.probe
        batch = self.text(text)
        with probe.under(condition):
            reference = probe.forward(batch).logits
            try:
                with switched(probe.subject.model, switch):
                    other = probe.forward(batch).logits
            except Exception as error:  # noqa: BLE001 - not every way need be there
                return Switched(0.0, reference, error_line(error))
        if other.shape != reference.shape:
            return Switched(float("inf"), reference)
        moved = difference(reference, other)
        moved = torch.where(reference.isnan(), 0, moved).nan_to_num(float("inf"))
        keep = self._real(batch, text)
        if keep is not None and moved.dim() > 2 and moved.shape[:2] == keep.shape:
            moved = moved[keep]
        return Switched(float(moved.max()) if moved.numel() else 0.0, reference)

    def text(self, kind: str) -> Batch:
        """A batch without padding, or with some on one side."""
        probe = self.probe
        batch = probe.batch(*probe.subject.sizes, "backends")
        if kind == "plain":
            return batch
        for covers, way in probe.padding.told():
            keep = probe.padding.keep(batch[covers], kind)
            if way is not None:
                batch = way.tell(batch, keep)
            else:
                filler = padding_id(probe.subject) or 0
                batch = batch.with_(**{covers: batch[covers].masked_fill(~keep, filler)})
        return batch

    def locate(self, switch: Switch, text: str, condition: str, limit: float) -> str | None:
        """The first module that gives something else when computed the other way."""
        probe = self.probe
        batch = self.text(text)
        with probe.under(condition):
            if switch.kind == "fast path":
                return self._locate_fast(batch, limit)
            before = trace(probe, batch)
            with switched(probe.subject.model, switch):
                after = trace(probe, batch)
        part = 64 * probe.eps
        return first_to_differ(before, after, lambda a, b: over(a, b, part))

    def _real(self, batch: Batch, text: str) -> torch.Tensor | None:
        role = sequence(self.probe)
        covered = [covers for covers, _ in self.probe.padding.told()] if text != "plain" else []
        return self.probe.padding.keep(batch[role], text) if role in covered else None

    def _locate_fast(self, batch: Batch, limit: float) -> str | None:
        """Layer after layer without its fast path, which a layer with a hook does not take."""
        probe = self.probe
        reference = probe.forward(batch).logits
        layers = probe.subject.model.named_modules()
        fast: list[tuple[str, nn.Module]] = [(n, m) for n, m in layers if isinstance(m, _FAST)]
        for name, module in fast:
            handle = module.register_forward_hook(lambda *_: None)
            try:
                moved = difference(reference, probe.forward(batch).logits)
            finally:
                handle.remove()
            if not float(moved.nan_to_num(0).max()) <= limit:
                return name
        return None


@contextlib.contextmanager
def switched(model: nn.Module, switch: Switch) -> Iterator[None]:
    """The other way inside; as before afterwards."""
    if switch.kind == "kernel":
        with sdpa_kernel(SDPBackend.MATH):
            yield
        return
    if switch.kind == "fast path":
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        return
    if switch.kind == "method":
        kept = next(keeps for name, keeps, _ in _METHODS if name == switch.name)
        config: Any = model.config
        before = getattr(config, kept)
        with quietly():
            getattr(model, switch.name)(switch.value)
        try:
            yield
        finally:
            with quietly():
                getattr(model, switch.name)(before)
        return
    held = [(holder, holder[switch.name]) for holder in _holders(model) if switch.name in holder]
    try:
        for holder, _ in held:
            holder[switch.name] = switch.value
        yield
    finally:
        for holder, value in held:
            holder[switch.name] = value


def _methods(model: nn.Module) -> Iterator[Switch]:
    """Implementations that a method of the model sets, and that are not in force."""
    config = getattr(model, "config", None)
    for method, kept, values in _METHODS:
        before = getattr(config, kept, None)
        if before is None or not callable(getattr(model, method, None)):
            continue
        for value in values:
            switch = Switch("method", method, value)
            if value == before:
                continue
            try:
                with switched(model, switch):
                    taken = getattr(config, kept, None) == value
            except Exception:  # noqa: BLE001 - says that it does not support the implementation
                continue
            if taken:
                yield switch


def _attributes(model: nn.Module) -> Iterator[Switch]:
    """Attributes of modules and of their configurations that are called after a kernel, or hold
    the name of a way to compute attention where the code around knows another one."""
    seen: set[Switch] = set()
    known = _constants(model)
    for holder in _holders(model):
        for name, value in list(holder.items()):
            if not isinstance(name, str) or name.startswith("_"):
                continue  # the affair of a method that sets it
            if isinstance(value, bool) and _FLAG.search(name):
                seen.add(Switch("attribute", name, not value))
            elif isinstance(value, str) and value in _NAMES:
                others = sorted(known & _NAMES - {value})
                seen |= {Switch("attribute", name, other) for other in others}
    yield from sorted(seen, key=str)


def _constants(model: nn.Module) -> set[str]:
    """Texts in the forwards of a model's own classes."""
    found: set[str] = set()
    for kind in {type(module) for module in model.modules()}:
        code = getattr(kind.forward, "__code__", None)
        found |= {c for c in getattr(code, "co_consts", ()) if isinstance(c, str)}
    return found


def _holders(model: nn.Module) -> Iterator[dict[Any, Any]]:
    """Plain attributes of every module, and of the configurations that they hold, each once."""
    seen: set[int] = set()
    for module in model.modules():
        own = vars(module)
        configs = [own[name] for name in _CONFIGS if name in own]
        dicts = [c if isinstance(c, dict) else getattr(c, "__dict__", None) for c in configs]
        for holder in (own, *(d for d in dicts if isinstance(d, dict))):
            if id(holder) not in seen:
                seen.add(id(holder))
                yield holder


class _CountsAttention(TorchFunctionMode):
    """Counts calls of torch's attention."""

    calls = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.calls += func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))
