"""The weights are where the model, its checkpoints and its device expect them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.storage import Registered, RoundTrip, Tying, trip_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.checkpoints import Trip
    from pytest_transformer_validate.probe.left_behind import Stays
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.tying import Ends

_TIE_RULE = "a head tied to the embedding is the same tensor, and stays so"
_TRIP_RULE = "a checkpoint loaded into a fresh instance gives the same model"
_MOVE_RULE = "every tensor of a model moves with it to another device"


@check(tier=1, tasks=("causal_lm", "masked_lm", "seq2seq"))
def weight_tying(probe: Probe) -> Tying:
    """Embedding and output head are one tensor where that is declared, and no copies.

    The table is the one that the ids index, the head the tensor whose product makes the logits.
    The declaration is a key of the configuration (``tie_word_embeddings``, ``tie_weights``,
    ``weight_tying``...); without one, a head with the numbers of the embedding fails, because two
    copies drift apart with the first step.
    """
    ends = probe.tying.ends()
    declared = probe.tying.declares_tie()
    if not ends.table:
        raise NotApplicable("no table of the model is indexed by the ids")
    if not ends.head:
        raise NotApplicable("no tensor of the model makes the logits by itself")
    word = None if declared is None else f"{declared[0]}={declared[1]}"
    measured = Tying(
        table=ends.table[0],
        head=_other(ends),
        declared=word,
        shared=ends.shared,
        copied=ends.copied,
    )
    problem = _tying_problem(ends, declared)
    if problem is not None:
        what, likely = problem
        way_out = (
            f"declared: {word}" if word else 'declare it: "tie_word_embeddings" in the config'
        )
        text = f"{_TIE_RULE}\n{what}\nlikely: {likely}\n{way_out}"
        raise CheckFailed(text, measured, where=_module(probe, measured.head))
    if declared is None and not ends.shared:
        raise NotApplicable("embedding and head are two tensors, and nothing says otherwise")
    return measured


def _other(ends: Ends) -> str:
    """The head's name, another one than the table's where it has one."""
    return next((name for name in reversed(ends.head) if name != ends.table[0]), ends.head[0])


def _tying_problem(ends: Ends, declared: tuple[str, bool] | None) -> tuple[str, str] | None:
    """What is wrong with the tie and the likely cause, or ``None``."""
    table, head = ends.table[0], _other(ends)
    tied = None if declared is None else declared[1]
    if ends.shared:
        if tied is False and table != head:
            return (
                f"{table} and {head} are one tensor",
                "the key is not read: the head is tied whatever it says",
            )
        if ends.apart:
            return (
                f"{' and '.join(ends.apart)} are two parameters over the same memory: each gets "
                "its own gradient, and moving the model to a device or dtype separates them",
                "weight.data was assigned, or the weight wrapped in a new nn.Parameter; assign "
                "the parameter itself: head.weight = embedding.weight",
            )
        if ends.undone:
            return (
                f"{table} and {head} are one tensor until {ends.undone}",
                "one of the two is a plain tensor and no parameter",
            )
        return None
    if tied is False or (tied is None and not ends.copied):
        return None
    if ends.copied:
        return (
            f"{table} and {head} hold the same numbers in two places: they drift apart with the "
            "first training step",
            "clone(), detach() or copy_() where the parameter itself has to be assigned, or a "
            "conversion that made a new one",
        )
    return (
        f"{table} and {head} are different tensors",
        "the key is not read, or the tie is undone: a later init or assignment makes a new "
        "parameter",
    )


@check(tier=1)
def round_trip(probe: Probe) -> RoundTrip:
    """A checkpoint loaded into a fresh instance gives the same outputs.

    ``state_dict()`` of the used model is loaded, strictly, into an instance that was built again
    with another seed and whose weights were blanked (a copy where it cannot be built again); a
    small model also goes through safetensors and through ``save_pretrained``, where it can.
    """
    trips, untried = probe.checkpoints.round_trips()
    for trip in trips:
        _judge_trip(trip)
    worst = max(trips, key=lambda trip: trip.value)
    notes = [f"{way} was not tried: {why}" for way, why in untried.items()]
    if worst.fresh == "a copy":
        notes.append("loaded into a copy: what is drawn anew when the model is built was not seen")
    return RoundTrip(
        value=worst.value,
        limit=None if worst.reference is None else trip_limit(worst.reference),
        fresh=worst.fresh,
        ways=tuple(trip.way for trip in trips),
        notes=tuple(notes),
    )


def _judge_trip(trip: Trip) -> None:
    limit = None if trip.reference is None else trip_limit(trip.reference)
    measured = RoundTrip(value=trip.value, limit=limit, fresh=trip.fresh, ways=(trip.way,))
    into = f"{trip.way}, into an instance that is {trip.fresh}"
    if trip.error is not None:
        lines = [line.strip() for line in trip.error.splitlines() if line.strip()]
        likely = _LIKELY_KEYS
    elif trip.lost:
        more = f" and {len(trip.lost) - 3} more" if len(trip.lost) > 3 else ""
        lines = [f"not restored: {', '.join(trip.lost[:3])}{more}"]
        likely = "state_dict, a hook or a loading method of its own leaves it out"
    elif limit is not None and not trip.value <= limit.value:
        lines = [
            f"logits differ by {trip.value:.2g} (limit {limit})",
            f"first module to differ: {trip.where or 'none stands out'}",
        ]
        likely = (
            "a tensor drawn at random or learned that is no parameter and no persistent buffer: "
            "a plain attribute, a list, register_buffer(..., persistent=False)"
        )
    else:
        return
    text = "\n".join([_TRIP_RULE, into, *lines[:6], f"likely: {likely}"])
    raise CheckFailed(text, measured, where=trip.where)


_LIKELY_KEYS = (
    "a parameter or buffer that the first forward makes or resizes (register_buffer and "
    "nn.Parameter belong in __init__, caches into persistent=False), or keys that are renamed"
)


@check(tier=1)
def registered_tensors(probe: Probe) -> Registered:
    """Every tensor that the forward uses moves with the model.

    The model is moved to a device that only exists in name, where tensors keep their numbers and
    meet tensors of the CPU as little as they would on an accelerator. A tensor that the model
    holds or brings back fails; one that the forward makes on the CPU fails where the model's code
    names devices elsewhere, and is noted where the code was written for the CPU alone. A device
    that is a setting (of the configuration, the constructor, the file) is set, too.
    """
    held = dict(probe.left_behind.held())
    stays, why_not = probe.left_behind.stays()
    notes = [] if why_not is None else [f"moving was not tried to the end: {why_not}"]
    learned = [name for name, tensor in held.items() if tensor.requires_grad and tensor.is_leaf]
    measured = Registered(
        held=tuple(held)[:16], stays=None if stays is None else stays.operation, notes=tuple(notes)
    )
    if learned:
        raise CheckFailed(
            f"{_MOVE_RULE}\n"
            f"{', '.join(learned[:3])} asks for a gradient and is no parameter of the model: no "
            "optimizer, checkpoint or .to() sees it\n"
            "likely: a plain list or dict of parameters where nn.ParameterList is needed, or a "
            "tensor with requires_grad=True where nn.Parameter is",
            measured,
            where=_module(probe, learned[0]),
        )
    hidden = probe.left_behind.unregistered()
    if hidden:
        raise CheckFailed(
            f"{_MOVE_RULE}\n"
            f"{len(hidden)} modules are no part of the model, and a gradient reaches them: "
            f"{', '.join(hidden[:3])}{' ...' * (len(hidden) > 3)}; no optimizer, checkpoint, "
            ".to() or eval() does\n"
            f"module that holds them: {_module(probe, hidden[0])}\n"
            "likely: a plain list or dict of layers where nn.ModuleList or nn.ModuleDict is meant",
            measured,
            where=_module(probe, hidden[0]),
        )
    if stays is None:
        return measured
    if stays.origin == "made" and not stays.aware:
        text = (
            f"written for the CPU: {stays.where or 'the model'} makes a tensor"
            f"{_shaped(stays)} without a device ({stays.line})"
        )
        return Registered(**{**vars(measured), "notes": (*notes, text)})
    raise CheckFailed(_stays_text(stays), measured, where=stays.where)


def _stays_text(stays: Stays) -> str:
    what, likely = {
        "made": (
            "a tensor that the forward makes on the CPU",
            "torch.arange, zeros, ones or tensor without device=x.device",
        ),
        "brought": (
            "a tensor that the forward brings back to the CPU",
            '.cpu() or .to("cpu") inside the forward',
        ),
    }.get(
        stays.origin,
        (
            f"{stays.origin}, which stays on the CPU",
            "a plain attribute: register_buffer(..., persistent=False) makes it move",
        ),
    )
    return "\n".join(
        [
            _MOVE_RULE,
            f"moved to another device, {stays.operation} meets {what}{_shaped(stays)}",
            f"first module to differ: {stays.where or 'none stands out'}",
            f"at: {stays.line}" if stays.line else "",
            f"likely: {likely}",
        ]
    ).replace("\n\n", "\n")


def _shaped(stays: Stays) -> str:
    return f", of shape {stays.shape}" if stays.shape else ""


def _module(probe: Probe, name: str) -> str:
    """The module that holds a tensor of that name."""
    return name.partition("[")[0].rpartition(".")[0] or probe.root
