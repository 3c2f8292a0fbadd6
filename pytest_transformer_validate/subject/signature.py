"""What a model's forward asks for, in the words of this package."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.asked import (
    SOURCE,
    TARGET,
    covers_text,
    decoder_reads,
    is_bias,
    known,
    lengths_of,
    mask_name,
    of_a_row,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

# Role -> parameter names, most telling first. A role is what a Batch calls the input.
ROLES: dict[str, tuple[str, ...]] = {
    "pixel_values": ("pixel_values", "images", "image", "pixels", "img", "imgs"),
    "input_ids": (
        "input_ids", "input_0_tokens", "tokens", "token_ids", "input_tokens", "src_tokens",
        "src_ids", "encoder_input_ids", "ids", "idx", "indices", "inputs", "input", "src",
        "source", "enc_input", "x",
    ),
    "decoder_input_ids": (
        "decoder_input_ids", "decoder_tokens", "tgt_tokens", "tgt_ids", "target_ids",
        "decoder_input", "decoder_inputs", "dec_input", "prev_output_tokens", "tgt", "trg", "y",
    ),
    "attention_mask": ("attention_mask",),
    "decoder_attention_mask": ("decoder_attention_mask",),
    "padding_mask": (
        "src_key_padding_mask", "key_padding_mask", "padding_mask", "pad_mask", "src_padding_mask",
        "src_pad_mask", "encoder_padding_mask",
    ),
    "decoder_padding_mask": (
        "tgt_key_padding_mask", "tgt_padding_mask", "trg_key_padding_mask", "trg_padding_mask",
    ),
    "memory_padding_mask": ("memory_key_padding_mask", "memory_padding_mask"),
    "encoder_attention_mask": ("encoder_attention_mask", "cross_attention_mask"),
    "mask": ("mask", "attn_mask", "src_mask"),
    "position_ids": ("position_ids", "positions", "pos_ids"),
    "token_type_ids": ("token_type_ids", "segment_ids", "token_types"),
    "labels": ("labels", "targets", "target", "label"),
    "past_key_values": (
        "past_key_values", "cache_params", "past", "kv_cache", "cache", "layer_past",
        "past_key_value", "past_keys_values", "kv_caches", "caches", "past_kv", "past_kvs",
        "past_cache", "prev_kv", "past_state", "state", "states", "prev_state", "hidden",
        "incremental_state",
    ),
    "use_cache": (
        "use_cache", "use_kv_cache", "return_cache", "return_kv_cache", "return_past",
        "return_kv", "return_present", "return_presents", "return_state", "output_cache",
    ),
    "start": (
        "start_pos", "past_length", "offset", "start_position", "cache_len", "past_len", "step",
    ),
    "input_pos": ("input_pos", "cache_position"),
    "encoder_outputs": ("encoder_outputs",),
    "return_loss": ("return_loss",),
}  # fmt: skip

# Roles whose form has to be found where they are required.
_MASKS = {
    "mask", "padding_mask", "decoder_padding_mask", "memory_padding_mask",
    "encoder_attention_mask",
}  # fmt: skip
_INTERMEDIATE = re.compile(r"^(mhsa|attention|residual|ffn|mlp|layer)_(\w+_)?output$")
_CALLED_WITH_ALL = re.compile(r"\bself\.(\w+)(?:\.forward)?\(\s*\*")
_VAR = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """Parameters of a forward: ``names`` maps role to parameter name, in call order.

    ``required`` holds the roles without a default; ``intermediates`` the parameters that ask for
    results of the model's own submodules (builder exports); ``positional`` the roles that cannot
    be given by keyword; ``text`` the signature as written, for messages; ``ambiguous`` a parameter
    that may be what a decoder reads, or labels; ``asked`` the annotations, by role, of what is
    required and has more than one form: see ``callers``; ``offered`` the optional masks that
    could hide later tokens, which are never given.
    """

    names: dict[str, str]
    required: frozenset[str]
    intermediates: tuple[str, ...]
    positional: frozenset[str]
    text: str
    ambiguous: str | None = None
    asked: Mapping[str, str] = field(default_factory=dict)
    offered: tuple[str, ...] = ()

    def takes(self, role: str) -> bool:
        """Whether forward has a parameter for ``role``."""
        return role in self.names


def read_signature(
    model: torch.nn.Module, *, vision: bool, translates: bool = True, seq2seq: bool = False
) -> Signature:
    """The Signature of ``model.forward``; ``vision`` says that its main input is an image,
    ``translates`` that it may be a sequence-to-sequence model, and ``seq2seq`` that it is one:
    then what nobody knows is what its decoder reads.

    Raises SubjectError, with the signature, for a required parameter that nobody knows.
    """
    forward = forward_of(model)
    if getattr(forward, "__name__", "") == "_forward_unimplemented":
        calls = next(kind for kind in type(model).__mro__ if "__call__" in vars(kind))
        instead = (
            "" if calls.__module__.startswith("torch.") else ", but __call__: call it forward"
        )
        raise SubjectError(f"{type(model).__name__} defines no forward{instead}")
    signature = inspect.signature(forward)
    parameters = [p for p in signature.parameters.values() if p.kind not in _VAR]
    text = f"forward{signature}"
    if not parameters:
        raise SubjectError(f"forward takes no named input\n  signature: {text}")
    names, unknown, ambiguous = _assign(
        parameters, vision=vision, translates=translates, seq2seq=seq2seq
    )
    intermediates = tuple(p.name for p in unknown if _INTERMEDIATE.match(p.name))
    needed = [p for p in unknown if p.default is p.empty and p.name not in intermediates]
    decodes = "decoder_input_ids" in names
    names |= {p.name: p.name for p in needed if known(p.name, _annotation(p), decodes=decodes)}
    optional = [p.name for p in unknown if p.default is None]
    names |= {name: name for name in optional if lengths_of(name) or is_bias(name)}
    main = names["pixel_values" if vision else "input_ids"]
    of_text = next((n for n in optional if covers_text(n, main)), None)
    if of_text is not None and not {"attention_mask", "padding_mask", "mask"} & names.keys():
        names["mask"] = of_text
    missing = [p.name for p in needed if p.name not in names]
    if missing:
        decoder = translates and not decodes and len(missing) == 1
        raise SubjectError(
            f"forward requires {', '.join(missing)}, and what that is cannot be found out\n"
            f"  signature: {text[:300]}\n"
            "  give the parameter a default, or wrap the model so that forward takes input_ids"
            + ("\n  is it what a decoder reads? declare it: --tb-task=seq2seq" if decoder else "")
        )
    by_name = {p.name: p for p in parameters}
    kinds = {role: by_name[name] for role, name in names.items()}
    required = frozenset(r for r, p in kinds.items() if p.default is p.empty)
    return Signature(
        names=dict(sorted(names.items(), key=lambda item: parameters.index(kinds[item[0]]))),
        required=required,
        intermediates=intermediates,
        positional=frozenset(_by_place(model, parameters, kinds)),
        text=text,
        ambiguous=ambiguous,
        asked={r: _annotation(p) for r, p in kinds.items() if r in required and _asks(r, p)},
        offered=tuple(p.name for p in parameters if _offers(p, decodes=decodes)),
    )


def _by_place(
    model: torch.nn.Module,
    parameters: list[inspect.Parameter],
    kinds: Mapping[str, inspect.Parameter],
) -> Iterator[str]:
    """The roles that are not given by keyword: those that cannot be, and the first required ones
    where a hook of the model is told of positional arguments alone."""
    hooks = {*model._forward_pre_hooks, *model._forward_hooks}
    told = {*model._forward_pre_hooks_with_kwargs, *model._forward_hooks_with_kwargs}
    roles = {parameter.name: role for role, parameter in kinds.items()}
    leading = bool(hooks - told)
    for parameter in parameters:
        role = roles.get(parameter.name)
        leading = leading and parameter.default is parameter.empty and role is not None
        by_place = leading and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if role is not None and (by_place or parameter.kind is parameter.POSITIONAL_ONLY):
            yield role


def with_asked_mask(signature: Signature) -> Signature | None:
    """The signature whose required ``attention_mask`` has a form that is to be found, as every
    other required mask; ``None`` where there is no such one."""
    role, asked = "attention_mask", "mask"
    if role not in signature.required or asked in signature.names:
        return None
    return replace(
        signature,
        names={asked if r == role else r: name for r, name in signature.names.items()},
        required=frozenset(asked if r == role else r for r in signature.required),
        positional=frozenset(asked if r == role else r for r in signature.positional),
        asked={**signature.asked, asked: ""},
    )


def _offers(parameter: inspect.Parameter, *, decodes: bool) -> bool:
    """Whether a parameter is an optional mask over what the outputs follow, not for padding."""
    found = mask_name(parameter.name, decodes=decodes)
    if found is None or parameter.default is parameter.empty or found.padding:
        return False
    return found.side == (TARGET if decodes else SOURCE)


def _asks(role: str, parameter: inspect.Parameter) -> bool:
    """Whether what a required parameter wants has more than one form."""
    if role == "past_key_values":
        return bool(values(parameter.name, _annotation(parameter)))
    return role not in ROLES or role in _MASKS


def _annotation(parameter: inspect.Parameter) -> str:
    """The annotation of a parameter as text, nothing where it has none."""
    named = parameter.annotation
    if named is parameter.empty:
        return ""
    return named if isinstance(named, str) else getattr(named, "__name__", str(named))


def forward_of(model: torch.nn.Module) -> Callable[..., Any]:
    """The forward with named parameters: one of (*args, **kwargs) hands them on, to the one that
    its class inherits, to another method or to a part."""
    while _hands_on(model.forward):
        inherited = [kind.__dict__.get("forward") for kind in type(model).__mro__]
        methods = [getattr(type(model), name, None) for name in _called_with_all(model)]
        functions = (each for each in (*inherited, *methods) if inspect.isfunction(each))
        bound = (each.__get__(model) for each in functions)
        named = next((each for each in bound if not _hands_on(each)), None)
        if named is not None:
            return named
        part = _part_behind(model)
        if part is None:
            break
        model = part
    return model.forward


def _hands_on(forward: Callable[..., Any]) -> bool:
    return all(p.kind in _VAR for p in inspect.signature(forward).parameters.values())


def _part_behind(model: torch.nn.Module) -> torch.nn.Module | None:
    """The part that is called with ``*args``: the only one, or the first that the code names."""
    children = dict(model.named_children())
    if len(children) == 1:
        return next(iter(children.values()))
    return next((children[name] for name in _called_with_all(model) if name in children), None)


def _called_with_all(model: torch.nn.Module) -> list[str]:
    """The parts and methods that the code of forward calls with ``*args``."""
    try:
        source = inspect.getsource(type(model).forward)
    except (OSError, TypeError):
        return []
    return _CALLED_WITH_ALL.findall(source)


def _assign(
    parameters: list[inspect.Parameter], *, vision: bool, translates: bool, seq2seq: bool
) -> tuple[dict[str, str], list[inspect.Parameter], str | None]:
    """Roles to names, the parameters left over, and the one that may be labels or a target."""
    left = {p.name: p for p in parameters}
    found: dict[str, str] = {}
    main = "pixel_values" if vision else "input_ids"
    if translates and not vision:
        found = _source_and_tokens(parameters)
        left = {name: p for name, p in left.items() if name not in found.values()}
    for role, candidates in ROLES.items():
        if role in found or (role in {"pixel_values", "input_ids"} and role != main):
            continue
        name = next((c for c in candidates if c in left), None)
        if name is not None:
            found[role] = name
            del left[name]
    if "decoder_input_ids" not in found and not vision and translates:
        required = [p for p in parameters[1:] if p.default is p.empty and p.name in left]
        unknown = (
            p for p in required if seq2seq and not known(p.name, _annotation(p), decodes=True)
        )
        read = (p for p in required if decoder_reads(p.name))
        name = next((p.name for p in (*read, *unknown)), None)
        if name is not None:
            found["decoder_input_ids"] = name
            del left[name]
    if main not in found:
        first = next((p.name for p in parameters if not of_a_row(p.name)), parameters[0].name)
        found = {main: first, **{r: n for r, n in found.items() if n != first}}
        left.pop(first, None)
    ambiguous = None
    if not vision:
        ambiguous = _sort_target({p.name: p for p in parameters}, found, translates=translates)
    return found, list(left.values()), ambiguous


def _source_and_tokens(parameters: list[inspect.Parameter]) -> dict[str, str]:
    """The roles of a required source and of required ids behind it: what the decoder reads."""
    names = [p.name for p in parameters if p.default is p.empty]
    if len(names) > 1 and names[0] in _SOURCES and names[1] in _TOKENS:
        return {"input_ids": names[0], "decoder_input_ids": names[1]}
    return {}


_SOURCES = {"source", "src", "src_tokens", "src_ids", "encoder_input_ids", "enc_input"}
_TOKENS = {"tokens", "ids", "input_ids", "token_ids", "input_tokens"}


def _sort_target(
    by_name: dict[str, inspect.Parameter], found: dict[str, str], *, translates: bool
) -> str | None:
    """Decide whether a target is what a decoder reads; its name where only a run can tell.

    ``decoder_input_ids`` and the like say it. ``y``, ``tgt`` or ``target`` is labels where it is
    optional, or where another task is declared; where it is required, a run has to tell.
    """
    role = "decoder_input_ids"
    if role not in found and "labels" in found:
        name = found["labels"]
        if by_name[name].default is inspect.Parameter.empty and name in _TARGETS and translates:
            found[role] = found.pop("labels")
            return name
        return None
    name = found.get(role, "")
    if name not in _TARGETS:
        return None
    required = by_name[name].default is inspect.Parameter.empty
    if required and translates:
        return name
    if "labels" not in found and (not translates or name == "y"):
        found["labels"] = found.pop(role)
    return None


_TARGETS = {"y", "tgt", "trg", "target", "targets", "tgt_ids", "target_ids"}
