"""The model takes every shape that its task allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import (
    CheckFailed,
    NotApplicable,
    SubjectError,
    TaskError,
    error_line,
    first_line,
)
from pytest_transformer_validate.measures.outputs import ShapeOf

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.forwards import Shape
    from pytest_transformer_validate.probe.probe import Probe

RULE = "logits must have one row for each text and one position for each token"
_SQUEEZE = "squeeze() without a dimension removes the axes that happen to be 1"
CASES = ("single_token", "coprime", "typical", "full_length", "full_batch")


@check(tier=1, cases=CASES)
def shape_robustness(probe: Probe, case: str) -> ShapeOf:
    """The logits have one row a text, one position a token, and the same width at every shape.

    ``single_token``: one token, one row and several; ``coprime``: rows and positions without a
    common divisor, because equal ones hide an exchanged axis; ``typical``: two rows of a length
    and one of one more, or of one less where a table of positions fits one length alone and the
    model is a decoder; ``full_length``: one row as long as the model says it can, up to 4096;
    ``full_batch``: as many rows as its configuration says. Shapes have to be equal, and no number
    may be NaN.
    """
    shapes = _run(probe, case)
    bad = next((s for s in shapes if s.logits != _expected(probe, s) or not s.finite), None)
    shape = bad or shapes[-1]
    measured = ShapeOf(
        rows=shape.rows, length=shape.length, logits=shape.logits, expected=_expected(probe, shape)
    )
    if bad is None:
        return measured
    if shape.logits == measured.expected:
        raise CheckFailed(
            f"{RULE}, and be numbers\n"
            f"{_given(probe, shape)} gave NaN\n"
            "likely: a spread over one element, a division by zero, or an exponent that overflows "
            "at this length",
            measured,
        )
    where = probe.first_misshapen(shape)
    raise CheckFailed(_text(probe, measured, shape, where), measured, where=where)


def _run(probe: Probe, case: str) -> list[Shape]:
    try:
        return probe.shapes_of(case)
    except (NotApplicable, TaskError):
        raise
    except SubjectError as error:
        where = probe.where_raised(error)
        text = f"{RULE}\n{case}: {error}\nlikely: {_SQUEEZE}"
        raise CheckFailed(text, where=where) from error
    except Exception as error:
        if case == "full_length" and probe.subject.max_length is None:
            raise CheckFailed(
                f"{RULE}, at any length where no limit is declared\n"
                f"{type(error).__name__} at 63 or 64 tokens: {first_line(error)}\n"
                'a shorter limit? declare it: "max_seq_len" in config.json',
                where=probe.where_raised(error),
            ) from error
        if case == "typical" and probe.subject.facts.whole_table:
            length = probe.subject.multiple
            raise CheckFailed(
                f"{RULE}, as the text of a decoder grows\n"
                f"{type(error).__name__} at {length - 1} tokens: {first_line(error)}\n"
                f"likely: a table of {length} positions is added whole; cut it to the text, "
                "x + positions[:, : x.size(1)]\n"
                'no decoder? declare it: --tb-task=masked_lm, or "task" in config.json',
                where=probe.where_raised(error),
            ) from error
        if case == "single_token" and probe.shortens():
            raise NotApplicable(
                "the model pools its sequence to a shorter one, and cannot pool a single token: "
                f"{error_line(error)}"
            ) from error
        raise


def _expected(probe: Probe, shape: Shape) -> tuple[int, ...]:
    facts = probe.subject.facts
    if facts.fixed_length is not None:
        return (shape.rows, facts.fixed_length, facts.width)
    if facts.rank < 3 or probe.subject.vision:
        return (shape.rows, *probe.shapes_of("coprime")[0].logits[1:])
    return (shape.rows, shape.length, *facts.rest)


def _given(probe: Probe, shape: Shape) -> str:
    if probe.subject.vision:
        return f"{shape.rows} images"
    behind = f" behind {shape.source} source ids" if probe.subject.decodes and shape.source else ""
    return f"{shape.rows} x {shape.length} ids{behind}"


def _text(probe: Probe, measured: ShapeOf, shape: Shape, where: str | None) -> str:
    return "\n".join(
        [
            RULE,
            f"{_given(probe, shape)} gave logits {shape.logits}, expected {measured.expected}",
            f"first module with another shape than at other sizes: {where}",
            f"likely: {_likely(shape, measured.expected)}",
        ]
    )


def _likely(shape: Shape, expected: tuple[int, ...]) -> str:
    got = shape.logits
    if len(got) < len(expected):
        return _SQUEEZE
    if got[:1] != expected[:1]:
        return "a view or reshape with a fixed or swapped batch axis"
    if len(got) == 3 and got[1] != expected[1]:
        return "the sequence is cut or padded inside, or only its last token is returned"
    return "the width of the output depends on the shape of the input"
