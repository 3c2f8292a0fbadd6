"""What becomes of the output of every dropout module in one forward."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.subject.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DROPOUT = nn.modules.dropout._DropoutNd
_NOT_READING = ("shape", "dtype", "device", "ndim", "requires_grad")


class DropoutWatch(TorchFunctionMode):
    """What becomes of the output of every dropout module while inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.called: list[str] = []
        self.resting: set[str] = set()
        self.zeros: dict[str, torch.Tensor] = {}
        self.gives_logits: str | None = None
        self._unread: dict[int, tuple[str, torch.Tensor]] = {}
        self._last: dict[str, torch.Tensor] = {}
        self._model = model
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._hooks.enter_context(self.outputs())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._hooks.close()

    @contextlib.contextmanager
    def outputs(self) -> Iterator[None]:
        """Watch what dropout modules give, and not who reads it."""
        handles = [
            module.register_forward_hook(self._leave(name))
            for name, module in self._model.named_modules()
            if isinstance(module, DROPOUT) or drops_inside(module) or _may_drop(module)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._unread and _reads(func):
            self._forget((args, kwargs))
        return func(*args, **(kwargs or {}))

    def read(self, logits: torch.Tensor) -> None:
        """The output of the model is read by its caller."""
        self._forget(logits)
        for name, output in self._last.items():
            if output is logits or (
                output.data_ptr() == logits.data_ptr() and output.numel() == logits.numel()
            ):
                self.gives_logits = name

    def unread(self) -> list[str]:
        """Dropout modules with p > 0 of which some output was used by nothing."""
        return list(dict.fromkeys(name for name, _ in self._unread.values()))

    def drew(self, logits: torch.Tensor) -> bool:
        """Whether single logits are exactly zero."""
        return bool((logits == 0).any())

    def _forget(self, value: Any) -> None:
        for tensor in tensors_in(value):
            self._unread.pop(id(tensor), None)

    def _leave(self, name: str) -> Callable[..., None]:
        def note(module: Any, args: Any, output: Any) -> None:
            self.called.append(name)
            given = args[0] if args else None
            if same_kind(given, output) and module.training:
                self.zeros[name] = ((output == 0) & (given != 0)).detach()
            if not module.training:
                self.resting.add(name)
            if not isinstance(output, torch.Tensor) or not isinstance(module, DROPOUT):
                return
            self._last[name] = output
            if module.training and module.p > 0 and not module.inplace:
                self._unread[id(output)] = (name, output)

        return note


def same_kind(a: Any, b: Any) -> bool:
    """Whether two things are tensors of one shape."""
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape


def is_rate(name: str, value: Any) -> bool:
    """Whether a name and a value are those of a dropout's probability above zero."""
    return "drop" in name and isinstance(value, float) and 0 < value <= 1


def rates_of(module: nn.Module) -> dict[str, float]:
    """The probabilities above zero that a module keeps, by attribute."""
    dropping = isinstance(module, DROPOUT)
    return {n: v for n, v in vars(module).items() if is_rate("drop" if dropping else n, v)}


def drops_inside(module: nn.Module) -> bool:
    """Whether a module of torch's drops without a dropout module."""
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1


def _may_drop(module: nn.Module) -> bool:
    """A module of the model's own without parameters: a dropout may be written like that."""
    own = not type(module).__module__.startswith("torch.")
    return own and not [*module.children(), *module.parameters()]


def _reads(func: Any) -> bool:
    """Whether a call looks at the values of its arguments."""
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", None) not in _NOT_READING
