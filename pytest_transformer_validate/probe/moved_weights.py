"""Every parameter moved at random, so that what starts at zero carries signal."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.passes import Passes
from pytest_transformer_validate.probe.structure import batch_norms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_transformer_validate.probe.probe import Probe

_PERIOD = 1_048_573
TINY = 2_000_000  # parameters for which draws are kept, and one thread does


class MovedWeights(Passes):
    """Parameters moved at random, for passes inside."""

    def __init__(self, probe: Probe) -> None:
        super().__init__(probe)
        self._drawn: list[torch.Tensor] = []

    @contextlib.contextmanager
    def at_random(self) -> Iterator[None]:
        """Every floating point parameter moved at random while inside.

        By 0.5/sqrt(fan in) for weights and 0.1 for vectors, so that gates and projections that
        start at zero carry signal; the statistics of batch norms then follow the data. What is
        frozen at zero in a model that is trained stays there, as it does in training. The
        parameters and buffers themselves are put back, not copies.
        """
        with data_kept(self.probe.subject.model) as originals:
            moved = _but_zeros([(p, data) for p, data in originals if _is_moved(p, data)])
            for (parameter, data), noise in zip(moved, self._noises(moved), strict=True):
                scale = 0.5 / math.sqrt(data[0].numel()) if data.dim() > 1 else 0.1
                parameter.data = torch.add(data, noise.to(data), alpha=scale)
            self._calibrate()
            yield

    def _noises(self, moved: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterable[torch.Tensor]:
        """A normal draw for each parameter; those for a tiny model are drawn once."""
        generator = torch.Generator().manual_seed(self.probe.seed_for("noise"))
        draws = (_normal(data.shape, generator) for _, data in moved)
        if self.probe.subject.parameters > TINY:
            return draws
        shapes = [data.shape for _, data in moved]
        if [noise.shape for noise in self._drawn] != shapes:
            self._drawn = list(draws)
        return self._drawn

    def _calibrate(self) -> None:
        """Let the running statistics of batch norms follow a few batches."""
        norms = [m for m in batch_norms(self.probe.subject.model) if m.track_running_stats]
        if not norms:
            return
        rows = min(8, self.probe.subject.most_rows)
        batch = self.probe.batch(rows, self.probe.subject.sizes[1], "calibration")
        with self.probe.running("calibration") as subject:
            momenta = [m.momentum for m in norms]
            for norm in norms:
                norm.train()
                norm.momentum = None
                norm.reset_running_stats()
            try:
                subject(batch)
                found = [t.clone() for norm in norms for t in _statistics(norm)]
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.momentum = momentum
        statistics = [t for norm in norms for t in _statistics(norm)]
        for statistic, value in zip(statistics, found, strict=True):
            statistic.data = value


@contextlib.contextmanager
def data_kept(model: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Parameters and buffers, and the data that is put back into each of them after."""
    originals = [(t, t.data) for t in (*model.parameters(), *model.buffers())]
    try:
        yield originals
    finally:
        for tensor, data in originals:
            tensor.data = data


def _is_moved(parameter: torch.Tensor, data: torch.Tensor) -> bool:
    trained = isinstance(parameter, torch.nn.Parameter) and not data.is_meta
    return trained and data.is_floating_point() and data.numel() > 0


def _but_zeros(
    moved: list[tuple[torch.Tensor, torch.Tensor]],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Without the frozen zeros, where more is trained than is frozen: weights of a base that is
    frozen as a whole are to be loaded."""
    frozen = [data for p, data in moved if not p.requires_grad]
    if not frozen or 2 * sum(d.numel() for d in frozen) > sum(d.numel() for _, d in moved):
        return moved
    return [(p, data) for p, data in moved if p.requires_grad or bool(data.any())]


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normally distributed numbers; those of a large tensor repeat with a prime period, because
    drawing them takes longer than running the model."""
    count = shape.numel()
    if count <= _PERIOD:
        return torch.randn(shape, generator=generator)
    block = torch.randn(_PERIOD, generator=generator)
    return block.repeat(count // _PERIOD + 1)[:count].reshape(shape)


def _statistics(norm: torch.nn.modules.batchnorm._BatchNorm) -> list[torch.Tensor]:
    return [t for t in (norm.running_mean, norm.running_var) if t is not None]
