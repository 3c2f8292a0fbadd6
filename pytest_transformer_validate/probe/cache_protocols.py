"""How a cache travels, read from the signature and from what comes back.

Handed in and returned (a tuple, a dict, an object that is changed in place), handed in alone by
the one who made it, or kept inside the model, which is told how many tokens came before.
"""

from __future__ import annotations

import contextlib
import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.cache_makers import counted, held_by, made_caches
from pytest_transformer_validate.probe.cache_masks import FORMS
from pytest_transformer_validate.probe.decoding import (
    Plan,
    Protocol,
    begin,
    call_on,
    encoder_states,
    kept,
    set_up,
    text_of,
)
from pytest_transformer_validate.subject.outputs import (
    field_of,
    floating,
    named_caches,
    possible_caches,
)
from pytest_transformer_validate.subject.setup import method_of

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_CLOSE = 0.01  # of the largest logit: another mask gives other logits, rounding does not
_RESET = re.compile(r"^(reset|clear|empty)_?(the_)?(kv_?|key_value_)?(cache|caches|state)$")


def handed_over(probe: Probe) -> Protocol:
    """A cache that forward takes and returns."""
    subject = probe.subject
    name = subject.signature.names["past_key_values"]
    length = max(2, subject.sizes[1] // 2)
    plan = Plan(2 if subject.most_rows > 1 else 1, (length, 1))
    text = text_of(probe, plan, "protocol")
    blank = Protocol(name, None)
    with probe.running("protocol") as running, kept(running.model):
        raw = _first_call(running, text, length, blank)
        own = field_of(raw, name)
        named = [(name, own)] if own is not None else named_caches(raw)
        if named:
            return _with_encoder(running, text, length, Protocol(name, named[0][0]), raw)
        possible = dict(possible_caches(raw))
        for field, value in tuple(possible.items()):
            trial, given = Protocol(name, field), copy.deepcopy(value)
            with contextlib.suppress(Exception):
                call_on(running, text, length, 1, trial, given, None, positions=True)
                if not isinstance(value, dict) or len(given) == len(value):
                    return trial
                del possible[field]  # it holds no cache, and one was begun in it
    for field, value in possible.items():
        if _keys_and_values(value, length):
            return Protocol(name, field)
    made = _made_by_the_caller(probe, name, text, length)
    if made is None:
        raise NotApplicable(f"forward takes {name} and returns no cache")
    return made


def _made_by_the_caller(probe: Probe, name: str, text: Batch, length: int) -> Protocol | None:
    """The first cache that a caller may make into which forward puts something for every token:
    another token makes it longer. With one of the model's own class that token may raise."""
    reset = _reset_of(probe.subject)
    for words, make, own in made_caches(probe.subject):
        trial = Protocol(f"{name}, {words} made by the caller", None, reset, made=make)
        if _fills(probe, text, length, trial, own=own):
            return trial
    return None


def _fills(probe: Probe, text: Batch, length: int, trial: Protocol, *, own: bool) -> bool:
    with probe.running("protocol") as running, kept(running.model):
        try:
            cache = begin(running, trial)
            count = counted(cache)
            call_on(running, text, 0, length, trial, cache, None, positions=True)
        except Exception:  # noqa: BLE001 - what a model cannot use is no cache of its
            return False
        before = [t.shape for t in tensors_of(cache)]
        held = [length in shape for shape in before]  # of the encoder's tokens, else
        filled = sum(held) > 1 and (all(held) or running.decodes)
        if own and count is not None and count == counted(cache):
            return False  # the caller counts, and nobody knows how
        try:
            call_on(running, text, length, 1, trial, cache, None, positions=True)
        except Exception:  # noqa: BLE001 - that is for the check to say
            return own and filled
        return filled and _longer(before, [t.shape for t in tensors_of(cache)], held)


def _longer(before: list[torch.Size], after: list[torch.Size], held: list[bool]) -> bool:
    """Whether every tensor of a cache that holds tokens has one more along one axis, and is else
    the same, as all others are."""
    triples = zip(before, after, held, strict=False)
    return len(before) == len(after) and all(
        sorted(n - o for o, n in zip(old, new, strict=False))
        == [*[0] * (len(new) - 1), int(grows)]
        for old, new, grows in triples
    )


def _reset_of(subject: Subject) -> str | None:
    """The method that empties what the model keeps, where there is one."""
    return next((m for m in dir(subject.model) if _RESET.match(m)), None)


def _with_encoder(
    subject: Subject, text: Batch, length: int, protocol: Protocol, raw: Any
) -> Protocol:
    """The protocol with what the encoder gave in the form with which a step runs: as transformers
    hands it over, else as a tensor; without it where neither does."""
    states = encoder_states(subject, raw)
    if states is None or protocol.field is None:
        return protocol
    cache = field_of(raw, protocol.field)
    for trial in (protocol, replace(protocol, encoded=lambda states: states)):
        given = (subject, text, length, 1, trial, copy.deepcopy(cache), trial.encoded(states))
        with contextlib.suppress(Exception):
            call_on(*given, positions=True)
            return trial
    return replace(protocol, encoded=lambda states: None)


def kept_inside(probe: Probe) -> Protocol:
    """A cache that the model keeps: something in it is another after a call. Where nothing is, a
    method that sets caches up is called first."""
    method = method_of(probe.subject)
    try:
        return _kept_inside(probe, None)
    except NotApplicable:
        if method is None:
            raise
    return _kept_inside(probe, method)


def _kept_inside(probe: Probe, method: str | None) -> Protocol:
    subject = probe.subject
    signature = subject.signature
    role = next(r for r in ("start", "input_pos", "use_cache") if signature.takes(r))
    name = signature.names[role]
    reset = _reset_of(subject)
    length = max(2, subject.sizes[1] // 2)
    plan = Plan(2 if subject.most_rows > 1 else 1, (length,))
    text = text_of(probe, plan, "protocol")
    words = f"{name}, kept inside the model" + (f", made by {method}" if method else "")
    protocol = Protocol(words, None, None if method else reset, method)
    if method:
        protocol = _with_mask(probe, protocol, plan, text)
    with (
        probe.running("protocol") as running,
        kept(running.model),
        set_up(running, protocol, plan),
    ):
        before = _contents(running.model)
        _first_call(running, text, length, protocol)
        if _contents(running.model) == before:
            raise NotApplicable(f"forward takes {name}, returns no cache and keeps nothing")
        if method and reset and _counts_on(running, text, length, protocol, reset):
            return replace(protocol, reset=reset)
    return protocol


def _with_mask(probe: Probe, protocol: Protocol, plan: Plan, text: Batch) -> Protocol:
    """The protocol with the causal mask that the model asks for, where it refuses to go without:
    the one with which it gives the logits of the text."""

    def logits(trial: Protocol) -> torch.Tensor:
        with (
            probe.running("protocol") as running,
            kept(running.model),
            set_up(running, trial, plan),
        ):
            given = (running, text, 0, plan.length, trial, None, None)
            return running.read(*call_on(*given, positions=True)).logits

    if not probe.subject.signature.takes("mask"):
        return protocol
    with contextlib.suppress(Exception):
        logits(protocol)
        return protocol
    expected = probe.forward(text).logits
    allowed = _CLOSE * float(expected.abs().max())
    for form in FORMS:
        trial = replace(protocol, text=f"{protocol.text}, with a causal mask", mask=form)
        with contextlib.suppress(Exception):
            found = logits(trial)
            if found.shape == expected.shape and float((found - expected).abs().max()) <= allowed:
                return trial
    return protocol


def _counts_on(subject: Subject, text: Batch, length: int, protocol: Protocol, reset: str) -> bool:
    """Whether a text that begins at 0 is put behind the one before, in caches that count
    themselves, until ``reset`` is called, and can be read then."""
    first = _counters(subject.model)
    with contextlib.suppress(NotApplicable):  # no room behind the text before
        _first_call(subject, text, length, protocol)
        if _counters(subject.model) == first:
            return False
    try:
        getattr(subject.model, reset)()
        _first_call(subject, text, length, protocol)
    except Exception:  # noqa: BLE001 - it takes more than to be called: not a way to empty them
        return False
    return _counters(subject.model) == first


def _counters(model: torch.nn.Module) -> list[Any]:
    """Whole numbers that modules hold: attributes, and buffers as lists."""
    found: list[Any] = []
    for module in model.modules():
        held = {**_plain_attributes(module), **module._buffers}
        found += [v for v in held.values() if type(v) is int]
        tensors = (v for v in held.values() if isinstance(v, torch.Tensor))
        found += [t.tolist() for t in tensors if not t.is_floating_point() and not t.is_complex()]
    return found


def _first_call(subject: Subject, text: Batch, length: int, protocol: Protocol) -> Any:
    try:
        raw, _ = call_on(subject, text, 0, length, protocol, None, None, positions=True)
    except Exception as error:
        line = error_line(error)
        raise NotApplicable(
            f"asked for a cache ({protocol.text}), forward raises {line}"
        ) from error
    return raw


def _keys_and_values(value: Any, length: int) -> bool:
    """Whether a result that cannot be handed back is a cache all the same: pairs of tensors with
    one axis that follows the length (weights of attention have two)."""
    tensors = tensors_of(value)
    return len(tensors) > 1 and all(list(t.shape).count(length) == 1 for t in tensors)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every floating point tensor in a cache, also in the attributes of objects."""
    found: list[torch.Tensor] = []
    seen: set[int] = set()

    def visit(item: Any, depth: int) -> None:
        if id(item) in seen or depth > 6:
            return
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.extend(floating(item))
        elif isinstance(item, dict):
            for inner in item.values():
                visit(inner, depth + 1)
        elif isinstance(item, list | tuple | set):
            for inner in item:
                visit(inner, depth + 1)
        elif not isinstance(item, type):
            visit(held_by(item), depth + 1)

    visit(value, 0)
    return found


def _contents(model: torch.nn.Module) -> list[tuple[int, int, tuple[int, ...]]]:
    """What tells whether anything that the modules hold, parameters apart, is another."""
    parameters = {id(p) for p in model.parameters()}
    return [
        (t.data_ptr(), t._version if not t.is_inference() else _digest(t), tuple(t.shape))
        for module in model.modules()
        for t in tensors_of([module._buffers, _plain_attributes(module)])
        if id(t) not in parameters
    ]


def _digest(tensor: torch.Tensor) -> int:
    return hash(float(tensor.double().abs().sum()))


def _plain_attributes(module: torch.nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, torch.nn.Module)
    }
