"""How far the output moves when one token, or one patch, is another one.

Axes: T tokens, N rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable
from pytest_transformer_validate.probe.compare import some_rows
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.vectors import PIXELS, Reader, each_token, read
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared

_MOST = 64  # tokens or patches that are changed, one a row
_SOURCE = "input_ids"


@dataclass(frozen=True)
class Effects:
    """By the kind of change, how far the output moved when each token (T) or patch was changed:
    root of the mean square over the logits, in standard deviations of theirs. ``slope`` is the
    gradient times the vectors, where it can be taken; ``grid`` the patches of an image a row."""

    moved: dict[str, list[float]]
    slope: list[float] | None = None
    grid: int = 0


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
        task = self.probe.subject.task.task_type
        if before.dim() < 3 or before.shape[1] != text.main.shape[1]:
            task = ""  # outputs that belong to no token
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


def _copies(text: Batch, rows: int) -> Batch:
    return Batch({r: t.expand(rows, *t.shape[1:]).clone() for r, t in text.inputs.items()})
