"""The model takes every shape that its task allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable, SubjectError, TaskError
from pytest_transformer_validate.measures.outputs import ShapeOf

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.forwards import Shape
    from pytest_transformer_validate.probe.probe import Probe

RULE = "logits must have one row for each text and one position for each token"
_SQUEEZE = "squeeze() without a dimension removes the axes that happen to be 1"
CASES = ("single_token", "coprime", "typical", "full_length", "full_batch")


@check(tier=1, cases=CASES)
def shape_robustness(probe: Probe, case: str) -> ShapeOf:
    """The logits have one row a text, one position a token, and the same width at every shape."""
    shape = _run(probe, case)
    expected = _expected(probe, shape)
    measured = ShapeOf(
        rows=shape.rows, length=shape.length, logits=shape.logits, expected=expected
    )
    if shape.logits != expected:
        where = probe.first_misshapen(case)
        raise CheckFailed(_text(probe, shape, expected, where), measured, where=where)
    return measured


def _run(probe: Probe, case: str) -> Shape:
    try:
        return probe.shape_of(case)
    except (NotApplicable, TaskError):
        raise
    except SubjectError as error:
        where = probe.where_raised(error)
        text = f"{RULE}\n{case}: {error}\nlikely: {_SQUEEZE}"
        raise CheckFailed(text, where=where) from error
    except Exception as error:
        if case == "single_token" and probe.shortens():
            raise NotApplicable(
                "the model pools its sequence to a shorter one, and cannot pool a single token: "
                f"{type(error).__name__}: {error}"
            ) from error
        raise


def _expected(probe: Probe, shape: Shape) -> tuple[int, ...]:
    facts = probe.subject.facts
    if facts.fixed_length is not None:
        return (shape.rows, facts.fixed_length, facts.width)
    if facts.rank != 3 or probe.subject.vision:
        return (shape.rows, *probe.shape_of("coprime").logits[1:])
    return (shape.rows, shape.length, facts.width)


def _text(probe: Probe, shape: Shape, expected: tuple[int, ...], where: str | None) -> str:
    vision = probe.subject.vision
    given = f"{shape.rows} images" if vision else f"{shape.rows} x {shape.length} ids"
    return "\n".join(
        [
            RULE,
            f"{given} gave logits {shape.logits}, expected {expected}",
            f"first module with another shape than at other sizes: {where}",
            f"likely: {_likely(shape, expected)}",
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
