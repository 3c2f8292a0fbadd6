"""The model as a program: exported, compiled, or compiled ahead of time.

A program is made from one text (several rows and tokens) with its batch and length left open, and
run on others.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.align import Pair, first_apart, place
from pytest_transformer_validate.probe.compare import difference, over, trace
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.program_inputs import (
    Inputs,
    Logits,
    inputs_of,
    open_axes,
    silent,
)
from pytest_transformer_validate.probe.quiet import quietly
from pytest_transformer_validate.probe.trace import ROOT, traced
from pytest_transformer_validate.subject.masks import padding_id
from pytest_transformer_validate.subject.outputs import read_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

    Run = Callable[..., torch.Tensor]

AXES = ("batch", "length")
_LONGEST = 48
_INSIDE = "model."
_GUARD = re.compile(r"Guard failed: (.+)")
_SIZE = re.compile(r"tensors_(\d+)\.size\(\)\[(\d+)\]")
_FEWEST = 3  # shapes beside the first one, as far as there are any that the program takes


@dataclass(frozen=True)
class Shape:
    """A text of ``rows`` x ``length``; ``moved`` is how far the program is from the model there,
    ``raised`` what it said instead."""

    rows: int
    length: int
    moved: float
    reference: torch.Tensor
    raised: str = ""


@dataclass(frozen=True)
class Program:
    """What came of making a program: ``run(*tensors)`` gives logits."""

    run: Run


class Exported(Passes):
    """Passes over programs that torch makes of the model."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(rows, length): the one that the program is made from, one row, and other lengths."""
        return self._shapes()[0]

    def _shapes(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The shapes, and others nearby for a program that does not take them: of one length, of
        one number of rows, and shorter ones."""
        subject = self.probe.subject
        rows, length = subject.sizes
        step = subject.multiple
        if subject.vision:
            return [(rows, 0), (1, 0), (rows + 2, 0), (2, 0)], [(rows + 1, 0)]
        longest = min(subject.max_length or _LONGEST, _LONGEST)
        longest = max(longest - longest % step, length)
        shorter = max(step, length - 2 * step)
        rows = max(2, rows if subject.small else 2)
        found = [(rows, length), (1, length), (rows + 2, shorter), (2, longest), (1, longest)]
        near = [(rows + 2, length), (2, length), (rows, shorter), (rows, longest), (2, shorter)]

        def allowed(shapes: list[tuple[int, int]]) -> list[tuple[int, int]]:
            return list(dict.fromkeys((min(r, subject.most_rows), n) for r, n in shapes))

        first = allowed(found)
        return first, [shape for shape in allowed(near) if shape not in first]

    @remembered
    def program(self) -> Program:
        """The exported program. Raises NotApplicable with torch's reason."""
        made: Program = self._made("torch.export", self._export)
        return made

    @remembered
    def compared(self) -> list[Shape]:
        """Every shape through the exported program, the one it was made from first."""
        return self._compared(self.program())

    def guards(self) -> list[str]:
        """What the exported program asks of the sizes of its inputs, read from what it says:
        ``length of input_ids == 11`` is an axis that it fixed to one size."""
        names = self._inputs(*self.shapes[0]).names

        def name(found: re.Match[str]) -> str:
            number, axis = map(int, found.groups())
            return f"{AXES[axis] if axis < len(AXES) else f'axis {axis}'} of {names[number]}"

        failed = [_GUARD.search(shape.raised) for shape in self.compared()]
        return list(dict.fromkeys(_SIZE.sub(name, guard[1]) for guard in failed if guard))

    @remembered
    def compiled(self) -> list[Shape]:
        """Every shape through torch.compile."""
        return self._compared(self._made("torch.compile", self._compile))

    @remembered
    def breaks(self) -> tuple[int, list[str]]:
        """Graph breaks of torch.compile on the first shape, and torch's reasons."""
        first = self._inputs(*self.shapes[0])

        def explain(wrapper: nn.Module) -> Any:
            torch._dynamo.reset()
            return torch._dynamo.explain(wrapper)(*first.tensors)

        found = self._made("torch.compile", explain)
        reasons = [str(each.reason).partition("\n")[0] for each in found.break_reasons]
        return int(found.graph_break_count), reasons

    @remembered
    def packaged(self) -> list[Shape]:
        """Every shape through AOTInductor."""
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "model.pt2"))
            return self._compared(
                self._made("AOTInductor", lambda wrapper: self._package(wrapper, path))
            )

    def _made(self, who: str, make: Callable[[nn.Module], Any]) -> Any:
        """What ``make`` gives for the model, in eval mode; NotApplicable with what it raises."""
        if self.probe.subject.signature.intermediates:
            raise NotApplicable(
                "forward is given intermediate results that are computed from its own modules: "
                "no one call is the model"
            )
        with self._compiling() as subject:
            wrapper = Logits(subject.model, self._inputs(*self.shapes[0]), self._read)
            try:
                return make(wrapper)
            except Exception as error:
                line = error_line(error)
                raise NotApplicable(f"{who} does not take the model: {line}") from error

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[Subject]:
        """Elsewhere what a model compiles by itself runs uncompiled; programs are compiled."""
        with (
            self.probe.running("program") as subject,
            torch.compiler.set_stance("default"),
            quietly(),
            silent(),
        ):
            yield subject

    def _compared(self, program: Program) -> list[Shape]:
        shapes, others = self._shapes()
        found = [self._on(program, rows, length) for rows, length in shapes]
        for rows, length in others:
            if sum(not shape.raised for shape in found[1:]) < _FEWEST:
                found.append(self._on(program, rows, length))
        return found

    def _on(self, program: Program, rows: int, length: int) -> Shape:
        batch = self._batch(rows, length)
        reference = self.probe.forward(batch).logits
        inputs = self._inputs(rows, length)
        if inputs.constants != self._inputs(*self.shapes[0]).constants:
            return Shape(rows, length, 0.0, reference, "the model is given other numbers here")
        with self._compiling() as subject:
            try:
                logits = subject.read(program.run(*inputs.tensors), batch).logits
            except Exception as error:  # noqa: BLE001 - a program may be made for one shape
                return Shape(rows, length, 0.0, reference, error_line(error))
        if logits.shape != reference.shape:
            return Shape(rows, length, float("inf"), reference)
        both_nan = reference.isnan() & logits.isnan()
        moved = torch.where(both_nan, 0, difference(reference, logits)).nan_to_num(float("inf"))
        return Shape(rows, length, float(moved.max()) if moved.numel() else 0.0, reference)

    def _batch(self, rows: int, length: int) -> Batch:
        """A text of a shape: padded on the right where the model can be told, but for the first,
        whose masks hide nothing."""
        probe = self.probe
        batch = probe.batch(rows, length, "program", rows, length)
        if probe.subject.vision or probe.subject.sizes[1] < 6:
            return batch
        for covers, way in probe.padding.told():
            ids = batch[covers]
            keep = probe.padding.keep(ids, "right")
            if (rows, length) == self.shapes[0]:
                keep = torch.ones_like(keep)
            if way is not None:
                batch = way.tell(batch, keep)
            else:
                filler = padding_id(probe.subject) or 0
                batch = batch.with_(**{covers: ids.masked_fill(~keep, filler)})
        return batch

    @remembered
    def _inputs(self, rows: int, length: int) -> Inputs:
        """What the model is called with for a shape."""
        given: list[Any] = []

        def note(_module: Any, args: Any, kwargs: Any) -> None:
            given.append((args, kwargs))

        batch = self._batch(rows, length)
        with self.probe.running("arguments") as subject:
            handle = subject.model.register_forward_pre_hook(note, with_kwargs=True)
            try:
                subject(batch)
            finally:
                handle.remove()
        return inputs_of(given[0])

    def _read(self, raw: Any) -> torch.Tensor:
        """The tensor of logits, as the model lays it out."""
        column = self.probe.subject.facts.layout == "column"
        per_token = self.probe.subject.per_token
        return read_output(raw, column=column, per_token=per_token).logits

    def _export(self, wrapper: nn.Module) -> Program:
        program = self._export_of(wrapper)
        return Program(program.module())

    def _export_of(self, wrapper: nn.Module) -> Any:
        """torch's ExportedProgram, with every axis open that differs between the shapes."""
        first = self._inputs(*self.shapes[0])
        others = [self._inputs(*shape).tensors for shape in self.shapes[1:]]
        opened = [
            open_axes(t, [other[i] for other in others]) for i, t in enumerate(first.tensors)
        ]
        return torch.export.export(
            wrapper, tuple(first.tensors), dynamic_shapes={"tensors": tuple(opened)}, strict=False
        )

    def locate(self, shape: Shape) -> str | None:
        """The first module of the exported program that gives something else than the model's;
        the program is taken apart by modules again for this."""
        probe, batch = self.probe, self._batch(shape.rows, shape.length)
        calls = trace(probe, batch)
        inputs = self._inputs(shape.rows, shape.length)

        def unflatten(wrapper: nn.Module) -> Any:
            modules = torch.export.unflatten(self._export_of(wrapper))
            with traced(modules) as others:
                modules(*inputs.tensors)
            return others

        try:
            others = self._made("torch.export", unflatten)
        except NotApplicable:
            return None
        calls = calls[::-1]  # of several calls of one module the first counts
        named = {f"{_INSIDE}{call.name}".removesuffix(f".{ROOT}"): call for call in calls}
        pairs = [Pair(named[other.name], other) for other in others if other.name in named]

        def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
            return over(a, b, 64 * probe.eps)

        found = first_apart(pairs, moved)
        return None if found is None else place(pairs, found, moved)[0]

    def _compile(self, wrapper: nn.Module) -> Program:
        torch._dynamo.reset()
        return Program(torch.compile(wrapper, dynamic=True))

    def _package(self, wrapper: nn.Module, path: str) -> Program:
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        program = self._export_of(wrapper)
        aoti_compile_and_package(program, package_path=path)
        return Program(aoti_load_package(path))
