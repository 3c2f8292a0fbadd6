"""Attention weights of a model over one text, as passes. Axes: see ``capture``."""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.capture import captured
from pytest_transformer_validate.probe.compare import difference, over, sequence
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.positions import position_gradients, single_gradient
from pytest_transformer_validate.probe.sites import Site
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.declared import levels
from pytest_transformer_validate.subject.masks import padding_id
from pytest_transformer_validate.subject.outputs import floating, tensors_in
from pytest_transformer_validate.subject.sizes import long_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.masks import Way
    from pytest_transformer_validate.subject.subject import Subject

_LONG = 32
_IDS = 16
_ATTENTION = re.compile(r"(attn|attention)\d*$", re.IGNORECASE)
_SCALES = ("scal", "multiplier", "mult", "temperature", "alpha")
_NAMES = ("attention_weights", "attn_weights", "attentions", "attention_probs", "attn_probs")


@dataclass(frozen=True)
class Hidden:
    """The sites of a padded text: ``keep`` (T,) says which tokens are real; ``covers`` is the
    role of the ids, ``batch`` what was given."""

    covers: str
    sites: list[Site]
    keep: torch.Tensor
    batch: Batch


class AttentionWeights(Passes):
    """Every site of attention in one forward over one text."""

    def sites(self, condition: str = "eval") -> list[Site]:
        """Of a text of the usual length for probes, in eval mode, or ``noised``."""
        return self.of_length(self.probe.subject.sizes[1], condition)

    def long(self) -> list[Site]:
        """Of a text of about 32 tokens, as far as the maximum allows."""
        return self.of_length(self.long_length, "eval")

    @remembered
    def of_length(self, length: int, condition: str) -> list[Site]:
        """Of a text of this length."""
        with self.probe.under(condition):
            return self._over(self._text(length))

    def of_ids(self, ids: list[int] | None) -> tuple[list[Site], int]:
        """Over one text of these ids, or of 16 random ones, or one image; and how many tokens
        or patches there are."""
        subject = self.probe.subject
        if subject.vision:
            sites = self.sites()
            return sites, max((site.shape[1] for site in sites), default=0)
        longest = subject.max_length or _IDS
        batch = self._text(min(_IDS, longest) if ids is None else len(ids))
        role = sequence(self.probe)
        if ids is not None:
            given = torch.tensor([ids], device=subject.device)
            batch = batch.with_(**dict.fromkeys({"input_ids", role}, given))
        return self._over(batch), batch[role].shape[1]

    @property
    def long_length(self) -> int:
        """About 32, and no less than the usual length."""
        subject = self.probe.subject
        if subject.vision:
            return subject.sizes[1]
        longest = long_text(subject.model, subject.max_length, _LONG, subject.multiple)
        return max(longest, subject.sizes[1])

    @remembered
    def dependency(self, length: int, condition: str) -> torch.Tensor | None:
        """(T, T): how much each output (row) of a text depends on each token (column), by
        gradient; row by row where a model takes no copies of a text, ``None`` where it cannot be
        read, or outputs are not those of tokens."""
        matrix = None
        with contextlib.suppress(Exception):  # a backward may not run, a batch may be bounded
            matrix = self.probe.once(position_gradients, length, condition)
        if matrix is None:
            with contextlib.suppress(Exception):  # as above
                rows = [
                    self.probe.once(single_gradient, length, place, condition)
                    for place in range(length)
                ]
                matrix = torch.stack(rows)
        if matrix is None or matrix.shape != (length, length):
            return None
        return matrix.cpu() if bool(matrix.isfinite().all()) else None

    @remembered
    def padded(self) -> list[Hidden]:
        """Of one text with padding, for each sequence whose padding can be told."""
        subject = self.probe.subject
        if subject.vision or subject.sizes[1] < 8:
            return []
        found = []
        for covers, way in self.probe.padding.told():
            batch, keep = self._padded(covers, way)
            with contextlib.suppress(Exception):  # tier 1 judges what padding may look like
                found.append(Hidden(covers, self._over(batch), keep, batch))
        return found

    def reaches(self, hidden: Hidden, place: int) -> torch.Tensor:
        """(S,): the keys of the site at ``place`` whose value changes with the ids under the mask
        of a padded text; none where these ids do not change what the model says."""
        batch, keep = hidden.batch, hidden.keep
        ids = batch[hidden.covers]
        fresh = self.probe.batch(1, ids.shape[1], "under the mask")["input_ids"]
        other = batch.with_(**{hidden.covers: torch.where(keep, ids, fresh.to(ids))})
        old, new = (self.probe.forward(b).logits for b in (batch, other))
        if hidden.covers == sequence(self.probe) and old.dim() > 2 and old.shape[1] == len(keep):
            old, new = old[:, keep], new[:, keep]
        sites = self._over(other)
        before = hidden.sites[place].values
        after = sites[place].values if len(sites) == len(hidden.sites) else None
        if before is None or after is None or before.shape != after.shape or not over(old, new):
            return torch.zeros_like(keep)
        return difference(before, after).amax((0, 2)) > 0

    @property
    def initial(self) -> bool:
        """Whether the weights are as an initialisation leaves them."""
        return self.probe.weights.startswith("random") or self.probe.drawn.untouched()

    @property
    def trained(self) -> bool:
        """Whether the weights are trained: read from a file, or with vectors of many different
        numbers, which start as constants."""
        if self.initial:
            return False
        vectors = [s for s in self.probe.drawn.spreads().values() if s.trains and not s.matrix]
        return not self.probe.weights.startswith("as given") or len(vectors) > 1

    def declared_scale(self, scale: float) -> str | None:
        """What in the configuration, or which name in the model, says that scores are scaled in
        this way: a number of which ``scale`` is the value, the inverse, or the inverse of the
        root; a scale that is switched off; muP, which scales by 1/d."""
        for level in levels(self.probe.subject.config):
            for key in level:
                if _says_scale(str(key).lower(), level.get(key), scale):
                    return f"{key} in the configuration"
        modules = self.probe.subject.model.modules()
        names = (name for m in modules for name in (type(m).__name__, *vars(m)))
        return next((f"the name {n}" for n in names if "mup" in n.lower()), None)

    def shifts(self) -> bool:
        """Whether the model moves vectors along an axis by other means than attention: rolls,
        shifts, convolutions."""
        _ = self.sites()
        return self._shifts

    @property
    def source_length(self) -> int | None:
        """Tokens of the encoder's input; ``None`` where there is none."""
        subject = self.probe.subject
        if subject.decodes and not subject.vision:
            return self.probe.mixing.source_length
        translates = not subject.vision and subject.task.task_type == "seq2seq"
        return subject.sizes[1] if translates else None

    def named(self) -> str | None:
        """The first module that is called attention, by its class or its own name, and is no
        list of others."""
        for name, module in self.probe.subject.model.named_modules():
            called = _ATTENTION.search(name) or "attention" in type(module).__name__.lower()
            if called and not isinstance(module, torch.nn.ModuleList):
                return name or ROOT
        return None

    # How it is done...

    _shifts = False

    def _text(self, length: int) -> Batch:
        subject = self.probe.subject
        source = self.probe.mixing.source_length if subject.decodes else None
        return self.probe.batch(1, length, "attention weights", length, source=source)

    def _over(self, batch: Batch) -> list[Site]:
        """Seen on the way; else what the model returns, or leaves behind."""
        compiles = "torch._dynamo" in sys.modules
        try:
            sites = self._seen(batch)
        except Exception:
            if compiles or "torch._dynamo" not in sys.modules:
                raise
            sites = self._seen(batch)  # what was compiled on the way is not compiled again
        if sites:
            return sites
        with (
            self.probe.running("attention weights") as subject,
            _returning(subject.model),
            contextlib.suppress(Exception),  # no model has to return its weights
        ):
            return self._returned(subject, batch)
        return []

    def _seen(self, batch: Batch) -> list[Site]:
        """Every site that operations show."""
        lengths = {t.shape[1] for t in batch.inputs.values() if t.dim() == 2}
        with (
            self.probe.running("attention weights") as subject,
            captured(subject.model, lengths) as capture,
        ):
            subject.call(batch, {})
        self._shifts = self._shifts or capture.shifts
        return capture.sites

    def _returned(self, subject: Subject, batch: Batch) -> list[Site]:
        """Weights (1, H, T, S) among the outputs, or in an attribute with a plain name."""
        raw = subject.call(batch, {})
        found: list[tuple[str, Any]] = []
        for key in ("encoder_attentions", "decoder_attentions", "cross_attentions", "attentions"):
            found += [(ROOT, t) for t in floating(getattr(raw, key, None) or ())]
        if not found:
            modules = dict(subject.model.named_modules())
            found = [
                (name or ROOT, tensor)
                for name, module in modules.items()
                for key in _NAMES
                for tensor in tensors_in(vars(module).get(key))
            ]
        return [
            Site(module=name, weights=t.detach()[0], normal="unknown")
            for name, t in found
            if t.dim() == 4 and t.shape[0] == 1 and min(t.shape[2:]) > 1
        ]

    def _padded(self, covers: str, way: Way | None) -> tuple[Batch, torch.Tensor]:
        """One padded text as the task allows it, and which of its tokens are real."""
        probe, subject = self.probe, self.probe.subject
        batch = self._text(subject.sizes[1])
        ids = batch[covers]
        layout = probe.padding.layout(covers) if way is not None else "right"
        keep = probe.padding.keep(ids, layout)[0].to(ids.device)
        pad = padding_id(subject)
        padded = ids if pad is None else torch.where(keep, ids, pad)
        if subject.ends and subject.end_id is not None:  # classifiers look for the end of a text
            padded = padded.clone()
            padded[:, int(keep.nonzero().max())] = subject.end_id
        given = batch.with_(**{covers: padded})
        return (given if way is None else way.tell(given, keep[None])), keep


@contextlib.contextmanager
def _returning(model: torch.nn.Module) -> Iterator[None]:
    """A Hugging Face model gives back its attention weights inside."""
    config: Any = getattr(model, "config", None)
    exchange = getattr(model, "set_attn_implementation", None)
    if config is None or exchange is None:
        yield
        return
    before = getattr(config, "_attn_implementation", None)
    asked = getattr(config, "output_attentions", None)
    try:
        with contextlib.suppress(Exception):  # no model has to offer its plain implementation
            exchange("eager")
            config.output_attentions = True
        yield
    finally:
        with contextlib.suppress(Exception):  # as above
            config.output_attentions = asked
            exchange(before)


def _says_scale(name: str, value: Any, scale: float) -> bool:
    """Whether a key of the configuration says that scores are scaled by ``scale``."""
    if "mup" in name and value:
        return True
    if not any(word in name for word in _SCALES):
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is False and "scal" in name
    meant = (value, 1 / value, value**-0.5) if value > 0 else ()
    return any(abs(scale - s) < 0.01 * s for s in meant)
