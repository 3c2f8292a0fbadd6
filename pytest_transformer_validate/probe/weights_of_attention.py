"""Attention weights of a model over one text, as passes. Axes: see ``capture``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.capture import Site, captured
from pytest_transformer_validate.probe.compare import difference, over, sequence
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.masks import padding_id
from pytest_transformer_validate.subject.outputs import floating, tensors_in
from pytest_transformer_validate.subject.sizes import long_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.masks import Way
    from pytest_transformer_validate.subject.subject import Subject

_LONG = 32
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

    @remembered
    def sites(self, condition: str = "eval") -> list[Site]:
        """Of a text of the usual length for probes, in eval mode, or ``noised``."""
        with self.probe.under(condition):
            return self._over(self._text(self.probe.subject.sizes[1]))

    @remembered
    def long(self) -> list[Site]:
        """Of a text of about 32 tokens, as far as the maximum allows."""
        subject = self.probe.subject
        if subject.vision:
            return self.sites()
        length = long_text(subject.model, subject.max_length, _LONG, subject.multiple)
        return self.sites() if length <= subject.sizes[1] else self._over(self._text(length))

    def over(self, batch: Batch) -> list[Site]:
        """Of one given text: a batch of one row."""
        return self._over(batch)

    @remembered
    def padded(self) -> list[Hidden]:
        """Of one text with padding, for each sequence whose padding can be told."""
        subject = self.probe.subject
        if subject.vision or subject.sizes[1] < 8:
            return []
        found = []
        for covers, way in self.probe.padding.told():
            given = self._padded(covers, way)
            if given is not None:
                batch, keep = given
                found.append(Hidden(covers, self._over(batch), keep, batch))
        return found

    def reaches(self, hidden: Hidden) -> bool:
        """Whether ids under the mask of a padded text move what the model says of real ones."""
        batch, keep = hidden.batch, hidden.keep
        ids = batch[hidden.covers]
        fresh = self.probe.batch(1, ids.shape[1], "under the mask")["input_ids"]
        other = batch.with_(**{hidden.covers: torch.where(keep, ids, fresh.to(ids))})
        old, new = (self.probe.forward(b).logits for b in (batch, other))
        if hidden.covers == sequence(self.probe) and old.dim() > 2 and old.shape[1] == len(keep):
            old, new = old[:, keep], new[:, keep]
        return over(old, new) or bool(difference(old, new).isnan().any())

    def lengths(self) -> dict[str, int]:
        """Number of tokens of the sequence that the output follows, and of the source."""
        subject = self.probe.subject
        if subject.vision:
            return {}
        own = subject.sizes[1]
        return {"own": own, "source": self.probe.mixing.source_length if subject.decodes else own}

    def named(self) -> str | None:
        """The first module that is called attention, by its class or its own name, and is no
        list of others."""
        for name, module in self.probe.subject.model.named_modules():
            own = name.rpartition(".")[2].lower()
            if ("attention" in type(module).__name__.lower() or "attn" in own) and not isinstance(
                module, torch.nn.ModuleList
            ):
                return name or ROOT
        return None

    # How it is done...

    def _text(self, length: int) -> Batch:
        subject = self.probe.subject
        source = self.probe.mixing.source_length if subject.decodes else None
        return self.probe.batch(1, length, "attention weights", length, source=source)

    def _over(self, batch: Batch) -> list[Site]:
        """Seen on the way; else what the model returns, or leaves behind."""
        lengths = {t.shape[1] for t in batch.inputs.values() if t.dim() == 2}
        with self.probe.running("attention weights") as subject:
            try:
                with captured(subject.model, lengths) as sites:
                    subject.call(batch, {})
            except NotImplementedError:  # an operation that cannot be watched
                sites = []
        if sites:
            return sites
        with (
            self.probe.running("attention weights") as subject,
            _returning(subject.model),
            contextlib.suppress(Exception),  # no model has to return its weights
        ):
            return self._returned(subject, batch)
        return []

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

    def _padded(self, covers: str, way: Way | None) -> tuple[Batch, torch.Tensor] | None:
        """One padded text as the task allows it, and which of its tokens are real."""
        probe, subject = self.probe, self.probe.subject
        batch = self._text(subject.sizes[1])
        ids = batch[covers]
        layout = probe.padding.layout(covers)
        if layout == "hole" and way is None:
            return None
        keep = probe.padding.keep(ids, layout)[0].to(ids.device)
        pad = padding_id(subject)
        padded = ids if pad is None else torch.where(keep, ids, pad)
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
