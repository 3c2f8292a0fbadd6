"""Programs that torch makes of a model compute what the model computes."""

from __future__ import annotations

import dataclasses
import math
import shutil
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.equivalence import Programs
from pytest_transformer_validate.measures.tolerance import settle, two_shapes_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.probe.exported import Shape
    from pytest_transformer_validate.probe.probe import Probe

    Shapes = Callable[[Probe], list[Shape]]

COMPILERS = ("g++", "c++", "clang++", "cl")


@check(tier=2)
def export_equivalence(
    probe: Probe, *, factor: float = 64.0, static_axes: float = math.inf
) -> Programs:
    """The program that torch.export makes gives the model's logits at every shape that it takes.

    Exported from one text with batch and length left open, then run at that shape and at three or
    more others: one row, other numbers of rows, shorter and longer texts, with padding where the
    model can be told of it. ``factor`` u are allowed, or 16 times the model's own noise.

    Axes that became static are named. That is information, as a loop over tokens is no mistake,
    until a number is declared: ``export_equivalence.static_axes = 0`` in ``tb_limits``. A model
    that cannot be exported, or only for one shape, is skipped with torch's reason.
    """
    measured = _judge(probe, lambda p: p.exported.compared(), "torch.export", factor)
    guards = probe.exported.guards()
    static = tuple(guard for guard in guards if "==" in guard)
    notes = [f"static: {guard}" if guard in static else f"only if {guard}" for guard in guards]
    measured = dataclasses.replace(measured, static=static, notes=(*measured.notes, *notes))
    if len(static) > static_axes:
        raise CheckFailed(
            f"no more than {static_axes:g} axes may become static when the model is exported\n"
            f"fixed are: {', '.join(static)}\n"
            "likely: a loop over tokens or rows, int(x.shape[1]), or a number that was read from "
            "a tensor",
            measured,
        )
    if len(measured.shapes) < 2:
        raise NotApplicable(
            "torch.export made a program for one shape only: "
            f"{', '.join(static) or next(iter(measured.refused.values()))}",
            measured,
        )
    return measured


@check(tier=2, slow=True)
def compile_equivalence(probe: Probe, *, factor: float = 64.0) -> Programs:
    """What torch.compile makes of the model gives its logits at several shapes.

    ``factor`` u are allowed, or 16 times the model's own noise. Graph breaks are counted, as
    information. Needs a C++ compiler.
    """
    _need_compiler()
    measured = _judge(probe, lambda p: p.exported.compiled(), "torch.compile", factor)
    count, reasons = probe.exported.breaks()
    notes = [f"graph break: {reason}"[:200] for reason in reasons[:5]]
    return dataclasses.replace(measured, breaks=count, notes=(*measured.notes, *notes))


@check(tier=2, slow=True)
def aot_equivalence(probe: Probe, *, factor: float = 64.0) -> Programs:
    """What AOTInductor compiles ahead of time gives the model's logits at several shapes.

    ``factor`` u are allowed, or 16 times the model's own noise. Needs a C++ compiler.
    """
    _need_compiler()
    return _judge(probe, lambda p: p.exported.packaged(), "AOTInductor", factor)


def _need_compiler() -> None:
    if not any(map(shutil.which, COMPILERS)):
        raise NotApplicable("there is no C++ compiler (g++ or clang++) on the path")


def _judge(probe: Probe, shapes: Shapes, who: str, factor: float) -> Programs:
    moved: dict[str, float] = {}
    refused: dict[str, str] = {}
    notes: list[str] = []
    value, limit = 0.0, None
    for index, shape in enumerate(shapes(probe)):
        name = f"{shape.rows}x{shape.length}" if shape.length else str(shape.rows)
        if shape.raised:
            refused[name] = shape.raised
            continue
        own = two_shapes_limit(shape.reference, probe.noise(), factor)
        moved[name] = shape.moved
        if shape.moved >= value:
            value, limit = shape.moved, own
        verdict = settle(
            shape.moved,
            own,
            lambda i=index: probe.repeated(  # type: ignore[misc]
                lambda p: shapes(p)[i].moved
            ),
        )
        notes += verdict.notes
        if verdict.exceeded:
            measured = Programs(value=shape.moved, limit=own, shapes=moved, refused=refused)
            _fail(probe, who, shape, name, measured, notes)
    if not moved:
        reason = next(iter(refused.values()))
        raise NotApplicable(f"{who} made a program that takes no shape: {reason}")
    return Programs(value=value, limit=limit, shapes=moved, refused=refused, notes=tuple(notes))


def _fail(
    probe: Probe, who: str, shape: Shape, name: str, measured: Programs, notes: list[str]
) -> None:
    where = probe.exported.locate(shape)
    raise CheckFailed(
        "\n".join(
            [
                f"what {who} makes of the model must give the model's logits",
                f"they differ by up to {shape.moved:.2g} (limit {measured.limit}) at {name} "
                "(rows x length)",
                f"first module to differ: {where or 'none stands out'}",
                "likely: another path while torch makes the program (torch.compiler.is_compiling, "
                "is_exporting), or a number or a table of the first shape that was kept",
                *notes,
            ]
        ),
        measured,
        where=where,
    )
