"""A Subject with a memory: each pass happens at most once, and many checks read it."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable, SubjectError, error_line
from pytest_transformer_validate.probe import compare, forwards, gradients, positions, rows
from pytest_transformer_validate.probe.adversary import Adversary
from pytest_transformer_validate.probe.answers import NO_OUTPUT, Answers
from pytest_transformer_validate.probe.attention import Attention
from pytest_transformer_validate.probe.attribution import Attributions
from pytest_transformer_validate.probe.backends import Backends
from pytest_transformer_validate.probe.bounds import Bounds
from pytest_transformer_validate.probe.caches import Caches
from pytest_transformer_validate.probe.checkpointing import Checkpointing
from pytest_transformer_validate.probe.checkpoints import Checkpoints
from pytest_transformer_validate.probe.comparison import Comparison
from pytest_transformer_validate.probe.draws import Draws
from pytest_transformer_validate.probe.dropouts import Dropouts
from pytest_transformer_validate.probe.experts import Experts
from pytest_transformer_validate.probe.exported import Exported
from pytest_transformer_validate.probe.fitting import Fitting
from pytest_transformer_validate.probe.generation import Generation
from pytest_transformer_validate.probe.layers import Layers
from pytest_transformer_validate.probe.leaks import Leaks
from pytest_transformer_validate.probe.left_behind import LeftBehind
from pytest_transformer_validate.probe.losses import Losses
from pytest_transformer_validate.probe.masks import Masks
from pytest_transformer_validate.probe.mixing import Mixing
from pytest_transformer_validate.probe.order import Order
from pytest_transformer_validate.probe.padded_texts import PaddedTexts
from pytest_transformer_validate.probe.padding import Padding
from pytest_transformer_validate.probe.perturbation import Perturbation
from pytest_transformer_validate.probe.precision import MaskDtype, Precision
from pytest_transformer_validate.probe.quantised import Quantisation
from pytest_transformer_validate.probe.resized import Resizing
from pytest_transformer_validate.probe.resources import Resources
from pytest_transformer_validate.probe.siblings import Siblings
from pytest_transformer_validate.probe.states import States
from pytest_transformer_validate.probe.tables import Tables
from pytest_transformer_validate.probe.texts import Texts
from pytest_transformer_validate.probe.trace import ROOT, where_raised
from pytest_transformer_validate.probe.tying import Tying
from pytest_transformer_validate.probe.vector_noise import VectorNoise
from pytest_transformer_validate.probe.weights import Weights
from pytest_transformer_validate.probe.weights_of_attention import AttentionWeights
from pytest_transformer_validate.subject import promises
from pytest_transformer_validate.subject.guard import Keeper, derive_seed
from pytest_transformer_validate.subject.source import reads_module, reads_parameter
from pytest_transformer_validate.subject.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_transformer_validate.probe.forwards import Samples, Shape
    from pytest_transformer_validate.probe.gradients import Gradients
    from pytest_transformer_validate.probe.positions import Swaps
    from pytest_transformer_validate.probe.reference import Reference
    from pytest_transformer_validate.probe.rows import RowSwaps
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.outputs import Output

    Rebuild = Callable[[int], torch.nn.Module | None]

Result = TypeVar("Result")
Case = ParamSpec("Case")

_PERIOD = 1_048_573
_TINY = 2_000_000


class Probe:
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
        self._copied = False
        self._keeper = Keeper(subject.model)
        self._noise: list[torch.Tensor] = []

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
        mended = MaskDtype() if self._copied else contextlib.nullcontext()
        guard = self._keeper.guard(self.seed_for(*words))
        with guard as kept, torch.set_grad_enabled(grad), mended:
            kept.train(self._training)
            for norm in kept.batch_norms:
                norm.eval()
            yield self.subject

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """What one check runs in: one thread for a model that is so small that threads wait for
        each other longer than they compute; random states are given back at the end."""
        before = torch.get_num_threads()
        if self.subject.parameters <= _TINY:
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

    # Passes, each run once: groups of them...

    mixing = functools.cached_property(Mixing)
    order = functools.cached_property(Order)
    adversary = functools.cached_property(Adversary)
    answers = functools.cached_property(Answers)
    attention = functools.cached_property(Attention)
    attention_weights = functools.cached_property(AttentionWeights)
    attributions = functools.cached_property(Attributions)
    backends = functools.cached_property(Backends)
    caches = functools.cached_property(Caches)
    experts = functools.cached_property(Experts)
    exported = functools.cached_property(Exported)
    generation = functools.cached_property(Generation)
    layers = functools.cached_property(Layers)
    losses = functools.cached_property(Losses)
    quantisation = functools.cached_property(Quantisation)
    resizing = functools.cached_property(Resizing)
    resources = functools.cached_property(Resources)
    tables = functools.cached_property(Tables)
    texts = functools.cached_property(Texts)
    padding = functools.cached_property(Padding)
    masks = functools.cached_property(Masks)
    padded_texts = functools.cached_property(PaddedTexts)
    leaks = functools.cached_property(Leaks)
    perturbation = functools.cached_property(Perturbation)
    vector_noise = functools.cached_property(VectorNoise)
    checkpointing = functools.cached_property(Checkpointing)
    comparison = functools.cached_property(Comparison)
    draws = functools.cached_property(Draws)
    dropouts = functools.cached_property(Dropouts)
    states = functools.cached_property(States)
    drawn = functools.cached_property(Weights)
    siblings = functools.cached_property(Siblings)
    tying = functools.cached_property(Tying)
    checkpoints = functools.cached_property(Checkpoints)
    left_behind = functools.cached_property(LeftBehind)
    precision = functools.cached_property(Precision)
    bounds = functools.cached_property(Bounds)

    # ... and single ones...

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

    def movement(self, parameter: str) -> tuple[float, torch.Tensor]:
        """See ``gradients.movement``."""
        return self.once(gradients.movement, parameter)

    def gradients_in_float64(self) -> Gradients | None:
        """``gradients`` with moved parameters in float64; ``None`` where that does not run, or
        gives NaN (a mask made of the other dtype's smallest number does)."""
        try:
            found = self.in_float64().gradients(noised=True)
        except Exception:  # noqa: BLE001 - a model need not run in float64
            return None
        return None if found.not_finite else found

    def swap_plans(self) -> list[positions.Plan]:
        """The ways in which tokens are replaced."""
        subject = self.subject
        short = subject.sizes[1]
        every = tuple(range(1, short))
        plans = [positions.Plan("every", short, every)]
        special = bool(subject.text_ids) and short > 4
        if subject.signature.takes("attention_mask") and (subject.small or not special):
            plans.append(positions.Plan("masked", short, every))
        if special:
            plans.append(positions.Plan("special", short, every))
        plans.append(positions.Plan("noised", short, every))
        affordable = min(1024, max(32, int(4e9 / subject.parameters)))
        longest = min(subject.max_length or 64, affordable)
        if longest > short:
            starts = {1, longest // 2, longest - 2} if subject.small else {longest // 2}
            plans.append(positions.Plan("long", longest, tuple(sorted(starts))))
        return plans

    def position_swaps(self, plan: positions.Plan) -> Swaps:
        """See ``positions.position_swaps``."""
        return self.once(positions.position_swaps, plan)

    def repeats(self, swaps: Swaps | RowSwaps) -> float:
        """See ``compare.repeats``."""
        return compare.repeats(self, swaps)

    def noise(self) -> float:
        """See ``compare.noise``."""
        return self.once(compare.noise)

    def single_swap(self, swaps: Swaps, row: int) -> torch.Tensor:
        """See ``positions.single_swap``."""
        return positions.single_swap(self, swaps, row)

    def position_gradients(self, condition: str) -> torch.Tensor | None:
        """See ``positions.position_gradients``."""
        return self.once(positions.position_gradients, self.subject.sizes[1], condition)

    def single_gradient(self, position: int, condition: str) -> torch.Tensor:
        """See ``positions.single_gradient``."""
        length = self.subject.sizes[1]
        return self.once(positions.single_gradient, length, position, condition)

    def row_plans(self) -> list[str]:
        """The ways in which rows are replaced: see ``rows.row_swaps``."""
        subject = self.subject
        told = not subject.vision and subject.sizes[1] > 5 and self.padding.told()
        padded = ["padded"] if told else []
        if subject.small:
            shorter = ["shorter"] if told else []
            return ["every", *padded, *shorter, "noised", "full", "rolled"]
        return [*padded, "full", "rolled"]

    def row_swaps(self, plan: str) -> RowSwaps:
        """See ``rows.row_swaps``."""
        return self.once(rows.row_swaps, plan)

    def row_gradients(self) -> torch.Tensor | None:
        """See ``rows.row_gradients``."""
        count, length = self.subject.sizes
        return self.once(
            rows.row_gradients, count if self.subject.small else min(count, 3), length
        )

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

    # Structure...

    root = ROOT

    @property
    def eps(self) -> float:
        """The spacing of floating point numbers at 1 in the model's dtype."""
        return float(torch.finfo(self.subject.dtype).eps)

    @property
    def frozen(self) -> int:
        """Number of parameters that ask for no gradient."""
        return sum(not p.requires_grad for p in self.subject.model.parameters())

    @property
    def has_batch_norms(self) -> bool:
        """Whether a module computes statistics over the rows in training mode."""
        return bool(_batch_norms(self.subject.model))

    def dimensions(self, parameter: str) -> int:
        """Number of axes of a parameter."""
        return dict(self.subject.model.named_parameters())[parameter].dim()

    def is_list(self, module: str) -> bool:
        """Whether a module only holds others and has no forward."""
        kinds = (torch.nn.ModuleList, torch.nn.ModuleDict)
        return isinstance(self._modules[module], kinds)

    @functools.cached_property
    def _modules(self) -> dict[str, torch.nn.Module]:
        return dict(self.subject.model.named_modules())

    def reads_module(self, module: str) -> bool:
        """See ``source.reads_module``."""
        return reads_module(self.subject.model, module)

    def reads_parameter(self, parameter: str) -> bool:
        """See ``source.reads_parameter``."""
        return reads_parameter(self.subject.model, parameter)

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

    def holds_modules(self, module: str) -> bool:
        """Whether a module has submodules."""
        return next(self._modules[module].children(), None) is not None

    def list_siblings(self, module: str) -> list[str]:
        """Names of the other modules of the same class in the same list or sequence."""
        above, _, own = module.rpartition(".")
        holder = self._modules[above]
        if not isinstance(holder, torch.nn.ModuleList | torch.nn.Sequential):
            return []
        kind = type(self._modules[module])
        prefix = f"{above}." if above else ""
        return [
            prefix + name
            for name, other in holder.named_children()
            if name != own and type(other) is kind
        ]

    def idle_modules(self, ran: set[str]) -> list[str]:
        """The outermost modules with parameters of which nothing ran."""
        idle: list[str] = []
        for name, module in self.subject.model.named_modules():
            touched = any(other == name or other.startswith(f"{name}.") for other in ran)
            inside = any(name.startswith(f"{other}.") for other in idle)
            if name and not touched and not inside and next(module.parameters(), None) is not None:
                idle.append(name)
        return idle

    def forward(self, batch: Batch, **extra: Any) -> Output:
        """One forward in eval mode without gradients."""
        with self.running("forward") as subject:
            return subject(batch, **extra)

    @contextlib.contextmanager
    def noised(self) -> Iterator[None]:
        """Every floating point parameter moved at random while inside.

        By 0.5/sqrt(fan in) for weights and 0.1 for vectors, so that gates and projections that
        start at zero carry signal; the statistics of batch norms then follow the data. The
        parameters and buffers themselves are put back, not copies.
        """
        model = self.subject.model
        originals = [(t, t.data) for t in (*model.parameters(), *model.buffers())]
        moved = [(p, data) for p, data in originals if _is_moved(p, data)]
        try:
            for (parameter, data), noise in zip(moved, self._noises(moved), strict=True):
                scale = 0.5 / math.sqrt(data[0].numel()) if data.dim() > 1 else 0.1
                parameter.data = torch.add(data, noise.to(data), alpha=scale)
            self._calibrate()
            yield
        finally:
            for parameter, data in originals:
                parameter.data = data

    def _noises(self, moved: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterable[torch.Tensor]:
        """A normal draw for each parameter; those for a tiny model are drawn once."""
        generator = torch.Generator().manual_seed(self.seed_for("noise"))
        draws = (_normal(data.shape, generator) for _, data in moved)
        if self.subject.parameters > _TINY:
            return draws
        shapes = [data.shape for _, data in moved]
        if [noise.shape for noise in self._noise] != shapes:
            self._noise = list(draws)
        return self._noise

    def _calibrate(self) -> None:
        """Let the running statistics of batch norms follow a few batches."""
        norms = [m for m in _batch_norms(self.subject.model) if m.track_running_stats]
        if not norms:
            return
        rows = min(8, self.subject.most_rows)
        batch = self.batch(rows, self.subject.sizes[1], "calibration")
        with self.running("calibration") as subject:
            momenta = [m.momentum for m in norms]
            for norm in norms:
                norm.train()
                norm.momentum = None
                norm.reset_running_stats()
            try:
                subject(batch)
                found = [t.clone() for norm in norms for t in _statistics(norm)]
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.momentum = momentum
        statistics = [t for norm in norms for t in _statistics(norm)]
        for statistic, value in zip(statistics, found, strict=True):
            statistic.data = value

    def in_float64(self) -> Probe:
        """A probe over a float64 copy on the CPU. What copying raises comes through."""
        subject = self.subject
        model = copy.deepcopy(subject.model).to("cpu", torch.float64)
        twin = Subject(
            model,
            subject.config,
            tokenizer=subject.tokenizer,
            task=subject.task.task_type,
            seed=subject.seed,
        )
        probe = Probe(twin, seed=self.seed, weights=self.weights)
        probe._copied = True
        return probe

    def repeated(self, measure: Callable[[Probe], float]) -> tuple[float, str]:
        """``measure`` again, in float64, or with another seed where that cannot run."""
        try:
            return measure(self.in_float64()), "in float64"
        except Exception:  # noqa: BLE001 - a model need not run in float64
            other = Probe(self.subject, seed=self.seed + 1, weights=self.weights)
            return measure(other), "with another seed (float64 does not run)"


def _is_moved(parameter: torch.Tensor, data: torch.Tensor) -> bool:
    trained = isinstance(parameter, torch.nn.Parameter) and not data.is_meta
    return trained and data.is_floating_point() and data.numel() > 0


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normally distributed numbers; those of a large tensor repeat with a prime period, because
    drawing them takes longer than running the model."""
    count = shape.numel()
    if count <= _PERIOD:
        return torch.randn(shape, generator=generator)
    block = torch.randn(_PERIOD, generator=generator)
    return block.repeat(count // _PERIOD + 1)[:count].reshape(shape)


def _statistics(norm: torch.nn.modules.batchnorm._BatchNorm) -> list[torch.Tensor]:
    return [t for t in (norm.running_mean, norm.running_var) if t is not None]


def _batch_norms(model: torch.nn.Module) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind)]
