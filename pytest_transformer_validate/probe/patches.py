"""Which pixels of an image the first tokens are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.probe.watch import watched
from pytest_transformer_validate.subject.declared import declared_size

_FEWEST = 4  # patches along a side, so that a square is told from a strip


@dataclass(frozen=True)
class Scattered:
    """A token that reads as many numbers as a patch of side ``patch`` has, and not those of one:
    they stand in a box of ``box`` pixels (height, width). ``module`` is where it was made."""

    module: str
    patch: int
    box: tuple[int, int]


class Patches(Passes):
    """A pass over one image."""

    @remembered
    def scattered(self) -> Scattered | None:
        """A first token that is made of a declared patch's worth of numbers from elsewhere."""
        probe = self.probe
        patch = declared_size(probe.subject.config, ("patch_size",))
        batch = probe.batch(1, 1, "patches")
        pixels = batch["pixel_values"].detach().clone().requires_grad_()
        channels, height, width = pixels.shape[1:]
        if not patch or min(height, width) < _FEWEST * patch or height % patch or width % patch:
            return None
        tokens = (height // patch) * (width // patch)
        found: list[tuple[str, torch.Tensor]] = []

        def note(name: str, _module: Any, _args: Any, output: Any) -> None:
            fits = isinstance(output, torch.Tensor) and output.shape[:-1] == (1, tokens)
            if fits and output.requires_grad and name != ROOT and not found:
                found.append((name, output))

        with probe.running("patches", grad=True) as subject:
            with watched(subject.model, lambda _: None, called=note):
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
                if int(read.sum()) != channels * patch * patch:
                    return None
                high, wide = (int(x.max() - x.min()) + 1 for x in (rows, columns))
                if max(high, wide) > patch:
                    return Scattered(name.rpartition(".")[0] or ROOT, patch, (high, wide))
        return None
