"""A Subject with a memory: each pass happens at most once, and many checks read it."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable, SubjectError, error_line
from pytest_transformer_validate.probe import (
    compare,
    forwards,
    gradients,
    overwritten,
    positions,
    rows,
)
from pytest_transformer_validate.probe.answers import NO_OUTPUT
from pytest_transformer_validate.probe.fitting import Fitting
from pytest_transformer_validate.probe.groups import Groups
from pytest_transformer_validate.probe.moved_weights import TINY
from pytest_transformer_validate.probe.rounding import MaskDtype
from pytest_transformer_validate.probe.trace import ROOT, differentiated, where_raised
from pytest_transformer_validate.subject import promises
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.subject.dispatch import parts_uncompiled
from pytest_transformer_validate.subject.guard import Keeper, derive_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.probe.forwards import Samples, Shape
    from pytest_transformer_validate.probe.gradients import Gradients
    from pytest_transformer_validate.probe.positions import Swaps
    from pytest_transformer_validate.probe.reference import Reference
    from pytest_transformer_validate.probe.rows import RowSwaps
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.outputs import Output
    from pytest_transformer_validate.subject.subject import Subject

    Rebuild = Callable[[int], torch.nn.Module | None]

Result = TypeVar("Result")
Case = ParamSpec("Case")


class Probe(Groups):
    """Runs a Subject and remembers what it did.

    ``seed`` decides every draw of every pass, together with the pass's name; ``weights`` says for
    reports where the weights are from; ``rebuild`` makes the model once more, with weights drawn
    from another seed, or gives ``None`` or the same object where it cannot; ``reference`` is the
    model that this one is compared with; ``fitting`` says how copies of it are trained.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        seed: int = 0,
        weights: str = "as given",
        rebuild: Rebuild | None = None,
        reference: Reference | None = None,
        fitting: Fitting | None = None,
    ) -> None:
        self.subject = subject
        self.seed = seed
        self.weights = weights
        self.rebuild = rebuild
        self.reference = reference
        self.fitting = fitting or Fitting()
        self._results: dict[tuple[object, ...], Any] = {}
        self._failures: dict[tuple[object, ...], str] = {}
        self._training = False
        self._copied = self._throughout = False
        self._keeper = Keeper(subject.model)

    def context(self) -> dict[str, Any]:
        """What is in force: task, parameters, device, dtype, seed, weights, and what is given
        beside ids, as soon as it is found."""
        subject = self.subject
        found = {
            "task": self._task(),
            "parameters": subject.parameters,
            "device": str(subject.device),
            "dtype": str(subject.dtype).removeprefix("torch."),
            "seed": self.seed,
            "weights": self.weights,
        }
        return {**found, "given": subject.given.text} if subject.given.forms else found

    def _task(self) -> str:
        """The task; ``unknown`` where the output is none, which is for a check to say."""
        try:
            return str(self.subject.task)
        except (SubjectError, Blocked) as error:
            if NO_OUTPUT in str(error):
                return "unknown"
            raise

    def once(
        self,
        run: Callable[Concatenate[Probe, Case], Result],
        *case: Case.args,
        **named: Case.kwargs,
    ) -> Result:
        """The result of the pass ``run(probe, *case)``, run at the first call only.

        A pass that raises, raises once; whoever needs it later gets Blocked with the place.
        """
        key = (run.__name__, *case, *named.values())
        return self.remember(key, lambda: run(self, *case, **named))

    def remember(self, key: tuple[object, ...], run: Callable[[], Result]) -> Result:
        """The result of the pass called ``key``, run at the first call only; see ``once``."""
        if key in self._failures:
            raise Blocked(self._failures[key])
        if key not in self._results:
            try:
                self._results[key] = run()
            except (Blocked, NotApplicable):
                raise
            except BaseException as error:
                name = "_".join(map(str, key))
                place = where_raised(self.subject.model, error) or ROOT
                line = error_line(error)
                self._failures[key] = f"the pass {name} raised in {place}: {line}"
                raise
        return cast("Result", self._results[key])

    def seed_for(self, *words: object) -> int:
        """The seed of a pass: by the run's seed and the pass's words, never by order."""
        return derive_seed(self.seed, *words)

    def batch(self, rows: int, length: int, *words: object, source: int | None = None) -> Batch:
        """Random inputs for the pass called ``words``."""
        return self.subject.batch(rows, length, seed=self.seed_for(*words), source=source)

    @contextlib.contextmanager
    def running(self, *words: object, grad: bool = False) -> Iterator[Subject]:
        """The subject, ready to be called; everything is given back after.

        In eval mode, or inside ``under("training")`` in training mode with batch norms in eval.
        """
        mended = MaskDtype(self._throughout) if self._copied else contextlib.nullcontext()
        guard = self._keeper.guard(self.seed_for(*words))
        told = differentiated() if grad else contextlib.nullcontext()
        parts = parts_uncompiled(self.subject.model)
        with told, guard as kept, torch.set_grad_enabled(grad), mended, parts:
            kept.train(self._training)
            for norm in kept.batch_norms:
                norm.eval()
            yield self.subject

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """What one check runs in: one thread for a model that is so small that threads wait for
        each other longer than they compute; random states are given back at the end."""
        before = torch.get_num_threads()
        if self.subject.parameters <= TINY:
            torch.set_num_threads(1)
        try:
            with self._keeper.around():
                yield
        finally:
            torch.set_num_threads(before)

    @contextlib.contextmanager
    def under(self, condition: str) -> Iterator[None]:
        """The condition for passes inside: ``noised`` (see there), ``training`` mode, or none."""
        if condition == "noised":
            with self.noised():
                yield
            return
        self._training = condition == "training"
        try:
            yield
        finally:
            self._training = False

    # Single passes, each run once (see ``Groups`` for the others)...

    def shapes_of(self, case: str) -> list[Shape]:
        """See ``forwards.shapes_of``."""
        return self.once(forwards.shapes_of, case)

    def first_misshapen(self, shape: Shape) -> str | None:
        """See ``forwards.first_misshapen``."""
        return self.once(forwards.first_misshapen, shape)

    def shortens(self) -> bool:
        """See ``forwards.shortens``."""
        return self.once(forwards.shortens)

    def samples(self, *, noised: bool = False) -> Samples:
        """See ``forwards.samples``."""
        return self.once(forwards.samples, noised)

    def gradients(self, *, noised: bool = False) -> Gradients:
        """See ``gradients.gradients``."""
        return self.once(gradients.gradients, noised)

    def long_gradients(self) -> Gradients | None:
        """See ``gradients.long_gradients``."""
        return self.once(gradients.long_gradients)

    def overwritten(self) -> str | None:
        """See ``overwritten.overwritten``."""
        return self.once(overwritten.overwritten)

    def movement(self, parameter: str, size: float = 0.1) -> tuple[float, torch.Tensor]:
        """See ``gradients.movement``."""
        return self.once(gradients.movement, parameter, size)

    def gradients_in_float64(self) -> Gradients | None:
        """``gradients`` with moved parameters in float64; ``None`` where that does not run, gives
        NaN (a mask made of the other dtype's smallest number does), or says nothing new."""
        if self.subject.dtype is torch.float64:
            return None
        try:
            found = self.in_float64().gradients(noised=True)
        except Exception:  # noqa: BLE001 - a model need not run in float64
            return None
        return None if found.not_finite else found

    def swap_plans(self) -> list[positions.Plan]:
        """See ``positions.swap_plans``."""
        return positions.swap_plans(self)

    def position_swaps(self, plan: positions.Plan) -> Swaps:
        """See ``positions.position_swaps``."""
        return self.once(positions.position_swaps, plan)

    def repeats(self, swaps: Swaps | RowSwaps) -> float:
        """See ``compare.repeats``."""
        return compare.repeats(self, swaps)

    def plain(self, rows: int | None = None) -> torch.Tensor:
        """See ``compare.plain``; with the model as loaded."""
        return self.once(compare.plain, rows)

    def noise(self) -> float:
        """See ``compare.noise``."""
        return self.once(compare.noise)

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype of the model, or bfloat16 where its forward computes in half precision by
        itself: what it returns in float32 tells of neither."""
        return torch.bfloat16 if self.precision.traits().narrows else self.subject.dtype

    def single_swap(self, swaps: Swaps, row: int) -> torch.Tensor:
        """See ``positions.single_swap``."""
        return positions.single_swap(self, swaps, row)

    def position_gradients(self, condition: str) -> torch.Tensor | None:
        """See ``positions.position_gradients``; in training mode, of a brief text."""
        found = None if condition == "training" else self.mixing.dependencies(condition)
        length = self.gradient_length(condition)
        if found is None:
            found = self.once(positions.position_gradients, length, condition)
        return found

    def single_gradient(self, position: int, condition: str) -> torch.Tensor:
        """See ``positions.single_gradient``."""
        length = self.gradient_length(condition)
        return self.once(positions.single_gradient, length, position, condition)

    def gradient_length(self, condition: str) -> int:
        """The length of the text for ``position_gradients``."""
        return positions.brief(self) if condition == "training" else self.subject.sizes[1]

    def row_plans(self) -> list[str]:
        """See ``rows.row_plans``."""
        return rows.row_plans(self)

    def row_swaps(self, plan: str) -> RowSwaps:
        """See ``rows.row_swaps``."""
        return self.once(rows.row_swaps, plan)

    def row_gradients(self) -> torch.Tensor | None:
        """See ``rows.row_gradients``."""
        count, length = self.subject.sizes
        return self.once(rows.row_gradients, min(count, 2), length)

    # ... and where in the model something happens, run on a failure only.

    def locate_position(self, swaps: Swaps, row: int) -> tuple[str | None, tuple[int, ...]]:
        """See ``positions.locate_position``."""
        return positions.locate_position(self, swaps, row)

    def locate_row(self, swaps: RowSwaps, index: int) -> str | None:
        """See ``rows.locate_row``."""
        return rows.locate_row(self, swaps, index)

    def locate_row_gradient(self, row: int, source: int) -> str | None:
        """See ``rows.locate_row_gradient``."""
        return rows.locate_row_gradient(self, row, source)

    def first_larger(self, ceiling: float) -> str | None:
        """See ``forwards.first_larger``."""
        return self.once(forwards.first_larger, ceiling)

    def first_blind(self, what: str) -> str | None:
        """See ``forwards.first_blind``."""
        return self.once(forwards.first_blind, what)

    def dead_input(self) -> str | None:
        """See ``forwards.dead_input``."""
        return self.once(forwards.dead_input)

    # What is known of the subject...

    root = ROOT

    @property
    def eps(self) -> float:
        """The spacing of floating point numbers at 1 in the model's dtype."""
        return float(torch.finfo(self.subject.dtype).eps)

    @functools.cached_property
    def rounded(self) -> float:
        """The coarsest such spacing of the model and of its buffers, as they were given: a copy
        in another dtype holds tables that are rounded already."""
        dtypes = {self.subject.dtype, *(b.dtype for b in self.subject.model.buffers())}
        return max(float(torch.finfo(d).eps) for d in dtypes if d.is_floating_point)

    def row(self, batch: Batch, row: int) -> Batch:
        """One row of a batch."""
        return compare.some_rows(batch, row, row + 1)

    @functools.cached_property
    def window(self) -> int | None:
        """See ``promises.declared_window``."""
        return promises.declared_window(self.subject)

    def tells_of_limits(self, *, holes: bool = True, inside: str | None = None) -> str | None:
        """See ``promises.tells_of_limits``."""
        return promises.tells_of_limits(self.subject, holes=holes, inside=inside)

    def position_promise(self, *, rotary: bool = False) -> str | None:
        """See ``promises.position_promise``."""
        return promises.position_promise(self.subject, rotary=rotary)

    def where_raised(self, error: BaseException) -> str | None:
        """See ``trace.where_raised``."""
        return where_raised(self.subject.model, error)

    def forward(self, batch: Batch, **extra: Any) -> Output:
        """One forward in eval mode without gradients."""
        with self.running("forward") as subject:
            return subject(batch, **extra)

    def noised(self) -> contextlib.AbstractContextManager[None]:
        """See ``MovedWeights.at_random``."""
        return self.moved_weights.at_random()

    def in_float64(self, *, throughout: bool = False) -> Probe:
        """A probe over a float64 copy on the CPU. What copying raises comes through.
        ``throughout`` leaves in float64 what its code casts to float32."""
        subject = self.subject
        model = convert(copy.deepcopy(subject.model), torch.float64, "cpu")
        probe = Probe(subject.twin(model), seed=self.seed, weights=self.weights)
        probe._copied, probe._throughout = True, throughout
        probe.rounded = self.rounded
        if throughout:
            with MaskDtype(throughout):
                _ = probe.subject.facts  # the first forward is no pass
        return probe

    def reseeded(self, by: int) -> Probe:
        """A probe of the same subject over other random inputs."""
        return Probe(self.subject, seed=self.seed + by, weights=self.weights)

    def repeated(self, measure: Callable[[Probe], float]) -> tuple[float, str]:
        """``measure`` again, in float64, or with another seed where that cannot run."""
        for throughout in (False, True):  # a cast to float32 may not go with the rest
            try:
                return measure(self.in_float64(throughout=throughout)), "in float64"
            except Exception:  # noqa: BLE001 - a model need not run in float64
                continue
        return measure(self.reseeded(1)), "with another seed (float64 does not run)"
