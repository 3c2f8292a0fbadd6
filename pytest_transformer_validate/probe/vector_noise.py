"""How far the output moves under noise on token vectors, or on pixels.

Axes: T tokens, D width, N rows, S scales of noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.compare import some_rows
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import traced
from pytest_transformer_validate.probe.vectors import Reader, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

SCALES = (1e-4, 1e-3, 1e-2, 1e-1)
_DIRECTIONS = 4
# Operations that decide: a result that is an index, or one of few values.
_DECIDES = {
    "topk", "argmax", "argmin", "sort", "argsort", "msort", "kthvalue", "median", "mode",
    "multinomial", "bucketize", "searchsorted", "round", "floor", "ceil", "trunc", "sign", "sgn",
    "heaviside", "long", "int", "histc", "unique", "nonzero", "gumbel_softmax",
}  # fmt: skip


@dataclass(frozen=True)
class Response:
    """How far the output moves under noise on the vectors, both as parts of their sizes, for each
    scale and direction (S, N); ``decides`` names operations that choose or round. What is below
    ``rounding`` (16 u, on the same scale) says nothing."""

    scales: tuple[float, ...]
    moved: torch.Tensor
    decides: tuple[str, ...]
    rounding: float


@dataclass(frozen=True)
class Predictions:
    """Under noise: the part of all predictions that stay, how many do not, and the mean cosine of
    the outputs with those without noise."""

    same: float
    flips: int
    likeness: float


class VectorNoise(Passes):
    """Passes with noise on what tokens are looked up as."""

    @remembered
    def response(self, condition: str = "eval") -> Response:
        """The output under noise of several scales on the vectors of one text, in a few random
        directions, under a condition of ``Probe.under``. Raises NotApplicable where no lookup by
        the ids is seen."""
        probe = self.probe
        batch = self._text()
        generator = torch.Generator().manual_seed(probe.seed_for("smoothness"))
        with (
            probe.under(condition),
            probe.running("perturbation") as subject,
            _Decisions() as seen,
        ):
            found = read(subject, batch)
            roles = tuple(role for role, tensors in found.items() for _ in tensors)
            vectors = [t for tensors in found.values() for t in tensors]
            reader = Reader(batch, roles, None)
            clean = reader.logits(subject, vectors)
            moved = torch.zeros(len(SCALES), _DIRECTIONS, dtype=torch.float64)
            for number in range(_DIRECTIONS):
                ways = [_noise(t, generator) for t in vectors]
                rows = [
                    torch.cat([t + scale * way for scale in SCALES])
                    for t, way in zip(vectors, ways, strict=True)
                ]
                logits = self._in_parts(reader, subject, rows)
                moved[:, number] = _part(logits, clean)
        rounding = 16 * probe.eps * _largest(clean) / _spread(clean)
        return Response(SCALES, moved, tuple(sorted(seen.names)), rounding)

    @remembered
    def predictions(self, samples: int, level: float) -> Predictions:
        """Random texts with noise of ``level`` times their size on their vectors."""
        probe = self.probe
        generator = torch.Generator().manual_seed(probe.seed_for("predictions"))
        texts = probe.batch(samples, probe.subject.sizes[1], "predictions")
        most = probe.subject.full_batch
        with probe.running("predictions") as subject:
            pairs = [
                _with_noise(subject, some_rows(texts, start, start + most), level, generator)
                for start in range(0, samples, most)
            ]
        clean, noisy = (torch.cat(logits) for logits in zip(*pairs, strict=True))
        same = clean.argmax(-1) == noisy.argmax(-1)
        likeness = functional.cosine_similarity(clean.flatten(1), noisy.flatten(1))
        return Predictions(
            same=float(same.double().mean()),
            flips=int((~same).sum()),
            likeness=float(likeness.mean()),
        )

    def first_jumping(self, jump: float, condition: str = "eval") -> str | None:
        """The first module, in the order in which calls end, that moves more than ``jump`` times
        as far over the smallest noise as over the largest, while its inputs follow theirs."""
        probe, batch = self.probe, self._text()
        generator = torch.Generator().manual_seed(probe.seed_for("smoothness"))
        with probe.under(condition), probe.running("perturbation") as subject:
            found = read(subject, batch)
            roles = tuple(role for role, tensors in found.items() for _ in tensors)
            vectors = [t for tensors in found.values() for t in tensors]
            reader = Reader(batch, roles, None)
            ways = [_noise(t, generator) for t in vectors]
            runs = []
            for scale in (0.0, SCALES[0], SCALES[-1]):
                rows = [t + scale * way for t, way in zip(vectors, ways, strict=True)]
                with traced(subject.model) as calls:
                    reader.logits(subject, rows)
                runs.append(calls)
        for clean, small, large in zip(*runs, strict=False):
            if clean.name != small.name or clean.name != large.name:
                return None
            sides = [
                [_moved(c, s, SCALES[0]) / (_moved(c, b, SCALES[-1]) or 1.0) for c, s, b in each]
                for each in (
                    zip(clean.inputs, small.inputs, large.inputs, strict=False),
                    zip(clean.outputs, small.outputs, large.outputs, strict=False),
                )
            ]
            if max(sides[1], default=0.0) > jump / 4 > max(sides[0], default=0.0):
                return str(clean.name)
        return None

    def _in_parts(
        self, reader: Reader, subject: Subject, rows: list[torch.Tensor]
    ) -> torch.Tensor:
        most = subject.full_batch
        parts = zip(*(t.split(most) for t in rows), strict=True)
        return torch.cat([reader.logits(subject, part) for part in parts])

    def _text(self) -> Batch:
        probe = self.probe
        return probe.batch(1, probe.subject.sizes[1], "smoothness")


class _Decisions(TorchFunctionMode):
    """Names of the operations on floating point numbers, inside, that choose or round."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "").rstrip("_")
        floats = [a for a in args[:1] if isinstance(a, torch.Tensor) and a.is_floating_point()]
        if name in _DECIDES and floats:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def _moved(clean: torch.Tensor, noisy: torch.Tensor, scale: float) -> float:
    return float((clean - noisy).double().square().mean().sqrt()) / scale


def _with_noise(
    subject: Subject, batch: Batch, level: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a batch, and those with noise on its vectors."""
    found = read(subject, batch)
    roles = tuple(role for role, tensors in found.items() for _ in tensors)
    vectors = [t for tensors in found.values() for t in tensors]
    noisy = [t + level * _noise(t, generator) for t in vectors]
    logits = subject(batch).logits
    moved = Reader(batch, roles, None).logits(subject, noisy)
    return logits.double(), moved.view_as(logits).double()


def _noise(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction, as long as the vectors at each token."""
    way = torch.randn(vectors.shape, generator=generator).to(vectors)
    sizes = vectors.square().sum(-1, keepdim=True).sqrt()
    return functional.normalize(way, dim=-1) * sizes


def _part(logits: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """How far each row is from the clean one, as a part of its spread."""
    both = (logits - clean).isfinite()
    off = torch.where(both, logits - clean, 0).double().flatten(1).square().mean(1).sqrt()
    return torch.div(off, _spread(clean)).cpu()


def _spread(clean: torch.Tensor) -> float:
    """Standard deviation of the finite logits."""
    numbers = clean[clean.isfinite()].double()
    return max(float((numbers - numbers.mean()).square().mean().sqrt()), 1e-300)


def _largest(clean: torch.Tensor) -> float:
    return float(clean.nan_to_num(0, 0, 0).abs().max())
