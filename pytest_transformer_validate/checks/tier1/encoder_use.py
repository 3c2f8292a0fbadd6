"""The decoder uses all of what the encoder read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.mixing import (
    both_kind,
    built_alike,
    first_short,
    measured_from,
    require_length,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable, first_line
from pytest_transformer_validate.measures import context

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.measures.context import Context
    from pytest_transformer_validate.probe.probe import Probe

SOURCE = "every output of a decoder must depend on every token of the encoder's input"


@check(tier=1, tasks=("seq2seq",))
def encoder_use(probe: Probe, *, floor: float = 1e-7) -> Context:
    """The decoder uses what the encoder read: every output depends on every source token, every
    layer with cross attention on all of the encoder's output, and the encoder's tokens see each
    other in both directions.

    Read by gradients, as in ``context_use``: a dependency counts above ``floor`` of the largest at
    its output, as loaded or with all parameters moved at random, because small initial weights
    may move a decoder by as little as 1e-4.
    """
    require_length(probe)
    if probe.order.sides["text"][0] == "input_ids":
        raise NotApplicable("forward takes no decoder input")
    first = _source(probe, "eval")
    if bool((first < floor).any()):
        first = first.maximum(_source(probe, "noised"))
    unseen = (first < floor).nonzero().tolist()
    length = probe.mixing.source_length
    measured = replace(measured_from(first, floor, len(unseen)), length=length)
    if unseen:
        measured = _judge_source(probe, measured, first, unseen)
    _judge_cross(probe, measured)
    _judge_given(probe, measured)
    _judge_memory(probe, measured)
    _judge_encoder(probe, measured, length)
    return measured


def _source(probe: Probe, condition: str) -> torch.Tensor:
    try:
        matrix = probe.mixing.source(condition)
    except Exception as error:
        raise NotApplicable(f"no gradient could be read: {first_line(error)}") from error
    if matrix is None:
        raise NotApplicable("the encoder's token vectors cannot be seen")
    if not bool(matrix.any()):  # an encoder that runs under no_grad
        matrix = probe.mixing.source_swaps(condition)
    return context.relative(matrix)


def _judge_source(
    probe: Probe, measured: Context, values: torch.Tensor, unseen: list[list[int]]
) -> Context:
    told = probe.tells_of_limits()
    if told and measured.unseen < measured.pairs // 2:
        note = f"some source tokens are not seen: a limited reach ({told})"
        return replace(measured, notes=(note,))
    position, token = unseen[0]
    missing = sorted({s for _, s in unseen})
    where = _first_deaf(probe) or first_short(
        probe, {"alone"}, probe.mixing.source_length, "source"
    )
    if where is None and not _cross(probe, "noised"):
        where = probe.root
    likely = "the encoder's output is not handed to the decoder, or it is overwritten"
    if len(missing) < values.shape[1]:
        likely = "only some of the encoder's positions are handed on (a slice, one position)"
    raise CheckFailed(
        f"{SOURCE}\n"
        f"the output at position {position} does not depend on source token {token}; "
        f"{measured.unseen} of {measured.pairs} pairs are below {measured.limit}, with moved "
        "parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        f"likely: {likely}",
        measured,
        where=where,
    )


def _judge_given(probe: Probe, measured: Context) -> None:
    """Of modules that are built alike, all are given the encoder's output, or none is; a list
    may hold attention to the text itself and to the encoder by turns."""
    memory = probe.mixing.memory("eval")
    reads = memory.reads if memory else {}
    turns = probe.siblings.turns
    readers = [module for module, read in reads.items() if read]
    for module, read in reads.items():
        if read or not any(part.isdigit() for part in module.split(".")):
            continue
        near = (name for name in readers if built_alike(probe, name, module))
        other = next((name for name in near if turns(name) == turns(module)), None)
        if other is not None:
            raise CheckFailed(
                f"{SOURCE}\n"
                f"{module} is not given the encoder's output, and {other}, which is built like "
                "it, is\n"
                f"first module to differ: {module}\n"
                "likely: what one layer returns is handed to the next as the encoder's output, "
                "or one layer attends to the decoder's own tokens",
                measured,
                where=module,
            )


def _judge_memory(probe: Probe, measured: Context) -> None:
    """Every position of the encoder's output reaches the logits, and every layer that is given
    something of its length."""
    first, second = _unused(probe, "eval"), None
    if first:
        second = _unused(probe, "noised")
    if not first or not second:
        return
    modules, positions = second
    where = modules[0] if modules else _first_deaf(probe) or probe.root
    everywhere = set(modules) == set(_cross(probe, "noised"))
    where = probe.root if everywhere else where
    raise CheckFailed(
        f"{SOURCE}\n"
        f"position {positions[0]} of the encoder's output is not used"
        f"{f' by what {modules[0]} is given' if modules else ''} ({len(positions)} of "
        f"{measured.length} are not), with moved parameters too\n"
        f"first module to differ: {where}\n"
        "likely: only some of the encoder's positions are handed on (a slice, an expanded first "
        "position), or they are overwritten for one layer",
        measured,
        where=where,
    )


def _unused(probe: Probe, condition: str) -> tuple[list[str], list[int]] | None:
    """The modules that are not given all of the encoder's output, and positions that are not
    used; the logits' where all modules are; ``None`` where everything is used."""
    memory = probe.mixing.memory(condition)
    if memory is None:
        return None
    cross = _cross(probe, condition)
    lost = {
        module: (context.relative(used) < 1e-9).nonzero().flatten().tolist()
        for module, used in memory.given.items()
        if module in cross
    }
    modules = [module for module, positions in lost.items() if positions]
    if modules:
        return modules, lost[modules[0]]
    positions = (context.relative(memory.logits) < 1e-9).nonzero().flatten().tolist()
    return ([], positions) if positions else None


def _cross(probe: Probe, condition: str) -> dict[str, torch.Tensor]:
    """(K, S) of the innermost modules that read the encoder's output."""
    length, source = probe.subject.sizes[1], probe.mixing.source_length
    prints = [
        f
        for f in probe.mixing.footprints(length, condition)
        if f.length == length and source in f.matrices
    ]
    names = [f.module for f in prints]
    return {
        f.module: f.matrices[source]
        for f in prints
        if not any(context.inside(other, f.module) for other in names)
    }


def _first_deaf(probe: Probe) -> str | None:
    """The first module that is given the encoder's output and does not use all of it."""
    for module, matrix in _cross(probe, "noised").items():
        if bool((context.relative(matrix) < 1e-9).any()):
            return module
    return None


def _judge_cross(probe: Probe, measured: Context) -> None:
    """A layer that ignores the encoder's output although others, built like it, use it."""
    module = _odd_cross(probe, "eval") and _odd_cross(probe, "noised")
    if module:
        raise CheckFailed(
            f"{SOURCE}\n"
            f"{module} is given the encoder's output and does not use all of it; another layer "
            "that is built like it does\n"
            f"first module to differ: {module}\n"
            "likely: one layer attends to itself instead, or to one position only",
            measured,
            where=module,
        )


def _odd_cross(probe: Probe, condition: str) -> str | None:
    cross = _cross(probe, condition)
    deaf = [m for m, matrix in cross.items() if bool((context.relative(matrix) < 1e-9).any())]
    for module in deaf:
        if any(built_alike(probe, module, other) for other in cross if other not in deaf):
            return module
    return None


def _judge_encoder(probe: Probe, measured: Context, length: int) -> None:
    """The encoder's modules carry something from both sides."""
    decoder = probe.subject.sizes[1]
    prints = context.mixers(probe.mixing.footprints(decoder, "eval"), length)
    kinds = {f.module: both_kind(context.module_pattern(f)) for f in prints}
    odd = [module for module, kind in kinds.items() if kind in {"past", "future"}]
    if odd and len(odd) == len(kinds) and len(set(kinds.values())) == 1:
        if probe.tells_of_limits() and not probe.order.scores("source"):
            return
        raise CheckFailed(
            "an encoder's tokens must see tokens before and after them\n"
            f"{odd[0]} carries nothing from {'later' if kinds[odd[0]] == 'past' else 'earlier'} "
            "tokens, nor does any other module of the encoder\n"
            f"first module to differ: {odd[0]}\n"
            "likely: a causal mask is given to the encoder",
            measured,
            where=odd[0],
        )
    _judge_siblings_of_encoder(probe, measured, length)


def _judge_siblings_of_encoder(probe: Probe, measured: Context, length: int) -> None:
    decoder = probe.subject.sizes[1]
    groups: dict[tuple[object, ...], dict[str, str]] = {}
    for f in context.mixers(probe.mixing.footprints(decoder, "eval"), length):
        key = (context.alike(f.module), *probe.mixing.kind(f.module))
        groups.setdefault(key, {})[f.module] = both_kind(context.module_pattern(f))
    for kinds in groups.values():
        bad = [m for m, kind in kinds.items() if kind in {"past", "future"}]
        if bad and "all" in kinds.values() and len({kinds[m] for m in bad}) == 1:
            raise CheckFailed(
                "an encoder's tokens must see tokens before and after them\n"
                f"{bad[0]} sees one side only, and others that are built like it see both\n"
                f"first module to differ: {bad[0]}\n"
                "likely: a causal mask is given to one layer of the encoder",
                measured,
                where=bad[0],
            )
