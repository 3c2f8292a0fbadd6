"""Every output sees what it should see: earlier tokens, all tokens, the encoder's tokens."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable, first_line
from pytest_transformer_validate.measures import context
from pytest_transformer_validate.measures.context import Context, Pattern
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.tolerance import same_shape_limit

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.mixing import Footprint
    from pytest_transformer_validate.probe.probe import Probe

_WIDEST = 64  # windows up to here are tried out on a text that is longer


@check(tier=1, tasks=("causal_lm", "seq2seq", "classification", "vision_classification"))
def context_use(probe: Probe, *, floor: float = 1e-7) -> Context:
    """Every output depends on what it is given: the token itself and those before it, or, for a
    classifier, every token of the text or every patch of the image.

    The gradient of every output is read at every token vector, and through every module from
    position to position. A dependency counts above ``floor`` of the largest at its output, as
    loaded or with all parameters moved at random. A reach that is limited on purpose (a window,
    a convolution) is reported, and held against a declared window; one of which no name tells
    fails, also where only a long text shows it.
    """
    task = probe.subject.task.task_type
    if probe.subject.vision:
        return _every_patch(probe, floor)
    if task.endswith("classification"):
        return _every_token(probe, floor)
    _require_length(probe)
    measured, pattern = _look_back(probe, floor)
    if pattern.name not in {"all", "shifted"}:
        measured = _judge_past(probe, measured, pattern)
    _judge_siblings(probe, measured, RULE, _past_kind)
    _judge_heads(probe, measured, RULE, {"past", "all"})
    return _judge_window(probe, _judge_reach(probe, measured))


RULE = "every output of a causal LM must depend on its own token and on those before it"


def _require_length(probe: Probe) -> None:
    if probe.subject.sizes[1] < 3:
        raise NotApplicable("the longest text is too short to have a context")
    if probe.subject.facts.rank < 3:
        raise NotApplicable("the outputs are not one a token: see shape_robustness")
    if probe.subject.task.task_type == "seq2seq" and not probe.subject.decodes:
        raise NotApplicable("forward takes no decoder input")


def _dependencies(probe: Probe, floor: float, side: str) -> torch.Tensor:
    """Relative dependencies; where one is missing, the larger with moved parameters."""
    first = context.relative(probe.mixing.tokens("eval"))
    missing = first < floor
    if not bool((missing.tril() if side == "past" else missing).any()):
        return first
    second = context.relative(probe.mixing.tokens("noised"))
    return first.maximum(second)


def _measured(values: torch.Tensor, floor: float, unseen: int, pattern: Pattern) -> Context:
    return Context(
        value=float(values.min()),
        limit=Limit(value=floor, rule=f"{floor:g} of the largest"),
        unseen=unseen,
        pairs=int(values.numel()),
        reach=pattern.reach,
    )


def _look_back(probe: Probe, floor: float) -> tuple[Context, Pattern]:
    matrix = _dependencies(probe, floor, "past")
    pattern = context.causal_pattern(matrix >= floor)
    length = len(matrix)
    rows, columns = zip(*[(k, s) for k in range(length) for s in range(k + 1)], strict=True)
    measured = _measured(matrix[list(rows), list(columns)], floor, len(pattern.unseen), pattern)
    plan = next((p for p in probe.swap_plans() if p.name == "long"), None)
    reach = None
    if plan is not None:
        with contextlib.suppress(Exception):  # causality says what a long text raises
            swaps = probe.position_swaps(plan)
            reach = context.longest_reach(swaps, same_shape_limit(swaps.reference).value)
    prints = context.mixers(probe.mixing.footprints(length, "eval"), length)
    reaches = tuple((f.module, context.look_back(f, length - 1)) for f in prints)
    return (
        replace(
            measured,
            length=length,
            long_reach=reach,
            long_length=plan.length if plan else None,
            window=probe.window,
            module_reach=reaches,
        ),
        pattern,
    )


def _judge_past(probe: Probe, measured: Context, pattern: Pattern) -> Context:
    told = probe.tells_of_limits()
    if pattern.name == "band":
        why = f"a window of {probe.window} is declared" if probe.window else told
        if not why and probe.order.compares("text"):
            where = _first_short(probe, {"band"})
            raise _cut_off(measured, where, "each output", pattern.reach, measured.length)
        note = f"each output sees {pattern.reach} tokens back ({why or 'nothing compares all'})"
        return replace(measured, notes=(*measured.notes, note))
    if pattern.name == "holes" and told:
        note = f"some tokens are not seen: a pattern on purpose ({told})"
        return replace(measured, notes=(*measured.notes, note))
    position, token = pattern.unseen[-1]
    _require_mixing(probe, pattern)
    where = _first_short(probe, {"alone", "holes"})
    what = {
        "alone": "no output depends on any token but its own",
        "holes": f"the output at position {position} does not depend on token {token}",
    }[pattern.name]
    likely = {
        "alone": "the mask leaves only the diagonal, attention is never added, or its output "
        "is detached from other positions",
        "holes": "a mask with holes, a slice with a step, or tokens that are dropped",
    }[pattern.name]
    raise CheckFailed(
        f"{RULE}\n"
        f"{what}; {measured.unseen} of {measured.pairs} pairs are below "
        f"{measured.limit}, with moved parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        f"likely: {likely}",
        measured,
        where=where,
    )


def _judge_reach(probe: Probe, measured: Context) -> Context:
    """Where nothing tells of a limit, no attention to a text of some length, and not its last
    output, ends a fixed number of tokens back."""
    length = probe.order.long_length
    found = _short_attention(probe, length) or _short_output(probe, measured)
    if found is None or probe.window or not probe.order.compares("text"):
        return measured
    told = probe.tells_of_limits()
    if told:
        note = f"{found[1]} looks {found[2]} tokens back: a limited reach ({told})"
        return replace(measured, notes=(*measured.notes, note))
    raise _cut_off(measured, *found)


def _cut_off(
    measured: Context, where: str | None, what: str, reach: int, length: int
) -> CheckFailed:
    return CheckFailed(
        f"{RULE}\n"
        f"{what} looks {reach} tokens back in a text of {length}, and no further; nothing tells "
        "of a window\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: a mask, or a slice, with a lower bound that was left in\n"
        'a window on purpose? declare it: "sliding_window" in config.json',
        measured,
        where=where,
    )


def _short_attention(probe: Probe, length: int) -> tuple[str | None, str, int, int] | None:
    """The first attention all of whose heads end a fixed number of tokens back, with moved
    parameters too."""
    found: list[dict[str, int]] = []
    for condition in ("eval", "noised"):
        scores = probe.order.long_scores(length, condition)
        reaches = ((s.module, context.band(s.visible())) for s in scores)
        found.append({module: far for module, far in reaches if far is not None})
        if not found[-1]:
            return None
    first, second = found
    module = next((name for name, far in first.items() if second.get(name) == far), None)
    return None if module is None else (module, module, first[module], length)


def _short_output(probe: Probe, measured: Context) -> tuple[str | None, str, int, int] | None:
    """The same for the last output, by gradient; asked where replacing an early token of a long
    text did not move it."""
    length, reach = measured.long_length, measured.long_reach
    if not length or reach is None or reach >= length - 2 or not probe.subject.small:
        return None
    reaches = []
    for condition in ("eval", "noised"):
        try:
            seen = probe.mixing.last(length, condition)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            return None
        reaches.append(context.cliff(seen))
    far = reaches[0]
    if far is None or reaches[1] != far:
        return None
    prints = context.mixers(probe.mixing.footprints(length, "eval"), length)
    where = next((f.module for f in prints if context.look_back(f, length - 1) <= far), None)
    return where, "the last output", far, length


def _require_mixing(probe: Probe, pattern: Pattern) -> None:
    """A model in which nothing even compares positions is one for single tokens."""
    if pattern.name == "alone" and not probe.order.compares("text"):
        raise NotApplicable("nothing in the model mixes positions: outputs are for single tokens")


def _first_short(
    probe: Probe, kinds: set[str], length: int | None = None, side: str = "text"
) -> str | None:
    """The first module that should carry something from position to position and does not."""
    length = length or probe.subject.sizes[1]
    prints = probe.mixing.footprints(length, "noised")
    for footprint in context.mixers(prints, length):
        pattern = context.module_pattern(footprint)
        if pattern is None:
            continue
        name = pattern.name
        if (
            kinds & {"holes", "band"}
            and name == "past"
            and footprint.positions == tuple(range(length))
        ):
            matrix = footprint.own
            assert matrix is not None
            name = context.causal_pattern(matrix > 0).name
        if name in kinds:
            return footprint.module
    own = {f.module: context.module_pattern(f) for f in prints if f.length == length}
    for scores in probe.order.scores(side):
        found = own.get(scores.module)
        if found is not None and found.name in kinds:
            return scores.module
    return None


def _past_kind(pattern: Pattern | None) -> str:
    """``mixes`` where anything comes from an earlier position."""
    if pattern is None:
        return "nothing"
    return "alone" if pattern.name in {"alone", "future"} else "mixes"


def _both_kind(pattern: Pattern | None) -> str:
    if pattern is None:
        return "nothing"
    return {"band": "all", "holes": "all"}.get(pattern.name, pattern.name)


_GOOD = {"mixes", "all"}
_BAD = {"alone", "past", "future"}


def _judge_siblings(
    probe: Probe, measured: Context, rule: str, kind: object, length: int | None = None
) -> None:
    """A module that carries less than others that are built like it."""
    length = length or probe.subject.sizes[1]
    odd = _odd_siblings(probe, length, "eval", kind)
    if odd is None:
        return
    odd = _odd_siblings(probe, length, "noised", kind)
    if odd is None:
        return
    module, found, other = odd
    what = {
        "alone": "sees no position but its own",
        "past": "sees no later position",
        "future": "sees no earlier position",
    }[found]
    raise CheckFailed(
        f"{rule}\n"
        f"{module} {what}, and {other}, which is built like it, sees more\n"
        f"first module to differ: {module}\n"
        "likely: one layer is given another mask, or its attention sees only itself",
        measured,
        where=module,
    )


def _odd_siblings(
    probe: Probe, length: int, condition: str, kind: object
) -> tuple[str, str, str] | None:
    prints = [f for f in probe.mixing.footprints(length, condition) if f.length == length]
    mixing = {f.module for f in context.mixers(prints, length)}
    groups: dict[tuple[object, ...], list[Footprint]] = {}
    for footprint in prints:
        if footprint.own is not None:
            key = (context.alike(footprint.module), *probe.mixing.kind(footprint.module))
            groups.setdefault(key, []).append(footprint)
    for group in groups.values():
        if not any(f.module in mixing for f in group):
            continue
        kinds = {f.module: kind(context.module_pattern(f)) for f in group}  # type: ignore[operator]
        good = [name for name, found in kinds.items() if found in _GOOD]
        bad = [name for name, found in kinds.items() if found in _BAD]
        if {"past", "future"} <= set(kinds.values()):
            continue
        bad = [name for name in bad if not _attends(probe, name, length, kinds[name])]
        if good and bad:
            return bad[0], kinds[bad[0]], good[0]
    return None


def _attends(probe: Probe, module: str, length: int, found: str) -> bool:
    """Whether a module that passes on nothing of its input may attend to other positions all
    the same: to keys and values of another layer. Only weights that are seen to leave the
    diagonal alone say that it does not."""
    if found != "alone":
        return False
    side = "text" if length == probe.subject.sizes[1] else "source"
    inner = [
        scores.visible()
        for scores in probe.order.scores(side)
        if scores.module == module or context.inside(scores.module, module)
    ]
    return not inner or any(bool(seen.any(0).tril(-1).any()) for seen in inner)


def _judge_heads(
    probe: Probe, measured: Context, rule: str, good: set[str], side: str = "text"
) -> None:
    """One head of an attention that sees less than the others."""
    for scores in probe.order.scores(side):
        names = [context.full_pattern(head).name for head in scores.visible()]
        bad = [h for h, name in enumerate(names) if name in _BAD and name not in good]
        if bad and any(name in good for name in names) and "future" not in names:
            what = {"alone": "only its own position", "past": "no later position"}[names[bad[0]]]
            raise CheckFailed(
                f"{rule}\n"
                f"head {bad[0]} of {len(names)} in {scores.module} sees {what}, and others see "
                "more\n"
                f"first module to differ: {scores.module}\n"
                "likely: a mask with one entry a head is filled wrongly for some of them",
                measured,
                where=scores.module,
            )


def _judge_window(probe: Probe, measured: Context) -> Context:
    """Hold what modules look back against a declared window."""
    window = probe.window
    if window is None or window > _WIDEST or window < 3:
        return measured
    length = min(3 * window + 5, probe.subject.max_length or 10**9)
    attends = {scores.module for scores in probe.order.scores("text")}
    prints = [
        f
        for f in context.mixers(probe.mixing.footprints(length, "eval"), length)
        if any(m == f.module or context.inside(m, f.module) for m in attends)
    ]
    if length < window + 3 or not prints:
        return measured
    last, middle = length - 1, length // 2
    reach = {f.module: (context.look_back(f, last), context.look_back(f, middle)) for f in prints}
    odd = None
    windowed = [name for name, (far, _) in reach.items() if far in (window - 1, window)]
    for name, (far, near) in reach.items():
        clean = far == near or (far > middle and near == middle)
        too_far = window < far < last and far == near
        shorter = windowed and clean and 0 < far < window - 1 and _same(probe, name, windowed[0])
        if too_far or shorter:
            odd = odd or (name, f"looks {far} back")
    longest = max(far for far, _ in reach.values())
    if longest < window // 2 - 1:
        odd = odd or (next(iter(reach)), f"looks {longest} back, as far as any module")
    if min(far for far, _ in reach.values()) == last:
        note = f"a window of {window} tokens is declared, and every module looks further back"
        measured = replace(measured, notes=(*measured.notes, note))
    if odd is None:
        return measured
    raise CheckFailed(
        "a declared window is how far each attention looks back\n"
        f"the configuration declares {window} tokens; {odd[0]} {odd[1]} in a text of {length}\n"
        f"first module to differ: {odd[0]}\n"
        "likely: the mask of the window is not applied, or its bounds are wrong",
        measured,
        where=odd[0],
    )


def _same(probe: Probe, one: str, other: str) -> bool:
    same_name = context.alike(one) == context.alike(other)
    return same_name and probe.mixing.kind(one) == probe.mixing.kind(other)


def _every_token(probe: Probe, floor: float) -> Context:
    """Every token of a text moves a classifier's output."""
    rule = "the output of a classifier must depend on every token of its text"
    if probe.subject.sizes[1] < 2:
        raise NotApplicable("the longest text is one token")
    measured = Context()
    longer = min(probe.subject.max_length or 64, 64)
    lengths = [probe.subject.sizes[1], *([longer] if probe.subject.small else [])]
    for length in dict.fromkeys(lengths):
        values = _text_dependencies(probe, length, floor)
        if probe.subject.ends:
            values = values[:-1]  # the id that ends the text may be taken for padding
        unseen = (values < floor).nonzero().flatten().tolist()
        measured = Context(
            value=float(values.min()),
            limit=Limit(value=floor, rule=f"{floor:g} of the largest"),
            unseen=len(unseen),
            pairs=length,
            length=length,
        )
        if not unseen:
            continue
        told = probe.tells_of_limits(holes=False)
        if told and len(unseen) < length - 1:
            note = f"{len(unseen)} of {length} tokens are not seen: a limited reach ({told})"
            return replace(measured, notes=(note,))
        where = _first_short(probe, {"alone"}) or _first_losing(probe, length, unseen[-1])
        raise CheckFailed(
            f"{rule}\n"
            f"{len(unseen)} of {length} tokens have no influence (tokens "
            f"{', '.join(map(str, unseen[:8]))}{'...' if len(unseen) > 8 else ''}), with moved "
            "parameters too\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: the text is cut inside the model, pooling reads some positions only and no "
            "attention brings the others there, or a mask hides them",
            measured,
            where=where,
        )
    return measured


def _text_dependencies(probe: Probe, length: int, floor: float) -> torch.Tensor:
    first = context.relative(_text(probe, length, "eval"))
    if bool((first < floor).any()):
        return first.maximum(context.relative(_text(probe, length, "noised")))
    return first


def _text(probe: Probe, length: int, condition: str) -> torch.Tensor:
    """By gradient; by replacing tokens where none can be read."""
    try:
        found = probe.mixing.text(length, condition)
    except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
        found = None
    if found is None or not bool(found.isfinite().all()):
        return probe.mixing.text_swaps(length, condition)
    return found


def _first_losing(probe: Probe, length: int, token: int) -> str | None:
    before, after = (probe.row(b, token) for b in probe.mixing.swapped(length))
    return probe.mixing.first_losing(before, after)


def _every_patch(probe: Probe, floor: float) -> Context:
    """Every patch of an image moves the output."""
    size = probe.mixing.patch
    values = _patches(probe, size, "eval")
    if bool((values < floor).any()):
        values = values.maximum(_patches(probe, size, "noised"))
    unseen = (values < floor).nonzero().tolist()
    measured = Context(
        value=float(values.min()),
        limit=Limit(value=floor, rule=f"{floor:g} of the largest"),
        unseen=len(unseen),
        pairs=values.numel(),
        length=values.numel(),
    )
    if not unseen:
        return measured
    where = probe.mixing.losing_patch(*unseen[0])
    raise CheckFailed(
        "the output of an image classifier must depend on every part of the image\n"
        f"{len(unseen)} of {values.numel()} patches of {size} x {size} pixels have no influence "
        f"(row, column: {', '.join(f'{a}, {b}' for a, b in unseen[:4])}...), with moved "
        "parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: patches are dropped or cut off, or nothing brings them to the token that is read",
        measured,
        where=where,
    )


def _patches(probe: Probe, size: int, condition: str) -> torch.Tensor:
    try:
        pixels = probe.mixing.pixels(condition)
    except Exception as error:
        raise NotApplicable(f"no gradient could be read: {first_line(error)}") from error
    tiles = pixels.unfold(0, size, size).unfold(1, size, size).amax((2, 3))
    return context.relative(tiles.flatten()).reshape(tiles.shape)


BOTH = "every output of an encoder must depend on tokens before and after it"


@check(tier=1, tasks=("masked_lm",))
def bidirectionality(probe: Probe, *, floor: float = 1e-7) -> Context:
    """Every output of an encoder depends on every token, before and after it.

    Read as in ``context_use``; modules that are built alike, and heads of one attention, are
    compared with each other, because a mask that is left on in one layer does not show in the
    outputs.
    """
    _require_length(probe)
    matrix = _dependencies(probe, floor, "both")
    pattern = context.full_pattern(matrix >= floor)
    measured = replace(
        _measured(matrix, floor, len(pattern.unseen), pattern),
        length=len(matrix),
        window=probe.window,
    )
    if pattern.name != "all":
        measured = _judge_both(probe, measured, pattern)
    _judge_siblings(probe, measured, BOTH, _both_kind)
    _judge_heads(probe, measured, BOTH, {"all", "band"})
    return measured


def _judge_both(probe: Probe, measured: Context, pattern: Pattern) -> Context:
    told = probe.tells_of_limits()
    if pattern.name == "band" or (pattern.name == "holes" and (told or probe.window)):
        note = f"outputs see {pattern.reach} tokens to a side ({told or 'declared nowhere'})"
        return replace(measured, notes=(*measured.notes, note))
    _require_mixing(probe, pattern)
    where = _first_short(probe, {pattern.name})
    position, token = pattern.unseen[0]
    what = {
        "past": "no output depends on a later token",
        "future": "no output depends on an earlier token",
        "alone": "no output depends on any token but its own",
        "holes": f"the output at position {position} does not depend on token {token}",
    }[pattern.name]
    likely = {
        "past": "a causal mask is left on (is_causal=True, tril)",
        "future": "a mask with the wrong triangle (tril for triu)",
        "alone": "the mask leaves only the diagonal, or attention is never added",
    }.get(pattern.name, "a mask with holes, or tokens that are dropped")
    raise CheckFailed(
        f"{BOTH}\n"
        f"{what}; {measured.unseen} of {measured.pairs} pairs are below {measured.limit}, with "
        "moved parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        f"likely: {likely}\n"
        'a decoder? declare it: --tb-task=causal_lm, or "task" in config.json',
        measured,
        where=where,
    )


SOURCE = "every output of a decoder must depend on every token of the encoder's input"


@check(tier=1, tasks=("seq2seq",))
def encoder_use(probe: Probe, *, floor: float = 1e-7) -> Context:
    """The decoder uses what the encoder read: every output depends on every source token, every
    layer with cross attention on all of the encoder's output, and the encoder's tokens see each
    other in both directions."""
    _require_length(probe)
    if probe.order.sides["text"][0] == "input_ids":
        raise NotApplicable("forward takes no decoder input")
    first = _source(probe, "eval")
    if bool((first < floor).any()):
        first = first.maximum(_source(probe, "noised"))
    unseen = (first < floor).nonzero().tolist()
    length = probe.mixing.source_length
    measured = Context(
        value=float(first.min()),
        limit=Limit(value=floor, rule=f"{floor:g} of the largest"),
        unseen=len(unseen),
        pairs=first.numel(),
        length=length,
    )
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
    where = _first_deaf(probe) or _first_short(
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
    """Of modules that are built alike, all are given the encoder's output, or none is."""
    memory = probe.mixing.memory("eval")
    reads = memory.reads if memory else {}
    readers = [module for module, read in reads.items() if read]
    for module, read in reads.items():
        if read or not any(part.isdigit() for part in module.split(".")):
            continue
        other = next((name for name in readers if _same(probe, name, module)), None)
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
        if any(_same(probe, module, other) for other in cross if other not in deaf):
            return module
    return None


def _judge_encoder(probe: Probe, measured: Context, length: int) -> None:
    """The encoder's modules carry something from both sides."""
    decoder = probe.subject.sizes[1]
    prints = context.mixers(probe.mixing.footprints(decoder, "eval"), length)
    kinds = {f.module: _both_kind(context.module_pattern(f)) for f in prints}
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
        groups.setdefault(key, {})[f.module] = _both_kind(context.module_pattern(f))
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
