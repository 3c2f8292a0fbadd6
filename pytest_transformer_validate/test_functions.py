"""The check functions of Transformer Builder's notebooks, under their names.

Each takes ``(model, config)`` and returns a table (pandas DataFrame) or a dict. ``config`` is a
dict, any object with attributes, a Hugging Face config or ``None``; ``task_spec`` says what the
model is for (a name, or an object with ``task_type``), and ``adapter`` is accepted and not needed:
inputs and outputs are found from the model. The model is left as it was, on its device. What
cannot run is a text in the result: ``{"error": ...}``, or a column ``error``.

These are functions that are called, not tests that pytest collects. To judge a model, use
``pytest --tb-model=...`` or ``validate()``: they decide, these report.
"""

# ruff: noqa: PT028, ARG001 - called by people, not collected; adapter= is accepted for them

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any, ParamSpec

from pytest_transformer_validate.errors import (
    CheckFailed,
    MissingDependency,
    NotApplicable,
    SpecError,
    first_line,
)
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.validation import Result, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

    from pytest_transformer_validate.measures.gradients import GradientFlow
    from pytest_transformer_validate.probe.probe import Probe

__all__ = [
    "run_all_tests",
    "run_all_tier1_tests",
    "run_all_tier2_tests",
    "test_attention_patterns",
    "test_attribution_analysis",
    "test_gradient_flow",
    "test_inference_speed",
    "test_memory_footprint",
    "test_output_stability",
    "test_parameter_initialization",
    "test_robustness",
    "test_shape_robustness",
]

Arguments = ParamSpec("Arguments")

BATCHES = (1, 2, 4, 8, 16)
MB = 2**20
SLACK = 1.1
STEPS = 64


def _reports(*, table: bool) -> Callable[[Callable[Arguments, Any]], Callable[Arguments, Any]]:
    """Not a test, whatever its name; what it raises becomes a text in its result."""

    def decorate(function: Callable[Arguments, Any]) -> Callable[Arguments, Any]:
        @functools.wraps(function)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - promised: a message, not a traceback
                text = _words(error)
                if not table or isinstance(error, MissingDependency):
                    return {"error": text}
                try:
                    return _frame([{"error": text}])
                except MissingDependency:
                    return {"error": text}

        run.__test__ = False  # type: ignore[attr-defined]
        return run

    return decorate


@_reports(table=True)
def test_shape_robustness(
    model: torch.nn.Module, config: Any = None, *, adapter: Any = None, task_spec: Any = None
) -> Any:
    """Single token, full length, full batch and other shapes: what goes in and what comes out.

    Columns ``Case``, ``Input Shape``, ``Output Shape``, ``Status``, and the same in lower case.
    """
    from pytest_transformer_validate.checks.tier1.shapes import CASES, shape_robustness

    probe = _probe(model, config, task_spec)
    rows = []
    for case in CASES:
        status = _verdict(lambda case=case: shape_robustness(probe, case))  # type: ignore[misc]
        try:
            shapes = probe.shapes_of(case)
        except Exception as error:  # noqa: BLE001 - the row says what cannot run
            rows.append((case, "-", "-", status if status != "ok" else _words(error)))
            continue
        rows += [(case, str((s.rows, s.length)), str(s.logits), status) for s in shapes]
    guide = ("Case", "Input Shape", "Output Shape", "Status")
    code = ("case", "input_shape", "output_shape", "status")
    return _frame(dict(zip((*guide, *code), (*row, *row), strict=True)) for row in rows)


@_reports(table=False)
def test_gradient_flow(
    model: torch.nn.Module, config: Any = None, *, adapter: Any = None, task_spec: Any = None
) -> dict[str, Any]:
    """Largest and smallest gradient, whether any vanishes or explodes, and every parameter's.

    ``parameters`` has the columns ``parameter``, ``grad_norm``, ``grad_mean``, ``grad_std``,
    ``status``; it is a list of rows where pandas is not installed.
    """
    probe = _probe(model, config, task_spec)
    measured = _gradient_flow(probe)
    found = probe.gradients()
    rows = [
        {
            "parameter": each.parameter,
            "grad_norm": each.norm,
            "grad_mean": each.mean,
            "grad_std": each.std,
            "status": _gradient_status(each.parameter, each.norm, measured, found.not_finite),
        }
        for each in probe.tables.gradients()
    ]
    norms = [each.norm for each in probe.tables.gradients() if each.norm]
    exploding = bool(found.not_finite) or measured.largest > 1e6 * measured.at_output > 0
    result: dict[str, Any] = {
        "max_gradient": max(norms, default=0.0),
        "min_gradient": min(norms, default=0.0),
        "has_vanishing_gradients": bool(measured.missing) or not norms,
        "has_exploding_gradients": exploding,
        "parameters": rows,
    }
    try:
        result["parameters"] = _frame(rows)
    except MissingDependency as error:
        result["error"] = str(error)
    return result


@_reports(table=False)
def test_output_stability(
    model: torch.nn.Module,
    config: Any = None,
    n_samples: int = 100,
    *,
    adapter: Any = None,
    task_spec: Any = None,
) -> dict[str, Any]:
    """Mean, spread and range of the logits over random inputs, and whether any is no number."""
    found = _probe(model, config, task_spec).tables.outputs(n_samples)
    return {
        "mean": found.mean,
        "std": found.std,
        "min": found.low,
        "max": found.high,
        "has_nan": found.nan,
        "has_inf": found.infinite,
        "dynamic_range": found.high - found.low,
    }


@_reports(table=True)
def test_parameter_initialization(
    model: torch.nn.Module,
    config: Any = None,
    *,
    adapter: Any = None,
    task_spec: Any = None,
) -> Any:
    """Every parameter: ``parameter``, ``shape``, ``mean``, ``std``, ``min``, ``max``, ``status``.

    The status says what the check ``parameter_initialization`` found, as far as the model runs.
    """
    from pytest_transformer_validate.checks.tier1.initialization import parameter_initialization
    from pytest_transformer_validate.measures.initialization import Initialization, table

    probe = _probe(model, config, task_spec)
    measured: Any = None
    try:
        measured = parameter_initialization(probe)
    except (CheckFailed, NotApplicable) as verdict:
        measured = verdict.measurement
    except Exception:  # noqa: BLE001 - the table needs no forward
        measured = None
    if isinstance(measured, Initialization):
        return _frame(measured.parameters)
    return _frame(table(probe.drawn.spreads().values(), {}))


@_reports(table=True)
def test_memory_footprint(
    model: torch.nn.Module, config: Any = None, *, adapter: Any = None, task_spec: Any = None
) -> Any:
    """Memory for batches of 1, 2, 4, 8 and 16, at half and at full typical length.

    ``memory_mb`` is what training has to hold besides gradients: parameters, buffers and what
    the backward needs of a forward, counted and not sampled; ``per_sample_mb`` is that over the
    batch. ``parameters_mb`` and ``activations_mb`` are its parts. The status of a batch that
    needs more than its share of activations says so.
    """
    probe = _probe(model, config, task_spec)
    subject = probe.subject
    fixed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    rows = []
    for length in _lengths(probe):
        alone: float | None = None
        for batch in BATCHES:
            row: dict[str, Any] = {"batch_size": batch, "seq_len": length}
            if batch > subject.most_rows:
                rows.append({**row, "status": f"skipped: max_batch_size is {subject.most_rows}"})
                continue
            counts = probe.resources.counted(batch, length)
            alone = counts.bytes if alone is None else alone
            fair = counts.bytes <= SLACK * batch * alone
            rows.append(
                {
                    **row,
                    "memory_mb": (fixed + counts.bytes) / MB,
                    "per_sample_mb": (fixed + counts.bytes) / MB / batch,
                    "parameters_mb": fixed / MB,
                    "activations_mb": counts.bytes / MB,
                    "status": counts.unseen or ("ok" if fair else "grows faster than the batch"),
                }
            )
    order = ("batch_size", "seq_len", "memory_mb", "per_sample_mb", "status")
    return _frame({key: row.get(key) for key in (*order, *row)} for row in rows)


@_reports(table=False)
def test_inference_speed(
    model: torch.nn.Module,
    config: Any = None,
    n_trials: int = 50,
    *,
    adapter: Any = None,
    task_spec: Any = None,
) -> dict[str, Any]:
    """Times of single forwards after warm-up, in milliseconds, and texts a second."""
    from pytest_transformer_validate.measures.resources import times

    probe = _probe(model, config, task_spec)
    size = (1, _lengths(probe)[-1])
    seconds = probe.resources.timed(n_trials, warm=3, sizes=(size,))[size]
    return {**times(seconds), "throughput_samples_per_sec": 1 / statistics.fmean(seconds)}


@_reports(table=False)
def test_attention_patterns(
    model: torch.nn.Module,
    config: Any = None,
    input_text: str = "The quick brown fox jumps over the lazy dog",
    tokenizer: Any = None,
    *,
    adapter: Any = None,
    task_spec: Any = None,
) -> dict[str, Any]:
    """Attention over one text: 16 random ids without a tokenizer.

    Lists hold a number for each call of attention: ``attention_entropy`` is the mean over heads
    and rows, in nats; ``head_specialization_scores`` how much a weight differs between heads
    (standard deviation). ``collapsed_layers`` are the places, in these lists, where every head of
    a trained model looks at all keys alike.
    """
    from pytest_transformer_validate.checks.tier2.captured import attention_sites
    from pytest_transformer_validate.measures import attention

    probe = _probe(model, config, task_spec)
    ids = None if tokenizer is None else list(tokenizer.encode(input_text))
    sites, length = probe.attention_weights.of_ids(ids)
    sites = sites or attention_sites(probe)  # which says why there are none
    layers = [attention.layer(site) for site in sites]
    trained = probe.attention_weights.trained
    return {
        "num_layers": len(sites),
        "input_length": length,
        "collapsed_layers": [n for n, each in enumerate(layers) if trained and each.uniform],
        "head_specialization_scores": [attention.specialization(site) for site in sites],
        "attention_entropy": [attention.entropy(site) for site in sites],
    }


@_reports(table=False)
def test_attribution_analysis(
    model: torch.nn.Module,
    config: Any = None,
    input_ids: Any = None,
    target_idx: int = -1,
    *,
    adapter: Any = None,
    task_spec: Any = None,
) -> dict[str, Any]:
    """Integrated gradients of the largest logit at one position, by default the last.

    ``attribution_scores`` has a number for each token (rows of patches for an image),
    ``convergence_delta`` is what they lack to the change of the logit, ``input_tokens`` are the
    ids: random ones without ``input_ids``, which is one text. ``target_position`` is ``None``
    where there is one output a text.
    """
    probe = _probe(model, config, task_spec)
    ids = None if input_ids is None else _one_text(input_ids)
    found = probe.attributions.explained(ids, target_idx, STEPS)
    batch, position = found.path.reader.batch, found.path.reader.position
    if probe.subject.vision:
        scores: Any = found.patches(probe.attributions.patch)
        tokens = None
    else:
        scores, tokens = found.tokens("input_ids"), batch["input_ids"][0].tolist()
    length = batch.inputs.get("decoder_input_ids", batch.main).shape[1]
    return {
        "attribution_scores": scores,
        "convergence_delta": found.missing,
        "target_position": None if position is None else position % length,
        "input_tokens": tokens,
    }


@_reports(table=False)
def test_robustness(
    model: torch.nn.Module,
    config: Any = None,
    n_samples: int = 20,
    noise_levels: Sequence[float] = (0.0, 0.01, 0.05, 0.1, 0.2),
    *,
    adapter: Any = None,
    task_spec: Any = None,
) -> dict[str, Any]:
    """Predictions for random texts with noise on their vectors, of a level times their size.

    Lists hold a number for each level: ``accuracy_under_noise`` is the part of the predictions
    that stay what they are without noise, ``prediction_flips`` how many do not,
    ``output_stability`` the mean cosine of the outputs with those without noise.
    """
    probe = _probe(model, config, task_spec)
    levels = [float(level) for level in noise_levels]
    found = [probe.vector_noise.predictions(n_samples, level) for level in levels]
    return {
        "noise_levels": levels,
        "accuracy_under_noise": [each.same for each in found],
        "output_stability": [each.likeness for each in found],
        "prediction_flips": [each.flips for each in found],
    }


@_reports(table=False)
def run_all_tier1_tests(
    model: torch.nn.Module, config: Any = None, *, adapter: Any = None, task_spec: Any = None
) -> Result | dict[str, str]:
    """All checks of tier 1: prints the summary and returns the records (see ``validate``)."""
    return _run(model, config, task_spec, (1,))


@_reports(table=False)
def run_all_tier2_tests(
    model: torch.nn.Module, config: Any = None, *, adapter: Any = None, task_spec: Any = None
) -> Result | dict[str, str]:
    """All checks of tier 2 but slow ones: prints the summary and returns the records."""
    return _run(model, config, task_spec, (2,))


@_reports(table=False)
def run_all_tests(
    model: torch.nn.Module, config: Any = None, *, adapter: Any = None, task_spec: Any = None
) -> Result | dict[str, str]:
    """All checks of tiers 1 and 2: prints the summary and returns the records."""
    return _run(model, config, task_spec, (1, 2))


def _run(model: torch.nn.Module, config: Any, task_spec: Any, tiers: tuple[int, ...]) -> Result:
    result = validate(model, config, tier=tiers, task=_task(task_spec))
    print(result)  # noqa: T201 - promised: these two print a summary
    return result


def _probe(model: torch.nn.Module, config: Any, task_spec: Any) -> Probe:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.subject import Subject

    return Probe(Subject(model, config, task=_task(task_spec)))


def _one_text(input_ids: Any) -> tuple[int, ...]:
    """The ids of a list, or of a tensor with one row."""
    ids = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    if ids and isinstance(ids[0], list):
        if len(ids) > 1:
            raise SpecError(f"input_ids must be one text, given {len(ids)}")
        ids = ids[0]
    return tuple(int(each) for each in ids)


def _task(task_spec: Any) -> str | None:
    """The name in a task specification of any kind."""
    from pytest_transformer_validate.task import canonical_task

    if task_spec is None:
        return None
    return canonical_task(str(getattr(task_spec, "task_type", task_spec)))


def _frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    pandas = require("pandas", extra="report")
    return pandas.DataFrame(list(rows))


def _words(error: BaseException) -> str:
    """An exception as one line."""
    text = first_line(error, 500)
    own = type(error).__module__.startswith(__package__)
    return text if own else f"{type(error).__name__}: {text}"


def _verdict(judge: Callable[[], Any]) -> str:
    """``ok``, or why not."""
    try:
        judge()
    except CheckFailed as failure:
        return "failed: " + " ".join(failure.message.splitlines()[1:2] or [failure.message])
    except NotApplicable as skip:
        return f"skipped: {skip.reason}"
    except Exception as error:  # noqa: BLE001 - the row says what the model raised
        return f"error: {_words(error)}"
    return "ok"


def _gradient_flow(probe: Probe) -> GradientFlow:
    """What the check measured, whether or not it holds."""
    from pytest_transformer_validate.checks.tier1.gradients import gradient_flow
    from pytest_transformer_validate.measures.gradients import GradientFlow

    try:
        measured: Any = gradient_flow(probe)
    except (CheckFailed, NotApplicable) as verdict:
        measured = verdict.measurement
    return measured if isinstance(measured, GradientFlow) else GradientFlow()


def _gradient_status(
    name: str, norm: float | None, measured: GradientFlow, not_finite: list[str]
) -> str:
    if name in not_finite:
        return "not a number"
    if name in measured.missing:
        return "no gradient" if not norm else "vanishes"
    return measured.explained.get(name) or ("ok" if norm else "no gradient in this batch")


def _lengths(probe: Probe) -> tuple[int, ...]:
    """Half of a typical length, and all of it; images have none."""
    subject = probe.subject
    if subject.vision:
        return (1,)
    longest = subject.max_length or 64
    typical = min(longest, 64 if subject.small else 16)
    return (typical // 2, typical) if typical > 1 else (typical,)
