"""Ids and positions outside of a model's range are refused, not read as others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.bounds import Length, Vocabulary, padded
from pytest_transformer_validate.measures.tolerance import SAME_SHAPE

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.bounds import Longer, Read
    from pytest_transformer_validate.probe.probe import Probe

_IDS = "every id of the vocabulary is read, and no other"
_LENGTH = "one token above the maximum length is processed or refused, never taken for another"
_TEXT = ("causal_lm", "masked_lm", "seq2seq", "classification")


@check(tier=1, tasks=_TEXT)
def vocabulary_bounds(probe: Probe) -> Vocabulary:
    """The largest id works, one more and a negative one raise, and the sizes agree.

    An id outside of the table that the ids index has to raise: read as another row (a remainder,
    a clamp) it hides a tokenizer that does not fit, and the largest id may not be another one to
    the model. No row of a text's id may be padding to its table alone: it is never learned. The
    output has at least one column for each declared id; tables and heads that are padded to a
    round size are healthy.
    """
    roles = probe.bounds.roles()
    if not roles:
        raise NotApplicable("no table of the model is indexed by the ids")
    notes: list[str] = []
    results = [_judge_role(probe, role, notes) for role in roles]
    _judge_width(probe, results[-1])
    return Vocabulary(**{**vars(results[-1]), "notes": tuple(dict.fromkeys(notes))})


def _judge_role(probe: Probe, role: str, notes: list[str]) -> Vocabulary:
    rows, declared = probe.bounds.rows(role), probe.bounds.declared(role)
    measured = Vocabulary(role=role, declared=declared, rows=rows, width=probe.subject.facts.width)
    last = probe.bounds.last(role)
    raised = probe.bounds.largest(role, last)
    if raised is not None:
        error, where = raised
        raise CheckFailed(
            f"{_IDS}\n"
            f"id {last} of {role}, of {declared or rows} in the vocabulary, raised: {error}\n"
            f"the table has {rows} rows\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: the embedding has too few rows (a special token was added, or vocab_size - 1 "
            "was given)",
            measured,
            where=where,
        )
    folded = probe.bounds.folded(role)
    if folded is not None and folded.row not in probe.bounds.fallbacks():
        raise CheckFailed(
            f"{_IDS}\n"
            f"id {last} of {role}, of {declared or rows} in the vocabulary, is read as id "
            f"{folded.row}, and the logits are the same for both\n"
            f"first module to differ: {folded.where or 'none stands out'}\n"
            "likely: ids % n or ids.clamp(max=n) with another size than the vocabulary's",
            Vocabulary(**{**vars(measured), "given": last, "row": folded.row}),
            where=folded.where,
        )
    unlearned = probe.bounds.unlearned(role)
    if unlearned is not None:
        table, row, pad = unlearned
        raise CheckFailed(
            f"{_IDS}\n"
            f"id {row} of {role} is padding to {table}, whose row for it is never learned; the "
            f"declared padding id is {pad}\n"
            f"module: {table}\n"
            f"likely: padding_idx={row} was left when the tokenizer changed; give it the "
            "padding id of the configuration",
            Vocabulary(**{**vars(measured), "given": row}),
            where=table,
        )
    if str(probe.subject.device) != "cpu":
        notes.append("ids outside are tried on the CPU only: elsewhere they end the process")
        return measured
    for given in (rows, -1):
        read = probe.bounds.outside(role, given)
        if read is not None:
            _judge_read(probe, read, measured, notes)
    return measured


def _judge_read(probe: Probe, read: Read, measured: Vocabulary, notes: list[str]) -> None:
    """Fail where an id outside was read as another row without a word."""
    pad = probe.subject.pad_id
    if read.row is None:
        notes.append(f"id {read.given} is taken, and reads no row of the table")
    elif read.plain:
        notes.append(f"id {read.given} reads from the end of the table, as plain indexing does")
    elif read.given < 0 and pad is not None and pad < 0:
        notes.append("negative ids are padding")
    elif read.row in probe.bounds.fallbacks():
        notes.append(f"id {read.given} is read as {read.row}, which is padding or unknown")
    else:
        raise CheckFailed(
            f"{_IDS}\n"
            f"id {read.given} of {measured.role}, outside of the table of {measured.rows} rows, "
            f"was read as id {read.row} without an error\n"
            f"first module to differ: {read.where or 'none stands out'}\n"
            f"likely: {_folding(read, measured.rows)}",
            Vocabulary(**{**vars(measured), "given": read.given, "row": read.row}),
            where=read.where,
        )


def _folding(read: Read, rows: int) -> str:
    if read.row == read.given % rows:
        return "ids % vocab_size"
    if read.row == max(0, min(read.given, rows - 1)):
        return "ids.clamp(0, vocab_size - 1)"
    return "ids are changed before they are looked up"


def _judge_width(probe: Probe, measured: Vocabulary) -> None:
    """Fail where an output over the vocabulary lacks some of its ids."""
    over_ids = probe.subject.task.task_type in {"causal_lm", "seq2seq"}
    declared = measured.declared
    if not over_ids or declared is None or measured.width >= declared:
        return
    if padded(declared, measured.width) and not probe.bounds.declares_target():
        return
    head = probe.tying.ends().head
    where = head[-1].rpartition(".")[0] if head else None
    raise CheckFailed(
        f"{_IDS}\n"
        f"the output has {measured.width} columns for {declared} ids: the last "
        f"{declared - measured.width} can never be predicted\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: the head is built with another size than the embedding",
        measured,
        where=where,
    )


@check(tier=1, tasks=_TEXT)
def length_limit(probe: Probe) -> Length:
    """One token more than the maximum length works for real, or raises.

    The maximum is what the configuration declares or what the tables read by position allow.
    Above it a model may run (rotary and relative positions do) or raise; it may not cut the text,
    and not give two positions the same row of a table by a remainder or a clamp.
    """
    longer = probe.bounds.longer()
    positions = longer.shape[1] if len(longer.shape) > 2 else None
    measured = Length(
        longest=longer.length,
        raised=longer.error,
        positions=positions,
        value=None if longer.error else longer.seen,
    )
    if longer.error is not None:
        return measured
    problem = _problem(probe, longer, positions)
    if problem is None:
        return measured
    what, likely = problem
    raise CheckFailed(
        f"{_LENGTH}\n"
        f"a text of {longer.length + 1} tokens (maximum {longer.length}): {what}\n"
        f"first module to differ: {longer.where or 'none stands out'}\n"
        f"likely: {likely}",
        measured,
        where=longer.where,
    )


def _problem(probe: Probe, longer: Longer, positions: int | None) -> tuple[str, str] | None:
    given = longer.length + 1
    if longer.same is not None:
        one, other = longer.same
        return (
            f"positions {one} and {other} {longer.how}",
            "positions % max_len, or positions.clamp(max=max_len - 1); let the table raise, or "
            "check the length",
        )
    if positions is not None and positions < given and probe.subject.facts.fixed_length is None:
        return (
            f"the output has {positions} positions",
            "ids[:, :max_len] or ids[:, -max_len:] in the forward; cut texts where they are made",
        )
    scale = probe.eps * longer.scale
    if longer.seen <= SAME_SHAPE * scale < longer.seen_before:
        return (
            f"nothing depends on the last token (it moves the logits by {longer.seen_before:.2g} "
            f"in a text of {longer.length})",
            "ids[:, :max_len] in the forward; cut texts where they are made",
        )
    return None
