"""What forward may ask of its caller beside ids: masks, lengths, positions, flags, by name.

A name says what is asked for and not in which form: a mask may be (T, T) or (B, 1, 1, T), True
may keep or hide. Here are the forms that people use; ``callers`` finds the one that a model takes.

Axes: B rows, q positions that ask, k positions that are looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

SOURCE, TARGET, CROSS = "source", "target", "cross"
OWN = "own"  # the side that the outputs follow
LAYOUTS = ("qk", "bk", "b1k", "bqk", "b11k", "b1qk", "1qk", "11qk")
# What stands in a mask, and what it says.
VALUES = {
    "keep": "True keeps",
    "block": "True hides",
    "add": "-inf hides, 0 keeps",
    "keep number": "1 keeps",
    "block number": "1 hides",
}
_HIDDEN = slice(1, 3)  # the positions that a mask hides where its meaning is measured


@dataclass(frozen=True)
class Frame:
    """What an input has to fit: B rows, lengths of source and target, and whether the task forbids
    later tokens to matter. ``own`` is the side that the outputs follow."""

    rows: int
    source: int
    target: int
    own: str
    causal: bool
    device: torch.device
    dtype: torch.dtype
    model: nn.Module


@dataclass(frozen=True)
class Mask:
    """A mask over ``side``: its axes (a key of LAYOUTS; a 1 is an axis of size 1) and values."""

    side: str
    layout: str
    values: str

    @property
    def pairs(self) -> bool:
        """Whether it has a value for every pair of positions, and so can forbid later ones."""
        return "q" in self.layout

    def words(self, own: str) -> str:
        """For reports: T is the length of what the outputs follow, S that of the source."""
        source = "T" if own == SOURCE else "S"
        queries = source if self.side == SOURCE else "T"
        keys = "T" if self.side == TARGET else source
        names = {"b": "B", "q": queries, "k": keys, "1": "1"}
        return f"({', '.join(names[axis] for axis in self.layout)}), {VALUES[self.values]}"

    def orders(self, frame: Frame) -> bool:
        """Whether this is the mask that hides later tokens."""
        return frame.causal and self.pairs and self.side == frame.own

    def make(self, frame: Frame, *, hides: bool = False) -> torch.Tensor:
        """The mask; ``hides`` makes it hide a few positions from all others."""
        queries = frame.source if self.side == SOURCE else frame.target
        keys = frame.target if self.side == TARGET else frame.source
        blocked = torch.zeros(queries, keys, dtype=torch.bool)
        if self.orders(frame):
            blocked = torch.ones_like(blocked).triu(1)
        elif hides:
            blocked[:, _HIDDEN] = True
        sizes = {"b": frame.rows, "1": 1, "q": queries, "k": keys}
        blocked = blocked if self.pairs else blocked[:1]
        own = [sizes[axis] if axis in "qk" else 1 for axis in self.layout]
        whole = blocked.reshape(own).expand([sizes[axis] for axis in self.layout]).contiguous()
        return self._filled(whole, frame.dtype).to(frame.device)

    def _filled(self, blocked: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self.values == "add":
            return torch.zeros(blocked.shape, dtype=dtype).masked_fill(blocked, float("-inf"))
        marked = ~blocked if self.values.startswith("keep") else blocked
        return marked.to(dtype) if self.values.endswith("number") else marked


@dataclass(frozen=True)
class Value:
    """Anything else that is asked for, made from the frame."""

    text: str
    make: Callable[[Frame], Any]
    by_rows: bool = False  # of a size that shows which axis of the ids is B
    of_length: bool = False  # another one for another length, or behind a cache
    counts: str | None = None  # the side of which it holds the number of tokens of each row

    def words(self, _own: str) -> str:
        """For reports."""
        return self.text


Form = Mask | Value
NOTHING = Value("None", lambda _: None)


@dataclass(frozen=True)
class MaskName:
    """What the name of a mask says: the side it is over, and whether it is about padding."""

    side: str
    padding: bool


_ANY_MASK = re.compile(r"mask|msk|no_?peek|^is_pad|^att(entio)?n_bias$")
_NO_MASK = re.compile(r"mask(ed)?_?(id|ids|token\w*|value|prob\w*|ratio|pos\w*)$")
_PADDING = re.compile(r"pad|attention_mask|valid")
_CROSS = re.compile(r"memory|cross|enc_dec|dec_enc|src_tgt|src_trg|tgt_src|trg_src")
_TARGET = re.compile(
    r"^y_|tgt|trg|target|dec|look_?ahead|causal|subsequent|future|no_?peek|self_mask"
)
_SOURCE = re.compile(r"^x_|src|source|enc|input|^e_mask")


def mask_name(name: str, *, decodes: bool) -> MaskName | None:
    """What the name of a mask says; ``None`` where it is none."""
    if not _ANY_MASK.search(name) or _NO_MASK.search(name):
        return None
    padding = bool(_PADDING.search(name))
    if not decodes:
        return MaskName(SOURCE, padding)
    if _CROSS.search(name):
        return MaskName(CROSS, padding)
    if _SOURCE.search(name) or (padding and not _TARGET.search(name)):
        return MaskName(SOURCE, padding)
    return MaskName(TARGET, padding)


def says_real(name: str) -> bool:
    """Whether a mask of that name has 1 at real tokens, wherever it is used: as in BERT's code."""
    return bool(_REAL.match(name))


def covers_text(name: str, ids: str) -> bool:
    """Whether an optional parameter of that name may tell what of the text is padding; ``ids`` is
    what the parameter with the text is called."""
    return bool(_OF_TEXT.match(name.removeprefix(f"{ids}_")))


_REAL = re.compile(r"^(encoder_)?input_masks?$|^valid_(\w+_)?mask$|^non_?pad(ding)?_mask$")
_OF_TEXT = re.compile(
    r"^((x|src|source|enc|encoder|inputs?|valid|seq|sequence|text|sent(ence)?|word|non_?pad(ding)?)_)"
    r"{0,2}(att_|attn_|attention_)?masks?$|^mask_pad$"
)


def decoder_reads(name: str) -> bool:
    """Whether a required parameter is called like the ids that a decoder reads."""
    return bool(_DECODER.match(name))


_DECODER = re.compile(
    r"^(tgt|trg|tar|target|dec|decoder|y|output)_?"
    r"(seqs?|sequence|tokens?|x|in|inp|inputs?|text|sents?|sentence|words?|ids|idx|batch|tensor"
    r"|input_ids)$|^(x|batch|shifted)_(tgt|trg|dec)$|^tar$|^ys$",
    re.IGNORECASE,
)


def known(name: str, annotation: str, *, decodes: bool) -> bool:
    """Whether a required parameter of that name and annotation can be given."""
    return mask_name(name, decodes=decodes) is not None or bool(values(name, annotation))


def values(name: str, annotation: str) -> list[Value]:
    """The forms of what a name that is no mask asks for, the likeliest first."""
    found = next((forms for pattern, forms in _NAMES if pattern.match(name)), None)
    if found is None and annotation.removeprefix("builtins.") == "bool":
        return [_FALSE, _TRUE]
    return list(found or ())


def of_a_row(name: str) -> bool:
    """Whether a parameter of that name holds one id for each text: whose it is, or what is asked
    about beside it."""
    return bool(_OF_A_ROW.match(name))


_OF_A_ROW = re.compile(
    r"^(user|uid|users|u)(_?(ids?|idx|index))?$|^(target|candidate|cand)_items?(_?(ids?|idx))?$"
)


def is_bias(name: str) -> bool:
    """Whether an optional parameter of that name may be added to the scores of attention."""
    return name in {"attn_bias", "attention_bias"}


def lengths_of(name: str) -> str | None:
    """The side (or OWN) of which an optional parameter of that name would hold the lengths."""
    if not _OPTIONAL_LENGTHS.match(name):
        return None
    return next((form.counts for form in values(name, "")), None)


_OPTIONAL_LENGTHS = re.compile(
    r"^((src|source|enc|encoder|inputs?|texts?|x|tgt|trg|target|dec|decoder|tokens?|ids|seqs?"
    r"|sequences?|valid)_?)*(lengths?|lens?)$",
    re.IGNORECASE,
)


def _ids(number: int) -> Callable[[Frame], torch.Tensor]:
    return lambda f: torch.full((f.rows, _length(f)), number, device=f.device)


def _length(frame: Frame) -> int:
    return frame.source if frame.own == SOURCE else frame.target


def _counts(side: str | None) -> Callable[[Frame], torch.Tensor]:
    def make(frame: Frame) -> torch.Tensor:
        length = _length(frame) if side is None else getattr(frame, side)
        return torch.full((frame.rows,), int(length), device=frame.device)

    return make


def _steps(side: str | None, *, rows: bool) -> Callable[[Frame], torch.Tensor]:
    def make(frame: Frame) -> torch.Tensor:
        length = _length(frame) if side is None else getattr(frame, side)
        steps = torch.arange(int(length), device=frame.device)
        return steps.expand(frame.rows, -1).contiguous() if rows else steps

    return make


def _number(value: float) -> Value:
    return Value(str(value), lambda _: value)


def _lengths(side: str | None) -> tuple[Value, ...]:
    counts = _counts(side)
    return (
        Value("(B,), the full lengths", counts, by_rows=True, of_length=True, counts=side or OWN),
        Value("a list of the full lengths", lambda f: counts(f).tolist(), of_length=True),
        Value("the full length", lambda f: int(counts(f)[0]), of_length=True),
    )


def _positions(side: str | None) -> tuple[Value, ...]:
    return (
        Value("(B, T), positions from 0", _steps(side, rows=True), by_rows=True, of_length=True),
        Value("(T,), positions from 0", _steps(side, rows=False), of_length=True),
    )


def _first_state(frame: Frame) -> Any:
    """What the model's own method gives as a state to begin with."""
    for name in ("init_hidden", "init_state", "initial_state", "init_states", "get_init_state"):
        method = getattr(frame.model, name, None)
        if callable(method):
            return method(frame.rows)
    raise LookupError("no method of the model makes a state to begin with")


_BEGINNING = Value("what the model makes to begin with", _first_state, by_rows=True)
_FALSE, _TRUE = Value("False", lambda _: False), Value("True", lambda _: True)
_CAUSAL = Value("whether the task is causal", lambda f: f.causal)
_SEGMENTS = (Value("(B, T), zeros", _ids(0)), Value("(B, T), ones", _ids(1)))
_SCORED = (_SEGMENTS[1],)  # items that a recommender gives a number each
_LANGUAGE = Value("(B,), zeros", lambda f: _ids(0)(f)[:, 0])
_ONE_A_ROW = Value("(B,), ones", lambda f: _ids(1)(f)[:, 0])
_SRC = r"^(src|source|enc|encoder|input|text|x)"
_TGT = r"^(tgt|trg|target|dec|decoder|output|y)"
_LENGTHS = r"_?(valid_?)?(lengths?|lens?|sizes)$"
_PLACES = r"_?(pos|positions?|pos_ids|position_ids|pos_seq)$"
_NAMES: tuple[tuple[re.Pattern[str], tuple[Value, ...]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), forms)
    for pattern, forms in (
        (r"^max_\w*(len|length)s?$|^(seq|sequence)_?len(gth)?$", _lengths(None)[::-1]),
        (rf"{_SRC}{_LENGTHS}", _lengths(SOURCE)),
        (rf"{_TGT}{_LENGTHS}", _lengths(TARGET)),
        (r"^(\w+_)?(lengths?|lens?)$|^(num|n)_(tokens|words)$", _lengths(None)),
        (rf"{_SRC}{_PLACES}", _positions(SOURCE)),
        (rf"{_TGT}{_PLACES}", _positions(TARGET)),
        (r"^pos(itions?|_seq|_idx|_index)?$|^position_(idx|index|indices)$", _positions(None)),
        (r"^(masked|pred|mlm)_(pos|positions)$", _positions(None)),
        (
            r"^(token_)?type(s|_ids?)?$|^seg(s|ments?)?(_\w+)?$|^sent(ence)?_(ids?|types?)$",
            _SEGMENTS,
        ),
        (_OF_A_ROW.pattern, (_ONE_A_ROW, _LANGUAGE)),
        (r"^pos(itive)?_(seqs|items|samples)$|^neg(ative)?_(seqs?|items?|ids|samples?)$", _SCORED),
        (r"^lang(uage)?s?(_ids?)?$", (_SEGMENTS[0], _LANGUAGE)),
        (r"^(is_)?causal$|^has_mask$|^use_(causal_)?mask$|^apply_mask$", (_CAUSAL,)),
        (r"^deterministic$", (_TRUE,)),
        (
            r"^(is_)?(train|training|inference|verbose|debug|sample|sampling)$"
            r"|^(return|need|use|with|enable|do|log|is)_\w+$"
            r"|^output_(attentions?|attn\w*|hidden\w*|weights)$|^\w+_only$",
            (_FALSE, _TRUE),
        ),
        (r"^(temperature|temp|tau)$", (_number(1.0),)),
        (r"^(dropout|dropout_rate|drop_rate|drop_prob|mask_(ratio|prob\w*))$", (_number(0.0),)),
        (r"^(global_|curr?_|current_)?(step|epoch|iter|iteration|itr)s?$|^n_iter$", (_number(0),)),
        (
            r"^(mems?|incremental_state|hx|h_?0)$"
            r"|^(prev_|past_|last_|init_|initial_)?(states?|hiddens?)$",
            (NOTHING, _BEGINNING),
        ),
        (r"^device$", (Value("the model's device", lambda f: f.device),)),
    )
)  # fmt: skip
