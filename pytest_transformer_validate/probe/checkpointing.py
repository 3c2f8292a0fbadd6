"""Loss and gradients with activations kept, and with activations computed again.

In training mode with dropout on: both runs start from the same random state, and checkpointing
promises to draw the same numbers when it computes again.
"""

from __future__ import annotations

import contextlib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.compare import finite, over
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.quiet import quietly
from pytest_transformer_validate.probe.trace import ROOT, Call, first_to_differ, traced
from pytest_transformer_validate.probe.watch import counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

    Prepare = Callable[[nn.Module], None]

METHODS = (
    "activation_checkpointing_enable", "gradient_checkpointing_enable", "set_grad_checkpointing",
    "set_gradient_checkpointing", "enable_gradient_checkpointing", "enable_checkpointing",
)  # fmt: skip
_FLAG = re.compile(r"(^|_)((grad|gradient|activation)_)?checkpoint(ing|s)?(_|$)")
_NO_FLAG = re.compile(r"(path|dir|file|save|load|every|interval)")
BLOCKS = "blocks"
_SHORT = 8  # a text of fewer tokens has none to spare for padding


@dataclass(frozen=True)
class Trained:
    """One forward and backward: ``loss``, the gradients by parameter, and how often each module
    ran."""

    loss: float
    gradients: dict[str, torch.Tensor]
    ran: dict[str, int]


class Checkpointing(Passes):
    """Passes in training mode, with and without checkpoints."""

    @remembered
    def way(self) -> str:
        """How the model is told to checkpoint: a method, an attribute, or ``blocks`` where it
        has none and its repeated blocks are wrapped from outside."""
        model = self.probe.subject.model
        supports = getattr(model, "supports_gradient_checkpointing", True)
        for name in METHODS if supports else ():
            if callable(getattr(model, name, None)):
                return f"{name}()"
        found = sorted({name for module in model.modules() for name in flags(module)})
        if found:
            return found[0]
        if not supports:
            raise NotApplicable("the model says that it does not support gradient checkpointing")
        return BLOCKS

    @remembered
    def plain(self) -> Trained:
        """Without checkpoints. A model that checkpoints from the start is told not to.

        Raises NotApplicable where it runs, and has no training step: a cache that is written in
        place, a forward without gradients, a length that training refuses.
        """
        return self._without()

    @remembered
    def again(self) -> Trained:
        """The same once more, which shows whether there is something to compare with."""
        return self._without()

    def _without(self) -> Trained:
        try:
            return self._trained(_disable)
        except Exception as error:
            self.probe.forward(self._batch())  # what raises here too is no fault of training
            line = error_line(error)
            raise NotApplicable(f"there is no training step to repeat: {line}") from error

    @remembered
    def checkpointed(self) -> Trained:
        """With checkpoints. Raises NotApplicable where the model refuses them."""
        if self.way() != BLOCKS:
            return self._trained(self._prepare())
        try:
            return self._trained(wrap_blocks)
        except NotApplicable:
            raise
        except Exception as error:
            line = error_line(error)
            raise NotApplicable(f"blocks inside torch.utils.checkpoint raise {line}") from error

    def _prepare(self) -> Prepare:
        """What turns checkpoints on."""
        way = self.way()
        if way == BLOCKS:
            return wrap_blocks
        if not way.endswith("()"):
            return functools.partial(set_flags, name=way, value=True)
        method = way.removesuffix("()")

        def enable(model: Any) -> None:
            try:
                getattr(model, method)(*[True] * method.startswith("set_"))
            except (ValueError, NotImplementedError) as error:
                raise NotApplicable(f"{way} is refused: {error_line(error)}") from error

        return enable

    def locate_forward(self) -> str | None:
        """The first module that gives something else with checkpoints, already in the forward."""
        before, after = self._traced(_disable), self._traced(self._prepare())
        found = first_to_differ(before, after, over)
        if found is not None:
            return found
        for old, new in zip(before, after, strict=False):
            if old.name != new.name:
                return old.name.rpartition(".")[0] or ROOT  # calls something else
        return None

    def order(self) -> list[str]:
        """Names of all parameters, in the order in which their modules run."""
        ran = {name: number for number, name in enumerate(self.plain().ran)}
        names = [name for name, _ in self.probe.subject.model.named_parameters()]
        return sorted(names, key=lambda name: ran.get(name.rpartition(".")[0], -1))

    def parts(self) -> list[str]:
        """Modules that ran more often with checkpoints, the outermost ones."""
        plain, other = self.plain().ran, self.checkpointed().ran
        more = [name for name, count in other.items() if count > plain.get(name, 0)]
        names = [n for n, _ in self.probe.subject.model.named_modules() if n in more]
        return [n for n in names if not any(n.startswith(f"{o}.") for o in names)]

    @property
    def _sizes(self) -> tuple[int, int]:
        rows, length = self.probe.subject.sizes
        return (rows if self.probe.subject.small else min(rows, 2)), length

    @remembered
    def _batch(self) -> Batch:
        """Padded where the model takes a mask: what is not handed on to a checkpoint shows only
        where it says something. Without padding where that makes NaN."""
        batch = self.probe.batch(*self._sizes, "checkpointing")
        if self.probe.subject.vision or self._sizes[1] < _SHORT:
            return batch
        padding = self.probe.padding
        padded = batch
        for covers, way in padding.told():
            if way is not None:
                keep = padding.keep(batch[covers], padding.layout(covers))
                padded = way.tell(padded, keep)
        with contextlib.suppress(Exception):  # masks of several texts need not go together
            if bool(self.probe.forward(padded).logits.isfinite().all()):
                return padded
        return batch

    @contextlib.contextmanager
    def _training(self, prepare: Prepare) -> Iterator[Subject]:
        probe = self.probe
        with (
            probe.under("training"),
            probe.running("checkpointing", grad=True) as subject,
            quietly(),
        ):
            _disable(subject.model)
            prepare(subject.model)
            yield subject

    def _traced(self, prepare: Prepare) -> list[Call]:
        batch = self._batch()
        with self._training(prepare) as subject, traced(subject.model) as calls:
            subject(batch)
        return calls

    def _trained(self, prepare: Prepare) -> Trained:
        batch = self._batch()
        with self._training(prepare) as subject, counting(subject.model) as ran:
            logits = subject(batch).logits
            generator = torch.Generator().manual_seed(self.probe.seed_for("checkpointing"))
            weights = torch.randn(logits.shape, generator=generator).to(logits)
            loss = (finite(logits) * weights).double().mean()
            loss.backward()
            gradients = {
                name: parameter.grad.to_dense().detach().clone()
                for name, parameter in subject.model.named_parameters()
                if parameter.grad is not None
            }
        return Trained(float(loss.detach()), gradients, ran)


def flags(module: nn.Module) -> Iterator[str]:
    """Plain attributes that turn checkpoints on."""
    for name, value in vars(module).items():
        if isinstance(value, bool) and _FLAG.search(name) and not _NO_FLAG.search(name):
            yield name


def set_flags(model: nn.Module, name: str, value: bool) -> None:
    for module in model.modules():
        if name in set(flags(module)):
            setattr(module, name, value)


def _disable(model: nn.Module) -> None:
    for module in model.modules():
        for name in list(flags(module)):
            setattr(module, name, False)


def wrap_blocks(model: nn.Module) -> None:
    """Every block of a list of blocks of one class inside a checkpoint of its own; the guard
    gives the forwards back."""
    wrapped = False
    for blocks in model.modules():
        kinds = {type(block) for block in blocks.children()}
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(kinds) != 1:
            continue
        if len(blocks) < 2 or next(next(iter(blocks)).children(), None) is None:
            continue
        wrapped = True
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if not wrapped:
        raise NotApplicable("it has no checkpointing of its own, and no list of blocks to wrap")
