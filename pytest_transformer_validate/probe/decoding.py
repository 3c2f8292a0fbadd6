"""Calling a model on a text piece by piece, with what a cache needs handed from call to call.

Axes: B batch, T positions, V outputs, n tokens of a piece.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.masked_sources import masked_source
from pytest_transformer_validate.probe.real_tokens import real_positions
from pytest_transformer_validate.probe.trace import traced
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.outputs import field_of
from pytest_transformer_validate.subject.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.probe.cache_masks import CacheMask
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.subject import Subject

_BY_PIECE = ("position_ids", "token_type_ids")
_BY_PAST = ("attention_mask", "mask", "padding_mask")


@dataclass(frozen=True)
class Protocol:
    """How a cache travels.

    ``field`` is the result that is handed back in (``None``: the model keeps it inside, and
    ``reset`` names the method that empties it, where there is one; ``setup`` the one that makes
    it, where forward runs without; ``mask`` the causal mask that goes with every call, where one
    is asked for). ``made`` makes one that a caller hands over with every call, and never gets
    back. ``encoded`` makes of what an encoder gave the form in which it is handed back.
    """

    text: str
    field: str | None
    reset: str | None = None
    setup: str | None = None
    mask: CacheMask | None = None
    made: Callable[[], Any] | None = None
    encoded: Callable[[torch.Tensor], Any] = lambda states: Encoded((states,))

    @property
    def handed_over(self) -> bool:
        """Whether a cache goes in with every call."""
        return self.field is not None or self.made is not None


@dataclass(frozen=True)
class Plan:
    """A text and how it is cut: ``pieces`` are numbers of tokens.

    ``positions`` says that position ids are given where forward takes them; ``padded`` that the
    rows are padded on the left, each differently; ``after`` what was decoded before: ``nothing``,
    ``another`` text, or the ``prefix`` of this one, which went on otherwise (a cache inside the
    model never begins with nothing, unless it has to be ``clean``); ``condition`` what the probe
    is under; ``whole`` that every call is given the text up to its piece, of which the model takes
    the last token itself; ``source`` that the sources of the rows are padded, each differently.
    """

    rows: int
    pieces: tuple[int, ...]
    positions: bool = True
    padded: bool = False
    after: str = "nothing"
    condition: str = ""
    whole: bool = False
    source: bool = False

    @property
    def length(self) -> int:
        """Number of tokens T."""
        return sum(self.pieces)

    def piece_at(self, position: int) -> tuple[int, int]:
        """First position, which is the number of tokens before it, and index of the piece that
        holds ``position``. Raises IndexError behind the text."""
        start = 0
        for index, size in enumerate(self.pieces):
            if position < start + size:
                return start, index
            start += size
        raise IndexError(position)


class Encoded(tuple[Any, ...]):
    """What an encoder gave, in every form in which it is asked for: first item, or attribute."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def feed(
    probe: Probe,
    subject: Subject,
    protocol: Protocol,
    plan: Plan,
    text: Batch,
    *,
    watched: int | None = None,
    caches: list[Any] | None = None,
) -> Iterator[Any]:
    """The logits (B, n, V) of piece after piece; for the piece ``watched`` the calls of every
    module. ``caches`` collects copies of the cache."""
    with set_up(subject, protocol, plan):
        yield from _feed(probe, subject, protocol, plan, text, watched, caches)


@contextlib.contextmanager
def set_up(subject: Subject, protocol: Protocol, plan: Plan) -> Iterator[None]:
    """Room for a text in caches that have to be made, while inside."""
    if protocol.setup is None:
        yield
        return
    setup = Setup(protocol.setup)
    setup.run(subject, plan.rows, plan.length)
    try:
        yield
    finally:
        setup.undo()


def _feed(
    probe: Probe,
    subject: Subject,
    protocol: Protocol,
    plan: Plan,
    text: Batch,
    watched: int | None,
    caches: list[Any] | None,
) -> Iterator[Any]:
    done, cache, encoded = 0, begin(subject, protocol), None
    if plan.after == "another" or (not protocol.handed_over and plan.after == "nothing"):
        other = text_of(probe, plan, "before")
        if protocol.handed_over or protocol.reset is not None or _starts(subject):
            given = (subject, other, 0, plan.length, protocol, cache, None)
            call_on(*given, positions=plan.positions)
            _decode_start(subject, other, protocol, plan)
        cache = begin(subject, protocol)
    for index, size in enumerate(plan.pieces):
        if plan.after == "prefix" and done and protocol.handed_over and protocol.reset is None:
            branch: Any = copy.deepcopy(cache)
            other = text_of(probe, plan, "before")
            given = (subject, other, done, size, protocol, branch, encoded)
            call_on(*given, positions=plan.positions, whole=plan.whole)
        watching: Any = traced if index == watched else contextlib.nullcontext
        with watching(subject.model) as calls:
            given = (subject, text, done, size, protocol, cache, encoded)
            raw, piece = call_on(*given, positions=plan.positions, whole=plan.whole)
        if protocol.field is not None:
            cache = field_of(raw, protocol.field)
        if caches is not None and protocol.handed_over:
            caches.append(copy.deepcopy(cache))
        if encoded is None:
            states = encoder_states(subject, raw)
            encoded = None if states is None else protocol.encoded(states)
        yield calls if index == watched else subject.read(raw, piece).logits
        done += size


def begin(subject: Subject, protocol: Protocol) -> Any:
    """A new text: what the model keeps is emptied. The cache that its first call is given."""
    if protocol.reset is not None:
        getattr(subject.model, protocol.reset)()
    return protocol.made() if protocol.made is not None else None


def encoder_states(subject: Subject, raw: Any) -> torch.Tensor | None:
    """What the encoder gave (B, S, D), where a later call takes it."""
    if not subject.decodes or not subject.signature.takes("encoder_outputs"):
        return None
    found = field_of(raw, "encoder_last_hidden_state")
    return found if isinstance(found, torch.Tensor) else None


def _decode_start(subject: Subject, text: Batch, protocol: Protocol, plan: Plan) -> None:
    """Decode two pieces of a text: something may be kept of a past that is handed over, too."""
    if not protocol.handed_over or not subject.small or len(plan.pieces) < 2:
        return
    done, cache = 0, begin(subject, protocol)
    for size in plan.pieces[:2]:
        given = (subject, text, done, size, protocol, cache, None)
        raw, _ = call_on(*given, positions=plan.positions, whole=plan.whole)
        cache = cache if protocol.field is None else field_of(raw, protocol.field)
        done += size


def _starts(subject: Subject) -> bool:
    """Whether a text begins anew by being told so."""
    return any(map(subject.signature.takes, ("start", "input_pos")))


def call_on(
    subject: Subject,
    text: Batch,
    done: int,
    size: int,
    protocol: Protocol,
    cache: Any,
    encoded: Any,
    *,
    positions: bool,
    whole: bool = False,
) -> tuple[Any, Batch]:
    """Call the model on ``size`` tokens after ``done`` cached ones, ``whole`` on both."""
    first = 0 if whole else done
    piece = piece_of(subject, text, first, done + size - first, positions=positions)
    signature = subject.signature
    steps = torch.arange(done, done + size, device=subject.device)
    extra: dict[str, Any] = {}
    if signature.takes("use_cache"):
        extra["use_cache"] = True
    if cache is not None:
        extra["past_key_values"] = cache
    if signature.takes("start"):
        extra["start"] = done
    if signature.takes("input_pos"):
        extra["input_pos"] = steps
    if protocol.mask is not None:
        room = text.main.shape[1]
        extra["mask"] = protocol.mask.make(subject, text.rows, room, done, size)
    if encoded is not None:
        extra["encoder_outputs"] = encoded
    return subject.call(piece, extra), piece


def piece_of(subject: Subject, text: Batch, done: int, size: int, *, positions: bool) -> Batch:
    """The inputs for tokens ``done`` to ``done + size``: masks also cover what is cached."""
    role = "decoder_input_ids" if subject.decodes else "input_ids"
    inputs = {}
    for name, tensor in text.inputs.items():
        if name == role or (name in _BY_PIECE and not subject.decodes):
            inputs[name] = tensor[:, done : done + size]
        elif name == "decoder_attention_mask" or (name in _BY_PAST and not subject.decodes):
            inputs[name] = tensor[:, : done + size]
        elif name != "labels":
            inputs[name] = tensor
    takes = subject.signature.takes("position_ids") and not subject.decodes
    if positions and takes and "position_ids" not in inputs:
        steps = torch.arange(done, done + size, device=subject.device)
        inputs["position_ids"] = steps.expand(text.rows, size)
    return Batch(inputs)


def text_of(probe: Probe, plan: Plan, word: str) -> Batch:
    """The text of a plan; ``before`` gives one of the same shape."""
    text = probe.batch(plan.rows, plan.length, word, plan.length)
    if plan.source:
        return masked_source(probe, text)
    return padded_left(probe, text) if plan.padded else text


def padded_left(probe: Probe, text: Batch) -> Batch:
    """Row i padded by i tokens on the left (up to 4), with positions from the first real one."""
    subject = probe.subject
    ids = text["input_ids"]
    steps = torch.arange(ids.shape[1], device=ids.device)
    pads = torch.arange(text.rows, device=ids.device).clamp(max=min(4, ids.shape[1] - 4))
    mask = (steps[None] >= pads[:, None]).long()
    filler = 0 if subject.pad_id is None else subject.pad_id
    inputs = {"input_ids": ids.masked_fill(mask == 0, filler), "attention_mask": mask}
    if subject.signature.takes("position_ids"):
        inputs["position_ids"] = real_positions(mask)
    return text.with_(**inputs)


@contextlib.contextmanager
def kept(model: torch.nn.Module) -> Iterator[None]:
    """Attributes and buffers that a model exchanges while it decodes come back as they were."""
    before = [(m, dict(vars(m)), dict(m._buffers)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
