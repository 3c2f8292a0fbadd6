"""Decoding with a cache, piece by piece, against the same text at once.

How a cache travels is read from the signature and from what comes back: handed in and returned
(a tuple, a dict, an object that is changed in place), or kept inside the model, which is told how
many tokens came before.

Axes: B batch, T positions, V outputs, n tokens of a piece.
"""

from __future__ import annotations

import contextlib
import copy
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.compare import (
    axis_of,
    difference,
    some_rows,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.real_tokens import real_positions
from pytest_transformer_validate.probe.trace import Call, traced, where_raised
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import declared_size
from pytest_transformer_validate.subject.outputs import (
    field_of,
    floating,
    named_caches,
    possible_caches,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.subject import Subject

WINDOW = (
    "sliding_window", "attention_window", "window_size", "local_window", "attn_window",
    "local_attention", "window",
)  # fmt: skip
_BY_PIECE = ("position_ids", "token_type_ids")
_BY_PAST = ("attention_mask", "mask", "padding_mask")
_RESET = re.compile(r"^(reset|clear|empty)_?(the_)?(kv_?|key_value_)?(cache|caches|state)$")
_LONG = 40


@dataclass(frozen=True)
class Protocol:
    """How a cache travels.

    ``field`` is the result that is handed back in (``None``: the model keeps it inside, and
    ``reset`` names the method that empties it, where there is one).
    """

    text: str
    field: str | None
    reset: str | None = None


@dataclass(frozen=True)
class Plan:
    """A text and how it is cut: ``pieces`` are numbers of tokens.

    ``positions`` says that position ids are given where forward takes them; ``padded`` that the
    rows are padded on the left, each differently; ``after`` what was decoded before: ``nothing``,
    ``another`` text, or the ``prefix`` of this one, which went on otherwise (a cache inside the
    model never begins with nothing, unless it has to be ``clean``); ``condition`` what the probe
    is under.
    """

    rows: int
    pieces: tuple[int, ...]
    positions: bool = True
    padded: bool = False
    after: str = "nothing"
    condition: str = ""

    @property
    def length(self) -> int:
        """Number of tokens T."""
        return sum(self.pieces)


@dataclass(frozen=True)
class Decoded:
    """One text, in pieces and at once.

    ``effect[t]`` is how far position t moved (largest over B and V; NaN where no logits came),
    ``reference`` the logits at once (B, T, V), ``noise`` how far they move with the batch size;
    ``raised`` and ``misshapen`` describe the piece ``at`` that gave no logits, ``where`` the
    module that raised.
    """

    effect: torch.Tensor
    reference: torch.Tensor
    raised: str | None = None
    misshapen: tuple[int, ...] | None = None
    at: int = 0
    where: str | None = None

    @property
    def worst(self) -> float:
        """The largest movement."""
        return float(self.effect.nan_to_num(0.0).max())

    def first_over(self, limit: float) -> int:
        """The first position that moved by more."""
        return int((self.effect > limit).nonzero()[0])


class Encoded(tuple[Any, ...]):
    """What an encoder gave, in every form in which it is asked for: first item, or attribute."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class Caches(Passes):
    """Passes with a cache."""

    @remembered
    def protocol(self) -> Protocol:
        """How the cache travels. Raises NotApplicable where none is seen."""
        probe = self.probe
        signature = probe.subject.signature
        _ = probe.subject.facts
        asked = probe.subject.given.of_length
        if asked:
            raise NotApplicable(
                f"forward requires {asked}: what that is behind a cache is unknown"
            )
        if signature.takes("past_key_values"):
            return _handed(probe)
        if any(map(signature.takes, ("start", "input_pos", "use_cache"))):
            return _inside(probe)
        raise NotApplicable("forward takes no cache and no position to go on from")

    @property
    def window(self) -> int | None:
        """The declared number of tokens that a token sees."""
        return declared_size(self.probe.subject.config, WINDOW)

    @property
    def self_positioned(self) -> bool:
        """Whether the model brings code that gives position ids when it generates."""
        return hasattr(self.probe.subject.model, "prepare_inputs_for_generation")

    def plan(self, case: str) -> list[Plan]:
        """What is decoded in a case; empty where no text is long enough for it."""
        subject = self.probe.subject
        rows, length = subject.sizes
        rows = rows if subject.small else min(rows, 2)
        longest = subject.max_length or _LONG
        if length < 4:
            return [Plan(rows, (1,) * length)] if case == "steps" else []
        if case == "steps":
            if not subject.small:
                return [Plan(rows, (length - 3, 1, 1, 1), positions=False, after="another")]
            return [
                Plan(rows, (length,), positions=False),
                Plan(rows, (1,) * length, positions=False, after="another"),
            ]
        if case == "chunks":
            condition = "noised" if subject.small else ""
            pieces = (3, 2, 1, length - 6) if length > 6 else (2, 1, length - 3)
            return [
                Plan(rows, pieces, condition=condition),
                Plan(rows, (length - 2, 1, 1), after="prefix", condition=condition),
            ]
        if case == "padded":
            return [Plan(rows, (length - 3, 1, 1, 1), padded=True)]
        plans = []
        window = self.window
        if window is not None and length - 4 < window <= 64 and window + 4 <= longest:
            plans.append(Plan(1, (max(1, window - 2), 1, 1, 1, 1, 1)))
        beyond = (window or 0) + 6 if (window or 0) <= 64 else 0
        long = min(longest, max(_LONG if subject.small else 24, beyond))
        if long > length:
            plans.append(Plan(1, (long - 4, 1, 1, 1, 1)))
        return plans

    @remembered
    def decoded(self, plan: Plan) -> Decoded:
        """The text of ``plan``, decoded and at once."""
        with self.probe.under(plan.condition):
            return self._decoded(plan)

    def _decoded(self, plan: Plan) -> Decoded:
        probe = self.probe
        protocol = self.protocol()
        text = _text(probe, plan, "decoded")
        logits: list[torch.Tensor] = []
        raised, where = None, None
        with probe.running("decoded") as subject, kept(subject.model):
            try:
                logits.extend(_feed(probe, subject, protocol, plan, text))  # as far as it gets
            except Exception as error:  # noqa: BLE001 - the check says what raising means
                raised = error_line(error)
                where = where_raised(subject.model, error)
        reference = probe.forward(text).logits
        return _compared(plan, text, logits, reference, raised, where)

    @remembered
    def noise(self, condition: str) -> float:
        """The model's own rounding under a condition: see ``compare.noise``."""
        probe = self.probe
        if not condition:
            return probe.noise()
        rows, length = probe.subject.sizes
        text = probe.batch(rows, length, "noise")
        with probe.under(condition):
            many = probe.forward(text).logits[:1]
            alone = probe.forward(some_rows(text, 0, 1)).logits
        both = many.isfinite() & alone.isfinite()
        return float(difference(many, alone)[both].max()) if bool(both.any()) else 0.0

    def locate(self, plan: Plan, position: int) -> str | None:
        """The first module whose output for the piece that holds ``position`` is another one than
        at once, although its inputs are the same."""
        probe = self.probe
        text = _text(probe, plan, "decoded")
        start, index = _piece_of(plan, position)
        with probe.under(plan.condition):
            with probe.running("decoded") as subject, kept(subject.model):
                pieces = _feed(probe, subject, self.protocol(), plan, text, watched=index)
                for _ in range(index + 1):
                    calls = next(pieces)
            with probe.running("forward") as subject, traced(subject.model) as full:
                subject(text)
        rows = text["attention_mask"].bool() if plan.padded else None
        assert isinstance(calls, list)
        return _first_other(full, calls, plan.length, start, plan.pieces[index], rows)

    def without(self, plan: Plan, position: int) -> float:
        """How far ``position`` moves without any cache when the text ends with its piece, and
        where rows are padded, when they are not."""
        probe = self.probe
        text = _text(probe, plan, "decoded")
        start, index = _piece_of(plan, position)
        end = start + plan.pieces[index]
        with probe.under(plan.condition):
            reference = probe.forward(text).logits[:, position]
            subject = probe.subject
            cut = _piece(subject, text, 0, end, positions=plan.padded)
            moved = [difference(reference, probe.forward(cut).logits[:, position])]
            if plan.padded:
                row = text.rows - 1
                pads = int((text["attention_mask"][row] == 0).sum())
                alone = Batch({"input_ids": text["input_ids"][row : row + 1, pads:]})
                plain = probe.forward(subject.complete(alone)).logits[:, position - pads]
                moved.append(difference(reference[row : row + 1], plain))
        return max(float(m.nan_to_num(0.0).max()) for m in moved)

    def grows(self) -> bool:
        """Whether a cache that is handed over holds something for every token: what stands in it
        for earlier tokens is kept when a token is added. A recurrent state changes as a whole."""
        protocol = self.protocol()
        if protocol.field is None:
            return True
        probe = self.probe
        rows, length = probe.subject.sizes
        text = probe.batch(rows, length, "grows")
        with probe.running("grows") as subject, kept(subject.model):
            caches: list[Any] = []
            plan = Plan(rows, (4, 1))
            for _ in _feed(probe, subject, protocol, plan, text, caches=caches):
                pass
        old, new = (tensors_of(cache) for cache in caches)
        return not any(
            a.shape == b.shape and a.numel() > 1 and float((a != b).float().mean()) > 0.5
            for a, b in zip(old, new, strict=False)
        )


def _feed(
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
    done, cache, encoded = 0, None, None
    if protocol.reset is not None:
        getattr(subject.model, protocol.reset)()
    if plan.after == "another" or (protocol.field is None and plan.after == "nothing"):
        other = _text(probe, plan, "before")
        if protocol.field is not None or protocol.reset is not None or _starts(subject):
            _call(subject, other, 0, plan.length, protocol, None, None, positions=plan.positions)
            _decode_start(subject, other, protocol, plan)
        if protocol.reset is not None:
            getattr(subject.model, protocol.reset)()
    for index, size in enumerate(plan.pieces):
        if plan.after == "prefix" and done and protocol.field is not None:
            branch: Any = copy.deepcopy(cache)
            other = _text(probe, plan, "before")
            _call(subject, other, done, size, protocol, branch, encoded, positions=plan.positions)
        watching: Any = traced if index == watched else contextlib.nullcontext
        with watching(subject.model) as calls:
            given = (subject, text, done, size, protocol, cache, encoded)
            raw, piece = _call(*given, positions=plan.positions)
        if protocol.field is not None:
            cache = field_of(raw, protocol.field)
            if caches is not None:
                caches.append(copy.deepcopy(cache))
        if encoded is None and subject.decodes and subject.signature.takes("encoder_outputs"):
            found = field_of(raw, "encoder_last_hidden_state")
            encoded = None if found is None else Encoded((found,))
        yield calls if index == watched else subject.read(raw, piece).logits
        done += size


def _decode_start(subject: Subject, text: Batch, protocol: Protocol, plan: Plan) -> None:
    """Decode two pieces of a text: something may be kept of a past that is handed over, too."""
    if protocol.field is None or not subject.small or len(plan.pieces) < 2:
        return
    done, cache = 0, None
    for size in plan.pieces[:2]:
        given = (subject, text, done, size, protocol, cache, None)
        cache = field_of(_call(*given, positions=plan.positions)[0], protocol.field)
        done += size


def _starts(subject: Subject) -> bool:
    """Whether a text begins anew by being told so."""
    return any(map(subject.signature.takes, ("start", "input_pos")))


def _call(
    subject: Subject,
    text: Batch,
    done: int,
    size: int,
    protocol: Protocol,
    cache: Any,
    encoded: Any,
    *,
    positions: bool,
) -> tuple[Any, Batch]:
    """Call the model on ``size`` tokens after ``done`` cached ones."""
    piece = _piece(subject, text, done, size, positions=positions)
    signature = subject.signature
    steps = torch.arange(done, done + size, device=subject.device)
    extra: dict[str, Any] = {}
    if signature.takes("use_cache"):
        extra["use_cache"] = True
    if protocol.field is not None and cache is not None:
        extra["past_key_values"] = cache
    if signature.takes("start"):
        extra["start"] = done
    if signature.takes("input_pos"):
        extra["input_pos"] = steps
    if encoded is not None:
        extra["encoder_outputs"] = encoded
    return subject.call(piece, extra), piece


def _piece(subject: Subject, text: Batch, done: int, size: int, *, positions: bool) -> Batch:
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


def _text(probe: Probe, plan: Plan, word: str) -> Batch:
    """The text of a plan; ``before`` gives one of the same shape."""
    text = probe.batch(plan.rows, plan.length, word, plan.length)
    if not plan.padded:
        return text
    return padded_left(probe, text)


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


def _compared(
    plan: Plan,
    text: Batch,
    logits: list[torch.Tensor],
    reference: torch.Tensor,
    raised: str | None,
    where: str | None,
) -> Decoded:
    effect = torch.full((plan.length,), float("nan"))
    if plan.padded:
        hidden = text["attention_mask"] == 0
    else:
        hidden = torch.zeros(plan.rows, plan.length, dtype=torch.bool, device=reference.device)
    done = 0
    for index, (size, given) in enumerate(zip(plan.pieces, logits, strict=False)):
        expected = reference[:, done : done + size]
        squeezed = given.dim() == 2 and given.shape == expected[:, -1].shape
        piece = given[:, None] if squeezed else given
        last_only = piece.shape == expected[:, -1:].shape
        if piece.shape != expected.shape and not last_only:
            shape = tuple(piece.shape)
            return Decoded(effect, reference, misshapen=shape, at=index)
        first = done + size - piece.shape[1]
        expected = reference[:, first : done + size]
        moved = difference(expected, piece)
        moved = torch.where(expected.isnan(), 0, moved).nan_to_num(float("inf"))
        moved = moved.flatten(2).amax(-1).masked_fill(hidden[:, first : done + size], 0)
        effect[first : done + size] = moved.amax(0).float().cpu()
        done += size
    return Decoded(effect, reference, raised=raised, at=len(logits), where=where)


def _handed(probe: Probe) -> Protocol:
    """A cache that forward takes and returns."""
    subject = probe.subject
    name = subject.signature.names["past_key_values"]
    length = max(2, subject.sizes[1] // 2)
    plan = Plan(2 if subject.most_rows > 1 else 1, (length, 1))
    text = _text(probe, plan, "protocol")
    blank = Protocol(name, None)
    with probe.running("protocol") as running, kept(running.model):
        raw = _first_call(running, text, length, blank)
        own = field_of(raw, name)
        named = [(name, own)] if own is not None else named_caches(raw)
        if named:
            return Protocol(name, named[0][0])
        possible = possible_caches(raw)
        for field, value in possible:
            trial = Protocol(name, field)
            with contextlib.suppress(Exception):
                _call(running, text, length, 1, trial, copy.deepcopy(value), None, positions=True)
                return trial
    for field, value in possible:
        if _keys_and_values(value, length):
            return Protocol(name, field)
    raise NotApplicable(f"forward takes {name} and returns no cache")


def _keys_and_values(value: Any, length: int) -> bool:
    """Whether a result that cannot be handed back is a cache all the same: pairs of tensors with
    one axis that follows the length (weights of attention have two)."""
    tensors = tensors_of(value)
    return len(tensors) > 1 and all(list(t.shape).count(length) == 1 for t in tensors)


def _inside(probe: Probe) -> Protocol:
    """A cache that the model keeps: something in it is another after a call."""
    subject = probe.subject
    signature = subject.signature
    role = next(r for r in ("start", "input_pos", "use_cache") if signature.takes(r))
    name = signature.names[role]
    reset = next((m for m in dir(subject.model) if _RESET.match(m)), None)
    length = max(2, subject.sizes[1] // 2)
    plan = Plan(2 if subject.most_rows > 1 else 1, (length,))
    text = _text(probe, plan, "protocol")
    protocol = Protocol(f"{name}, kept inside the model", None, reset)
    with probe.running("protocol") as running, kept(running.model):
        before = _contents(running.model)
        _first_call(running, text, length, protocol)
        if _contents(running.model) == before:
            raise NotApplicable(f"forward takes {name}, returns no cache and keeps nothing")
    return protocol


def _first_call(subject: Subject, text: Batch, length: int, protocol: Protocol) -> Any:
    try:
        raw, _ = _call(subject, text, 0, length, protocol, None, None, positions=True)
    except Exception as error:
        line = error_line(error)
        raise NotApplicable(
            f"asked for a cache ({protocol.text}), forward raises {line}"
        ) from error
    return raw


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
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            visit(vars(item), depth + 1)

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


def _piece_of(plan: Plan, position: int) -> tuple[int, int]:
    """First position and index of the piece that holds ``position``."""
    start = 0
    for index, size in enumerate(plan.pieces):
        if position < start + size:
            return start, index
        start += size
    raise IndexError(position)


def _first_other(
    full: list[Call],
    calls: list[Call],
    length: int,
    start: int,
    size: int,
    rows: torch.Tensor | None,
) -> str | None:
    """The first of ``calls`` whose outputs differ from those at once and whose inputs do not."""
    at_once: dict[str, list[Call]] = {}
    for call in full:
        at_once.setdefault(call.name, []).append(call)
    keep = None if rows is None else rows[:, start : start + size]
    for call in calls:
        others = at_once.get(call.name)
        if not others:
            continue
        other = others.pop(0)
        if _differ(other.outputs, call.outputs, length, start, size, keep) and not _differ(
            other.inputs, call.inputs, length, start, size, keep
        ):
            return call.name
    return None


def _differ(
    full: list[torch.Tensor],
    piece: list[torch.Tensor],
    length: int,
    start: int,
    size: int,
    keep: torch.Tensor | None,
) -> bool:
    for at_once, cached in zip(full, piece, strict=False):
        axis = axis_of(at_once, length)
        if axis is None or axis >= cached.dim() or cached.shape[axis] != size:
            continue
        a, b = at_once.narrow(axis, start, size), cached
        if a.shape != b.shape:
            continue
        if keep is not None and axis == 1 and a.shape[:2] == keep.shape:
            a, b = a[keep], b[keep]
        scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
        moved = difference(a, b).nan_to_num(0.0)
        if moved.numel() and float(moved.max()) > 128 * torch.finfo(a.dtype).eps * scale:
            return True
    return False
