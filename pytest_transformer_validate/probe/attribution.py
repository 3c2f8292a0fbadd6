"""Integrated gradients: what each token, or each patch, adds to one logit.

Captum integrates the gradient along the straight path from the vectors of another text, in which
one plain id stands everywhere, to those of the text itself. The ids stay as they are, so that
nothing that is computed from them (positions, masks) changes on the way.

Axes: N points of the path, T tokens, D width, S steps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable, error_line
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.probe.compare import sequence
from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.paths import Path, logit, slopes
from pytest_transformer_validate.probe.slopes import first_wrong
from pytest_transformer_validate.probe.vectors import PIXELS, Reader, each_token, read
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import complete
from pytest_transformer_validate.subject.masks import padding_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.probe.paths import Slopes, Vectors
    from pytest_transformer_validate.subject.subject import Subject

_PADDED = 3

Result = TypeVar("Result")


@dataclass(frozen=True)
class Integrated:
    """Attributions from ``steps`` steps: of the whole shape of the vectors, and ``missing``, what
    they lack to the change of the logit."""

    path: Path
    steps: int
    parts: Vectors
    missing: float

    def tokens(self, role: str) -> list[float]:
        """One number a token: all lookups by ``role`` together."""
        own = [p for r, p in zip(self.path.reader.roles, self.parts, strict=True) if r == role]
        total = sum(p[0].flatten(1).sum(1) for p in own)
        return [float(number) for number in torch.as_tensor(total)]

    def sizes(self, role: str) -> torch.Tensor:
        """(T,): the largest number that any part of a token got."""
        own = [p for r, p in zip(self.path.reader.roles, self.parts, strict=True) if r == role]
        return torch.stack([p[0].flatten(1).abs().amax(1) for p in own]).amax(0).cpu()

    def patches(self, side: int) -> list[list[float]]:
        """Rows of patches of an image, ``side`` pixels wide."""
        total = self.parts[0][0].sum(0)
        pooled = torch.nn.functional.avg_pool2d(total[None], side)[0] * side**2
        return [[float(number) for number in row] for row in pooled]


class Attributions(Passes):
    """Attributions of one logit. ``condition`` is that of ``Probe.under``."""

    @property
    def rows(self) -> int:
        """How many points of the path go through the model together: what any batch may have."""
        return self.probe.subject.full_batch

    @remembered
    def path(self, condition: str, padded: bool = False) -> Path:
        """The path to a random text, or to one that ends in padding."""
        batch = self._batch(padded)
        return self._path(batch, self._position(batch), condition)

    @remembered
    def explained(self, ids: tuple[int, ...] | None, position: int, steps: int) -> Integrated:
        """The prediction at ``position`` (negative: from the end) for a text of ``ids``, a random
        one where there are none; a prediction for the whole text has no position."""
        batch = self._batch(padded=False)
        if ids is not None:
            row = torch.tensor([ids], device=self.probe.subject.device)
            given = Batch({**batch.inputs, "input_ids": row})
            given = Batch({r: t for r, t in given.inputs.items() if r.endswith("input_ids")})
            batch = complete(self.probe.subject, given).to(self.probe.subject.device)
        place = position if each_token(self.probe.subject) else None
        path = self._path(batch, place, "eval", predicted=True)
        return self._integrated(path, steps, "eval")

    def _path(
        self, batch: Batch, position: int | None, condition: str, *, predicted: bool = False
    ) -> Path:
        probe = self.probe
        other, words = self._other(batch)
        with probe.under(condition), probe.running("attribution") as subject:
            end, start = read(subject, batch), read(subject, other)
            roles = tuple(role for role, found in end.items() for _ in found)
            if [len(v) for v in end.values()] != [len(v) for v in start.values()]:
                raise NotApplicable("how often tokens are looked up depends on the tokens")
            reader = Reader(batch, roles, position)
            ends = tuple(t for found in end.values() for t in found)
            starts = tuple(t for found in start.values() for t in found)
            logits = [reader.logits(subject, vectors)[0] for vectors in (starts, ends)]
        moved = (logits[1] - logits[0]).double()
        if not bool(moved.isfinite().any()):
            raise Blocked("logits are not finite: see output_stability")
        largest = logits[1] if predicted else moved.nan_to_num(0, 0, 0).abs()
        target = int(largest.argmax())
        change = float(moved[target])
        return Path(reader, starts, ends, target, change, torch.stack(logits), words)

    @remembered
    def integrated(self, steps: int, condition: str = "eval", padded: bool = False) -> Integrated:
        """Captum's IntegratedGradients with that many steps of a Gauss-Legendre rule, a few of
        them at a time. Raises NotApplicable where no gradient can be taken."""
        return self._integrated(self.path(condition, padded), steps, condition)

    def _integrated(self, path: Path, steps: int, condition: str) -> Integrated:
        captum: Any = require("captum.attr", extra="analysis")

        def run(subject: Subject) -> Vectors:
            explained = captum.IntegratedGradients(logit(subject, path))
            found = explained.attribute(
                path.end, baselines=path.start, n_steps=steps, internal_batch_size=self.rows
            )
            return tuple(t.detach() for t in found)

        parts = self._differentiated(condition, run)
        total = sum(float(part.double().sum()) for part in parts)
        return Integrated(path, steps, parts, total - path.change)

    @functools.cached_property
    def sequence(self) -> str:
        """The role of the ids that the output follows."""
        return sequence(self.probe)

    @functools.cached_property
    def _exact(self) -> Attributions:
        """The same over a float64 copy of a small model, where it has one: differences over small
        steps need digits."""
        if not self.probe.subject.small:
            return self
        try:
            twin = self.probe.in_float64().attributions
            twin.path("eval")
        except Exception:  # noqa: BLE001 - a model need not run in float64
            return self
        return twin

    def slopes(self) -> Slopes:
        """The slope along the path, three times."""
        return self._exact._slopes()

    def reading(self, token: int) -> str | None:
        """The first module that carries a replaced token to an earlier position."""
        swaps = self.probe.position_swaps(self.probe.swap_plans()[0])
        if token not in swaps.start:
            return None
        return self.probe.locate_position(swaps, swaps.start.index(token))[0]

    def first_wrong(self) -> str | None:
        """See ``slopes.first_wrong``: at the end of the path."""
        probe = self._exact.probe
        path = probe.attributions.path("eval")
        with probe.running("attribution", grad=True) as subject:
            return first_wrong(subject.model, lambda: path.reader.logits(subject, path.end))

    def truncated(self) -> str | None:
        """The first module with parameters that is given a gradient in some of its calls and not
        in others, at the end of the path."""
        path = self.path("eval")
        calls: dict[str, set[bool]] = {}

        def enter(name: str, inputs: list[torch.Tensor]) -> None:
            if inputs and name in trained:
                follows = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
                calls.setdefault(name, set()).add(follows)

        def leave(_name: str, _outputs: list[torch.Tensor]) -> None:
            return None

        def run(subject: Subject) -> None:
            vectors = tuple(t.clone().requires_grad_() for t in path.end)
            with hooked(subject.model, enter, leave):
                path.reader.logits(subject, vectors)

        modules = self.probe.subject.model.named_modules()
        trained = {n for n, m in modules if n and next(m.parameters(), None) is not None}
        self._differentiated("eval", run)
        return next((name for name, seen in calls.items() if len(seen) > 1), None)

    @remembered
    def _slopes(self) -> Slopes:
        path = self.path("eval")

        def run(subject: Subject) -> Slopes:
            return slopes(subject, path, self.rows)

        return self._differentiated("eval", run)

    @remembered
    def moved_under_mask(self) -> float:
        """How far the logit moves when other tokens stand in the padding."""
        probe, path = self.probe, self.path("eval", padded=True)
        keep = self.kept(path)
        ids = path.reader.batch["input_ids"]
        fresh = self._other(path.reader.batch)[0]["input_ids"]
        other = path.reader.batch.with_(input_ids=torch.where(keep, ids, fresh))
        with probe.running("attribution") as subject:
            reader = Reader(other, (), path.reader.position)
            logits = [r._read(subject, r.batch)[0, path.target] for r in (path.reader, reader)]
        return abs(float(logits[1] - logits[0]))

    def kept(self, path: Path) -> torch.Tensor:
        """(1, T): what is not padding in the padded text."""
        ids = path.reader.batch["input_ids"]
        return (torch.arange(ids.shape[1], device=ids.device) < ids.shape[1] - _PADDED)[None]

    @functools.cached_property
    def patch(self) -> int:
        """Side of the patches of an image."""
        return self.probe.mixing.patch

    def _batch(self, padded: bool) -> Batch:
        probe = self.probe
        batch = probe.batch(1, probe.subject.sizes[1], "attribution")
        if not padded:
            return batch
        way = next((w for covers, w in probe.padding.told() if covers == "input_ids"), None)
        if way is None or batch["input_ids"].shape[1] <= 2 * _PADDED:
            raise NotApplicable("no mask can be given")
        ids = batch["input_ids"].clone()
        keep = torch.arange(ids.shape[1], device=ids.device) < ids.shape[1] - _PADDED
        pad = padding_id(probe.subject)
        ids[:, ~keep] = ids[:, :_PADDED].clone() if pad is None else pad
        if probe.subject.ends:
            ids[:, int(keep.sum()) - 1] = batch["input_ids"][:, -1]
        return way.tell(batch.with_(input_ids=ids), keep[None])

    def _other(self, batch: Batch) -> tuple[Batch, str]:
        """The text that the path starts at: one id, which is not padding and not in the text."""
        probe = self.probe
        if PIXELS in batch.inputs:
            return batch.with_(pixel_values=torch.ones_like(batch[PIXELS])), "an image of ones"
        other, words = {}, []
        for role in ("input_ids", "decoder_input_ids"):
            if role not in batch.inputs:
                continue
            pool = probe.batch(1, probe.subject.sizes[1], "baseline")[role].flatten()
            fresh = pool[~torch.isin(pool, batch[role])]
            chosen = int((fresh if len(fresh) else pool)[0])
            other[role] = torch.full_like(batch[role], chosen)
            if probe.subject.ends:  # classifiers pool there
                ends = torch.eq(batch[role], probe.subject.end_id or 0)
                other[role] = torch.where(ends, batch[role], other[role])
            words.append(f"id {chosen} everywhere")
        return batch.with_(**other), " and ".join(words)

    def _position(self, batch: Batch) -> int | None:
        """Some way into the text, so that there is something behind it; ``None`` for one output
        a text."""
        if not each_token(self.probe.subject):
            return None
        ids = batch.inputs.get("decoder_input_ids", batch.main)
        return (2 * ids.shape[1]) // 3 - 1 if ids.shape[1] > 2 else 0

    def _differentiated(self, condition: str, run: Callable[[Subject], Result]) -> Result:
        probe = self.probe
        with probe.under(condition), probe.running("attribution", grad=True) as subject:
            try:
                return run(subject)
            except (NotApplicable, Blocked):
                raise
            except Exception as error:
                line = error_line(error)
                raise NotApplicable(f"no gradient can be taken in eval mode: {line}") from error
