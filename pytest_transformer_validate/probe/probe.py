"""A Subject with a memory: each pass happens at most once, and many checks read it."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from pytest_transformer_validate.errors import Blocked
from pytest_transformer_validate.probe.trace import where_raised
from pytest_transformer_validate.subject.guard import derive_seed, guard
from pytest_transformer_validate.subject.subject import Batch, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.subject.outputs import Output

Result = TypeVar("Result")


class Probe:
    """Runs a Subject and remembers what it did.

    ``seed`` decides every draw of every pass, together with the pass's name; ``weights`` says for
    reports where the weights are from.
    """

    def __init__(self, subject: Subject, *, seed: int = 0, weights: str = "as given") -> None:
        self.subject = subject
        self.seed = seed
        self.weights = weights
        self._results: dict[tuple[object, ...], Any] = {}
        self._failures: dict[tuple[object, ...], str] = {}

    def context(self) -> dict[str, Any]:
        """What is in force: task, parameters, device, dtype, seed, weights."""
        subject = self.subject
        return {
            "task": str(subject.task),
            "parameters": subject.parameters,
            "device": str(subject.device),
            "dtype": str(subject.dtype).removeprefix("torch."),
            "seed": self.seed,
            "weights": self.weights,
        }

    def once(self, run: Callable[[Probe], Result], *case: object) -> Result:
        """The result of the pass ``run(probe, *case)``, run at the first call only.

        A pass that raises, raises once; whoever needs it later gets Blocked with the place.
        """
        key = (run.__name__, *case)
        if key in self._failures:
            raise Blocked(self._failures[key])
        if key not in self._results:
            try:
                self._results[key] = run(self, *case)
            except Exception as error:
                name = "_".join(map(str, key))
                place = where_raised(self.subject.model, error)
                line = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                self._failures[key] = f"the pass {name} raised in {place}: {line}"
                raise
        return self._results[key]

    def seed_for(self, *words: object) -> int:
        """The seed of a pass: by the run's seed and the pass's words, never by order."""
        return derive_seed(self.seed, *words)

    def batch(self, rows: int, length: int, *words: object, full: bool = False) -> Batch:
        """Random inputs for the pass called ``words``."""
        return self.subject.batch(rows, length, seed=self.seed_for(*words), full=full)

    @contextlib.contextmanager
    def running(self, *words: object, grad: bool = False) -> Iterator[Subject]:
        """The subject, ready to be called in eval mode; everything is given back after."""
        model = self.subject.model
        with guard(model, self.seed_for(*words)), torch.set_grad_enabled(grad):
            model.eval()
            yield self.subject

    def forward(self, batch: Batch, **extra: Any) -> Output:
        """One forward in eval mode without gradients."""
        with self.running("forward") as subject:
            return subject(batch, **extra)

    @contextlib.contextmanager
    def noised(self) -> Iterator[None]:
        """Every floating point parameter moved at random while inside.

        By 0.5/sqrt(fan in) for weights and 0.1 for vectors, so that gates and projections that
        start at zero carry signal. The parameters themselves are put back, not copies.
        """
        generator = torch.Generator().manual_seed(self.seed_for("noise"))
        originals = [(p, p.data) for p in self.subject.model.parameters()]
        try:
            for parameter, data in originals:
                if data.is_floating_point() and not data.is_meta:
                    scale = 0.5 / math.sqrt(data[0].numel()) if data.dim() > 1 else 0.1
                    noise = torch.randn(data.shape, generator=generator) * scale
                    parameter.data = data + noise.to(data.device, data.dtype)
            yield
        finally:
            for parameter, data in originals:
                parameter.data = data

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
        return Probe(twin, seed=self.seed, weights=self.weights)

    def repeated(self, measure: Callable[[Probe], float]) -> tuple[float, str]:
        """``measure`` again, in float64, or with another seed where that cannot run."""
        try:
            return measure(self.in_float64()), "in float64"
        except (RuntimeError, TypeError, NotImplementedError, ValueError):
            other = Probe(self.subject, seed=self.seed + 1, weights=self.weights)
            return measure(other), "with another seed (float64 does not run)"
