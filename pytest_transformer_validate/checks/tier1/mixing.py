"""What modules carry from position to position, as the checks of context judge it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import context
from pytest_transformer_validate.measures.context import Context, Pattern
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.footprints import Footprint
    from pytest_transformer_validate.probe.probe import Probe


def require_length(probe: Probe) -> None:
    """Raise NotApplicable where there is no text of outputs to judge."""
    if probe.subject.sizes[1] < 3:
        raise NotApplicable("the longest text is too short to have a context")
    if probe.subject.facts.rank < 3:
        raise NotApplicable("the outputs are not one a token: see shape_robustness")
    if probe.subject.task.task_type == "seq2seq" and not probe.subject.decodes:
        raise NotApplicable("forward takes no decoder input")


def dependencies(probe: Probe, floor: float, side: str) -> torch.Tensor:
    """Relative dependencies; where one is missing, the larger with moved parameters."""
    first = context.relative(probe.mixing.tokens("eval"))
    missing = first < floor
    if not bool((missing.tril() if side == "past" else missing).any()):
        return first
    second = context.relative(probe.mixing.tokens("noised"))
    return first.maximum(second)


def measured_from(values: torch.Tensor, floor: float, unseen: int) -> Context:
    """What the dependencies ``values`` show, ``unseen`` of them being below ``floor``."""
    return Context(
        value=float(values.min()),
        limit=Limit(value=floor, rule=f"{floor:g} of the largest"),
        unseen=unseen,
        pairs=int(values.numel()),
    )


def require_mixing(probe: Probe, pattern: Pattern) -> None:
    """A model in which nothing even compares positions, or goes from one to the next, is one for
    single tokens."""
    if pattern.name == "alone" and not (probe.order.compares("text") or probe.structure.steps):
        raise NotApplicable("nothing in the model mixes positions: outputs are for single tokens")


def first_short(
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


def both_kind(pattern: Pattern | None) -> str:
    """``all``, ``alone``, ``past``, ``future``, or ``nothing`` where nothing is known."""
    if pattern is None:
        return "nothing"
    return {"band": "all", "holes": "all"}.get(pattern.name, pattern.name)


_GOOD = {"mixes", "all"}
_BAD = {"alone", "past", "future"}


def judge_siblings(
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


def judge_heads(
    probe: Probe, measured: Context, rule: str, good: set[str], side: str = "text"
) -> None:
    """One head of an attention that sees less than the others."""
    for scores in probe.order.scores(side):
        seen = scores.visible()
        if bool((seen == seen[:1]).all()):
            continue
        names = [context.full_pattern(head).name for head in seen]
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


def judge_places(probe: Probe, measured: Context) -> None:
    """Outputs that belong to tokens at other places, as the model is loaded: moved parameters
    bring every place to every other."""
    shift = context.displaced(context.relative(probe.mixing.tokens("eval")))
    if not shift:
        return
    raise CheckFailed(
        "every output of an encoder belongs to the token at its place\n"
        f"the output at every position t depends most on token t{shift:+d}, and less than half as "
        "much on token t\n"
        "first module to differ: none stands out\n"
        "likely: tokens that the model puts in front of the text (a class token, memory, a "
        "prompt) are cut off at the wrong end, or outputs are shifted",
        measured,
        where=probe.root,
    )


def built_alike(probe: Probe, one: str, other: str) -> bool:
    same_name = context.alike(one) == context.alike(other)
    return same_name and probe.mixing.kind(one) == probe.mixing.kind(other)
