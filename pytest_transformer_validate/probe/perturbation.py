"""What small changes of the input do to the output: tokens, patches and vectors.

Axes: T tokens, N rows, S scales of noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.errors import Blocked, NotApplicable
from pytest_transformer_validate.probe.compare import some_rows
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import traced
from pytest_transformer_validate.probe.vectors import PIXELS, Reader, each_token, read
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.subject.subject import Subject

SCALES = (1e-4, 1e-3, 1e-2, 1e-1)
_DIRECTIONS = 4
_MOST = 64  # tokens or patches that are changed, one a row
_SOURCE = "input_ids"
# Operations that decide: a result that is an index, or one of few values.
_DECIDES = {
    "topk", "argmax", "argmin", "sort", "argsort", "msort", "kthvalue", "median", "mode",
    "multinomial", "bucketize", "searchsorted", "round", "floor", "ceil", "trunc", "sign", "sgn",
    "heaviside", "long", "int", "histc", "unique", "nonzero", "gumbel_softmax",
}  # fmt: skip


@dataclass(frozen=True)
class Effects:
    """By the kind of change, how far the output moved when each token (T) or patch was changed:
    root of the mean square over the logits, in standard deviations of theirs. ``slope`` is the
    gradient times the vectors, where it can be taken; ``grid`` the patches of an image a row."""

    moved: dict[str, list[float]]
    slope: list[float] | None = None
    grid: int = 0


@dataclass(frozen=True)
class Response:
    """How far the output moves under noise on the vectors, both as parts of their sizes, for each
    scale and direction (S, N); ``decides`` names operations that choose or round."""

    scales: tuple[float, ...]
    moved: torch.Tensor
    decides: tuple[str, ...]


@dataclass(frozen=True)
class Predictions:
    """Under noise: the part of all predictions that stay, how many do not, and the mean cosine of
    the outputs with those without noise."""

    same: float
    flips: int
    likeness: float


class Perturbation(Passes):
    """Passes with changed inputs."""

    @remembered
    def effects(self) -> Effects:
        """Every token replaced, left out and masked, each in its own row of one batch; every
        patch of an image set to zero."""
        if self.probe.subject.vision:
            return self._patches()
        text = self._text()
        ids = text[_SOURCE]
        length = min(ids.shape[1] - self.probe.subject.ends, _MOST)
        eye = torch.eye(length, ids.shape[1], dtype=torch.bool, device=ids.device)
        rows = _copies(text, length)
        other = self._others(ids)
        moved = {"replaced": rows.with_(input_ids=torch.where(eye, other, rows[_SOURCE]))}
        masked = self._masked(rows, eye)
        if masked is not None:
            moved["masked"] = masked
        found = {kind: self._moved(text, batch) for kind, batch in moved.items()}
        dropped = self._dropped(text, length)
        if dropped is not None:
            found["left out"] = self._moved(text, dropped, dropped=True)
        return Effects(found, self._slope(text))

    @remembered
    def response(self) -> Response:
        """The output under noise of several scales on the vectors of one text, in a few random
        directions. Raises NotApplicable where no lookup by the ids is seen."""
        probe = self.probe
        batch = self._text()
        generator = torch.Generator().manual_seed(probe.seed_for("smoothness"))
        with probe.running("perturbation") as subject, _Decisions() as seen:
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
        return Response(SCALES, moved, tuple(sorted(seen.names)))

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

    def first_jumping(self, jump: float) -> str | None:
        """The first module, in the order in which calls end, that moves more than ``jump`` times
        as far over the smallest noise as over the largest, while its inputs follow theirs."""
        probe, batch = self.probe, self._text()
        generator = torch.Generator().manual_seed(probe.seed_for("smoothness"))
        with probe.running("perturbation") as subject:
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
        return probe.batch(1, probe.subject.sizes[1], "perturbation")

    def _others(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids that differ from those of the text."""
        fresh = self.probe.batch(8, ids.shape[1], "perturbed", source=ids.shape[1])[_SOURCE]
        for row in fresh[1:]:
            fresh[0] = torch.where(fresh[0] == ids[0], row, fresh[0])
        return fresh[:1]

    def _masked(self, rows: Batch, eye: torch.Tensor) -> Batch | None:
        """Each row with one token hidden: by the mask, else by the id that masks."""
        probe = self.probe
        way = next((w for covers, w in probe.padding.told() if covers == _SOURCE and w), None)
        if way is not None:
            return way.tell(rows, ~eye)
        mask = declared(probe.subject.config, ("mask_token_id",))
        if type(mask) is not int or not 0 <= mask < probe.subject.vocab_size:
            return None
        return rows.with_(input_ids=rows[_SOURCE].masked_fill(eye, mask))

    def _dropped(self, text: Batch, length: int) -> Batch | None:
        """Each row without one token; ``None`` where lengths have to be what they are."""
        ids = text[_SOURCE]
        whole = ids.shape[1]
        others = [r for r, t in text.inputs.items() if r not in (_SOURCE, "decoder_input_ids")]
        if whole < 3 or self.probe.subject.multiple > 1 or others:
            return None
        keep = torch.tensor([[i for i in range(whole) if i != k] for k in range(length)])
        return _copies(text, length).with_(input_ids=ids[0][keep.to(ids.device)])

    def _moved(self, text: Batch, changed: Batch, *, dropped: bool = False) -> list[float]:
        before = self._logits(text)
        after = self._logits(changed)
        spread = float(before.std()) or 1.0
        task = self.probe.subject.task.task_type if each_token(self.probe.subject) else ""
        moved = []
        for row in range(changed.rows):
            old, new = before[0], after[row]
            if task == "causal_lm":
                old, new = old[-1], new[-1]  # the next token, after all that was changed
            elif task == "masked_lm":
                kept = torch.arange(len(old)) != row
                old, new = old[kept], new if dropped else new[kept]
            moved.append(float((old - new).square().mean().sqrt()) / spread)
        return moved

    def _logits(self, batch: Batch) -> torch.Tensor:
        subject = self.probe.subject
        most = subject.full_batch
        parts = [
            self.probe.forward(some_rows(batch, start, start + most)).logits
            for start in range(0, batch.rows, most)
        ]
        logits = torch.cat(parts).double()
        if bool(logits.isnan().any()):
            raise Blocked("logits hold NaN: see output_stability")
        return logits

    def _slope(self, text: Batch) -> list[float] | None:
        """Gradient times vectors of each token, of the last or only output's largest logit."""
        probe = self.probe
        try:
            with probe.running("perturbation", grad=True) as subject:
                found = read(subject, text)
                roles = tuple(role for role, tensors in found.items() for _ in tensors)
                vectors = [t.detach().requires_grad_() for v in found.values() for t in v]
                length = text.inputs.get("decoder_input_ids", text.main).shape[1]
                position = length - 1 if each_token(subject) else None
                top = Reader(text, roles, position).logits(subject, vectors)[0].max()
                gradients = torch.autograd.grad(top, vectors, allow_unused=True)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            return None
        own = [
            (g * v)[0].flatten(1).sum(1)
            for role, g, v in zip(roles, gradients, vectors, strict=True)
            if role == _SOURCE and g is not None
        ]
        return torch.stack(own).sum(0).tolist() if own else None

    def _patches(self) -> Effects:
        probe = self.probe
        image = probe.batch(1, 1, "perturbation")
        side, pixels = probe.mixing.patch, image[PIXELS]
        high, wide = (n // side for n in pixels.shape[2:])
        if not 0 < high * wide <= _MOST * 4:
            raise NotApplicable("the image is not made of patches")
        changed = pixels.repeat(high * wide, 1, 1, 1)
        for place in range(high * wide):
            row, column = divmod(place, wide)
            changed[place, :, row * side : row * side + side, column * side :][..., :side] = 0
        return Effects({"set to zero": self._moved(image, Batch({PIXELS: changed}))}, None, wide)


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


def _copies(text: Batch, rows: int) -> Batch:
    return Batch({r: t.expand(rows, *t.shape[1:]).clone() for r, t in text.inputs.items()})


def _noise(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction, as long as the vectors at each token."""
    way = torch.randn(vectors.shape, generator=generator).to(vectors)
    return functional.normalize(way, dim=-1) * vectors.norm(dim=-1, keepdim=True)


def _part(logits: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """How far each row is from the clean one, as a part of its spread."""
    both = (logits - clean).isfinite()
    off = torch.where(both, logits - clean, 0).double().flatten(1).square().mean(1).sqrt()
    numbers = clean[clean.isfinite()].double()
    spread = max(float((numbers - numbers.mean()).square().mean().sqrt()), 1e-300)
    return torch.div(off, spread).cpu()
