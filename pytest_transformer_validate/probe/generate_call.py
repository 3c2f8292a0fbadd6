"""How ``generate`` is called: transformers' own, or one whose parameters say what they are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.subject.declared import declared
from pytest_transformer_validate.subject.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

# Parameters of a generate that somebody wrote, by what they mean.
_COUNT = (
    "max_new_tokens", "num_new_tokens", "new_tokens", "n_new_tokens", "max_tokens", "num_tokens",
    "n_tokens", "max_gen_len", "num_generate", "steps", "num_steps", "gen_len", "n_new", "n",
)  # fmt: skip
_TOTAL = (
    "max_length", "max_len", "max_seq_len", "max_seq_length", "total_len", "length", "seq_len",
)  # fmt: skip
_START = (
    "start_token_id", "start_id", "start_token", "bos_token_id", "bos_id", "bos_idx",
    "sos_token_id", "sos_id", "sos_idx", "start_symbol", "decoder_start_token_id", "bos", "sos",
)  # fmt: skip
_END = (
    "eos_token_id", "eos_id", "eos_idx", "eos_token", "end_id", "end_token_id", "eos",
    "end_symbol", "stop_token", "stop_id",
)  # fmt: skip
_GREEDY: dict[str, Any] = {"do_sample": False, "sample": False, "greedy": True, "top_k": 1}
_GREEDY |= {"num_beams": 1, "beam_size": 1}
_COLD = 1e-6
_NO_ID = -1


@dataclass(frozen=True)
class Generate:
    """How to call generate, and what it is about.

    ``call(model, prompt, n)`` gives what it returns; ``exact`` says that it promises n new
    tokens, ``masked`` that it takes an attention mask; ``start`` is the id with which a decoder
    starts, ``ends`` the one that ends a text.
    """

    call: Callable[[Any, Batch, int], Any]
    exact: bool
    masked: bool
    start: int = 0
    ends: int | None = None

    def new_tokens(self, raw: Any, prompt: Batch, count: int) -> torch.Tensor:
        """The new tokens (B, n) in what came back. Raises NotApplicable for what is no text."""
        text = _ids(raw)
        given = prompt.inputs.get("decoder_input_ids", prompt.main)
        if text is not None and text.dim() == 1 and len(given) == 1:
            text = text[None]
        if text is None or text.dim() != 2 or len(text) != len(given):
            raise NotApplicable("what generate returns is no text: ids (B, T) are expected")
        text = text.to(given.device)
        length = given.shape[1]
        if torch.equal(text[:, :length], given):
            text = text[:, length:]
        elif text.shape[1] > count:
            raise Unexpected(f"{text.shape[1]} ids that do not begin with the {length} given ones")
        if self.exact and text.shape[1] != count and self.ends is None:
            raise Unexpected(f"{text.shape[1]} new tokens for {count} asked for")
        if not text.shape[1]:
            raise NotApplicable("generate gives no new token")
        return text


class Unexpected(Exception):
    """What came back is a text, and not the one that was asked for."""


def understand(subject: Subject) -> Generate:
    """How the model's generate is called. Raises NotApplicable."""
    model: Any = subject.model
    own = getattr(model, "generate", None)
    if not callable(own):
        raise NotApplicable("the model has no generate")
    can = getattr(model, "can_generate", None)
    if callable(can) and hasattr(model, "generation_config"):
        if not can():
            raise NotApplicable("the model says that it cannot generate")
        return _of_transformers(subject)
    return _own(subject, inspect.signature(own))


def _of_transformers(subject: Subject) -> Generate:
    model: Any = subject.model
    kept = model.generation_config
    start = kept.decoder_start_token_id
    start = kept.bos_token_id if start is None else start

    def call(model: Any, prompt: Batch, count: int) -> Any:
        # What a checkpoint declares beside (beams, penalties, forced tokens) is another promise.
        model.generation_config = type(kept)(
            bos_token_id=kept.bos_token_id,
            pad_token_id=subject.pad_id,
            decoder_start_token_id=kept.decoder_start_token_id,
            use_cache=kept.use_cache,
            cache_implementation=kept.cache_implementation,
        )
        mask = prompt.inputs.get("attention_mask")
        mask = torch.ones_like(prompt["input_ids"]) if mask is None else mask
        return model.generate(
            prompt["input_ids"], attention_mask=mask, max_new_tokens=count, do_sample=False
        )

    masked = subject.signature.takes("attention_mask")
    return Generate(call, exact=True, masked=masked, start=start or 0)


def _own(subject: Subject, signature: inspect.Signature) -> Generate:
    """A generate whose parameters are called like what they mean."""
    parameters = [
        p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    names = [p.name for p in parameters]
    if not parameters or parameters[0].annotation in (str, "str"):
        raise NotApplicable(f"generate{signature} takes no ids")
    counts = [name for name in names[1:] if name in _COUNT]
    totals = [name for name in names[1:] if name in _TOTAL]
    if not counts and not totals:
        raise NotApplicable(f"generate{signature} does not take how many tokens are wanted")
    start, end = _start(subject), declared(subject.config, ("eos_token_id",))
    fixed: dict[str, Any] = {name: value for name, value in _GREEDY.items() if name in names}
    if "temperature" in names:
        fixed["temperature"] = 1.0 if fixed else _COLD
    fixed |= {name: start for name in names if name in _START}
    needed = [p.name for p in parameters[1:] if p.default is p.empty]
    fixed |= {name: _NO_ID for name in needed if name in _END}
    masked = "attention_mask" in names
    known = {*fixed, *counts, *totals, "attention_mask"}
    unknown = [name for name in needed if name not in known]
    if unknown:
        raise NotApplicable(f"generate{signature} asks for {', '.join(unknown)}")

    def call(model: Any, prompt: Batch, count: int) -> Any:
        given = prompt.inputs.get("decoder_input_ids", prompt["input_ids"])
        wanted: dict[str, Any] = {counts[0]: count} if counts else {}
        if not counts:
            wanted[totals[0]] = given.shape[1] + count
        if masked and "attention_mask" in prompt.inputs:
            wanted["attention_mask"] = prompt["attention_mask"]
        return model.generate(prompt["input_ids"], **wanted, **fixed)

    ends = end if isinstance(end, int) else None
    return Generate(call, exact=bool(counts), masked=masked, start=start, ends=ends)


def _start(subject: Subject) -> int:
    """The id with which a decoder starts, as far as it is declared."""
    found = declared(subject.config, ("decoder_start_token_id", "bos_token_id", "sos_token_id"))
    return found if isinstance(found, int) else 1


def _ids(raw: Any) -> torch.Tensor | None:
    """The ids in a tensor, a result with a field, or lists of numbers."""
    found = [t for t in tensors_in(raw) if not t.is_floating_point()]
    if found:
        return max(found, key=torch.Tensor.dim)
    try:
        return torch.tensor(raw) if isinstance(raw, list | tuple) else None
    except (TypeError, ValueError, RuntimeError):
        return None
