"""Which pixels of an image the first tokens are made of."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.declared import declared_size
from pytest_transformer_validate.subject.images import patch_side
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FEWEST = 4  # patches along a side, so that a square is told from a strip
_OWN = 0.5  # of what a token depends on, at least: its own patch, where others come in by a norm


@dataclass(frozen=True)
class Scattered:
    """A token that is not made of one patch of side ``patch``: what it reads stands in a box of
    ``box`` pixels (height, width). ``module`` is where it was made."""

    module: str
    patch: int
    box: tuple[int, int]


class Patches(Passes):
    """A pass over one image."""

    @remembered
    def scattered(self) -> Scattered | None:
        """A first token that is made of a patch's worth of numbers from elsewhere, or of several
        patches where a convolution cuts them."""
        probe, model = self.probe, self.probe.subject.model
        cut = _cut_by(model)
        declared = declared_size(probe.subject.config, ("patch_size",))
        patch = declared or cut or patch_side(model, probe.subject.config)
        batch = probe.batch(1, 1, "patches")
        pixels = batch["pixel_values"].detach().clone().requires_grad_()
        channels, height, width = pixels.shape[1:]
        if not patch or min(height, width) < _FEWEST * patch or height % patch or width % patch:
            return None
        tokens = (height // patch) * (width // patch)
        found: list[tuple[str, torch.Tensor]] = []

        def note(name: str, values: Any) -> None:
            for t in () if found else floating(values):
                known = t.shape[-1] != tokens  # so that its axes are known
                if t.shape[:-1] == (1, tokens) and known and t.requires_grad:
                    found.append((name, t))

        with probe.running("patches", grad=True) as subject:
            with _passing(subject.model, note):
                subject(batch.with_(pixel_values=pixels))
            for token in (0, tokens // 2) if found else ():
                name, output = found[0]
                weights = torch.arange(1.0, output.shape[-1] + 1).to(output)
                part = (output[0, token] * weights.cos()).sum()
                (grad,) = torch.autograd.grad(part, [pixels], retain_graph=True, allow_unused=True)
                if grad is None:
                    return None
                read = grad[0] != 0
                rows, columns = (read.any(0).any(1 - axis).nonzero() for axis in (0, 1))
                mixed = cut == patch and _share(grad[0], patch) < _OWN
                if int(read.sum()) != channels * patch * patch and not mixed:
                    return None
                high, wide = (int(x.max() - x.min()) + 1 for x in (rows, columns))
                if max(high, wide) > patch:
                    return Scattered(name or ROOT, patch, (high, wide))
        return None


@contextlib.contextmanager
def _passing(model: torch.nn.Module, note: Callable[[str, Any], None]) -> Iterator[None]:
    """``note(name, values)`` with what each module is given, and gives, in this order; ``name`` is
    the module whose code made it."""
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if name == "" or isinstance(module, torch.jit.ScriptModule):
                continue
            around = name.rpartition(".")[0]
            made = name if [*module.children()] else around

            def given(_: Any, args: Any, kwargs: Any, by: str = around) -> None:
                note(by, (args, kwargs))

            def gave(_: Any, __: Any, output: Any, by: str = made) -> None:
                note(by, output)

            before = module.register_forward_pre_hook(given, with_kwargs=True)
            hooks.callback(before.remove)
            hooks.callback(module.register_forward_hook(gave).remove)
        yield


def _cut_by(model: torch.nn.Module) -> int | None:
    """The side of the squares that a convolution cuts an image into, where no other one reads
    more than single pixels."""
    convolutions = (m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    wide = [m for m in convolutions if max(m.kernel_size) > 1]
    if len(wide) != 1 or wide[0].kernel_size != wide[0].stride or any(map(bool, wide[0].padding)):
        return None
    side, other = wide[0].kernel_size
    return side if side == other else None


def _share(grad: torch.Tensor, patch: int) -> float:
    """The share of a gradient (C, H, W) that is in the patch with most of it."""
    tiles = grad.square().sum(0).unfold(0, patch, patch).unfold(1, patch, patch).sum((2, 3))
    return float(tiles.max() / tiles.sum())
