"""Advice on data before it is trained on, in three layers.

Before training a sample of the data is looked at; the trainer looks at the first batches; the
collator only refuses empty ones. Lengths are those of the masks, where there are masks.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import warnings
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.optional import require
from pytest_transformer_validate.training.surroundings import somebody_there

if TYPE_CHECKING:
    from collections.abc import Iterable

TASK_MIN_SEQ_LEN = {
    "lm": 2,
    "causal_lm": 2,
    "language_modeling": 2,
    "masked_lm": 1,
    "seq2seq": 2,
    "classification": 1,
    "text_classification": 1,
    "vision_classification": 0,
    "vision_multilabel": 0,
}
SAMPLE = 1_000
FIRST_BATCHES = 10
MOST_SHORT = 0.01
OVERLAP = 100  # examples that are compared
# The rate below which a severity holds; a rate on a border is the worse one.
_SEVERITIES = ((0.10, "excellent"), (0.20, "good"), (0.40, "high"), (0.60, "very_high"))
_ADVICE = {
    "excellent": "few sequences are too short",
    "good": "some sequences are too short",
    "high": "many sequences are too short, which is normal for data like WikiText with its blanks",
    "very_high": "most of what is read is too short; look at how the data is split",
    "critical": "hardly anything would be left; the data is probably not what it should be",
}


@dataclass(frozen=True)
class LengthReport:
    """What a sample of the data says. Advice, not a gate: ``passed`` is always True.

    ``metrics``: ``filter_rate`` (part of the sample that is too short), ``sample_size``,
    ``valid_sequences``, ``filtered_sequences``, ``dataset_size`` (None for data without length).
    """

    severity: str
    message: str
    warnings: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    passed: bool = True


class SequenceLengthValidator:
    """Looks at a random sample of 1,000 examples.

    Args:
        min_seq_len: the shortest sequence that can be trained on, in tokens.
        max_filter_rate: above this part of too short ones there is a warning.
        field_name: where an example holds its tokens.
        seed: of the sample.
    """

    def __init__(
        self,
        min_seq_len: int,
        max_filter_rate: float = 0.05,
        field_name: str = "input_ids",
        seed: int = 0,
    ) -> None:
        self.min_seq_len = min_seq_len
        self.max_filter_rate = max_filter_rate
        self.field_name = field_name
        self.seed = seed

    def validate(self, data: Any) -> LengthReport:
        """The report. Where it is critical a person at a terminal or notebook is asked whether to
        go on; "no" raises ValueError, and without anybody to ask it is a warning."""
        size = len(data) if isinstance(data, Sized) else None
        sample = _sample(data, size, self.seed)
        short = sum(length_of(e, self.field_name) < self.min_seq_len for e in sample)
        rate = short / len(sample) if sample else 1.0
        severity = severity_of(rate)
        message = f"{rate:.1%} of {len(sample)} sampled sequences have fewer than "
        message += f"{self.min_seq_len} tokens: {_ADVICE[severity]}"
        said = []
        if rate > self.max_filter_rate:
            said.append(
                f"{rate:.1%} of the sequences are too short (allowed {self.max_filter_rate:.1%}); "
                f"filter_short_sequences(dataset, min_length={self.min_seq_len}) takes them out"
            )
        metrics = {"filter_rate": rate, "sample_size": len(sample), "dataset_size": size}
        metrics |= {"valid_sequences": len(sample) - short, "filtered_sequences": short}
        if severity == "critical":
            _ask(message)
        return LengthReport(severity, message, said, metrics)


def severity_of(rate: float) -> str:
    """``excellent`` below 10 %, ``good`` 20 %, ``high`` 40 %, ``very_high`` 60 %, ``critical``."""
    return next((name for border, name in _SEVERITIES if rate < border), "critical")


def length_of(example: Any, field_name: str = "input_ids") -> int:
    """The tokens of an example: by its mask, else by the length of its ids."""
    if not isinstance(example, Mapping):
        return len(example)
    mask = example.get("attention_mask")
    if mask is not None:
        return int(sum(int(kept) for kept in mask))
    if field_name not in example:
        raise ValueError(f"an example needs {field_name!r}; it has {', '.join(map(str, example))}")
    return len(example[field_name])


def filter_short_sequences(
    dataset: Any, min_length: int = 2, field: str = "input_ids", verbose: bool = True
) -> Any:
    """The examples with at least ``min_length`` tokens, in the kind of data that was given.

    Hugging Face datasets are filtered by the offsets of their lists (no example is read); PyTorch
    datasets become a ``Subset``; lists stay lists. ``verbose`` says how many were left out.
    """
    arrow = _has_lists(dataset, field)
    kept = (_kept_rows if arrow else _kept_by_reading)(dataset, min_length, field)
    if verbose:
        left_out = len(dataset) - len(kept)
        warnings.warn(
            f"{left_out} of {len(dataset)} sequences have fewer than {min_length} tokens and are "
            "left out",
            QualityWarning,
            stacklevel=2,
        )
    if arrow:
        return _selected(dataset, kept, f"{field} >= {min_length}")
    if hasattr(dataset, "select"):
        return dataset.select(kept)
    if isinstance(dataset, list | tuple):
        return type(dataset)(dataset[at] for at in kept)
    import torch

    return torch.utils.data.Subset(dataset, kept)


class QualityWarning(UserWarning):
    """Something about the data that a person should know."""


def check_first_batches(
    loader: Iterable[Mapping[str, Any]], task_type: str, longest: int | None = None
) -> None:
    """Look at the first 10 batches of a loader. Raises ValueError where more than 1 % of their
    sequences are too short for the task, counted by the mask, or one has more than ``longest``
    tokens. Warns (QualityWarning) where all examples have one class."""
    least = TASK_MIN_SEQ_LEN.get(task_type, 1)
    lengths: list[int] = []
    classes: list[int] = []
    for batch in itertools.islice(loader, FIRST_BATCHES):
        lengths += _lengths(batch)
        labels = batch.get("labels")
        classes += [] if labels is None or labels.dim() != 1 else labels.tolist()
    if len(classes) > 1 and len(set(classes)) == 1:
        warnings.warn(
            f"each of the first {len(classes)} examples has the label {classes[0]}: there is "
            "nothing to tell apart",
            QualityWarning,
            stacklevel=2,
        )
    if longest is not None and max(lengths, default=0) > longest:
        raise ValueError(
            f"a sequence has {max(lengths)} tokens and the model takes {longest}: cut what is "
            "tokenized already; texts are cut to max_seq_len"
        )
    short = sum(length < least for length in lengths)
    if lengths and short > MOST_SHORT * len(lengths):
        raise ValueError(
            f"{short} of the first {len(lengths)} sequences have fewer than {least} tokens, which "
            f"{task_type} needs; filter_short_sequences(dataset, min_length={least}) drops them"
        )


def warn_of_overlap(train: Any, val: Any) -> None:
    """Warn (QualityWarning) where the validation data is the training data."""
    if not (hasattr(train, "__len__") and hasattr(val, "__len__")) or len(train) != len(val):
        return
    picks = random.Random(0).sample(range(len(val)), min(OVERLAP, len(val)))
    if train is val or all(_alike(train[at], val[at]) for at in picks):
        warnings.warn(
            "the validation data is the training data: its loss says nothing about new examples",
            QualityWarning,
            stacklevel=2,
        )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    same: Any = one is other or one == other
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _lengths(batch: Mapping[str, Any]) -> list[int]:
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if mask is not None and mask.dim() == 2:
        found: list[int] = mask.sum(-1).tolist()
        return found
    return [] if ids is None else [ids.shape[1]] * len(ids)


def _kept_by_reading(dataset: Any, least: int, name: str) -> list[int]:
    return [at for at in range(len(dataset)) if length_of(dataset[at], name) >= least]


def _has_lists(dataset: Any, name: str) -> bool:
    """Whether data is a Hugging Face dataset whose column ``name`` holds Arrow lists."""
    if not (hasattr(dataset, "select") and name in getattr(dataset, "column_names", ())):
        return False
    types = require("pyarrow", extra="train").types
    kind = dataset.data.column(name).type
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in lists)


def _kept_rows(dataset: Any, least: int, name: str) -> Any:
    """The rows of the table to keep, an Arrow array, by the offsets of the lists alone; a mask
    column counts where there is one."""
    pyarrow, compute = (require(n, extra="train") for n in ("pyarrow", "pyarrow.compute"))
    lengths = compute.list_value_length(dataset.data.column(name))
    if "attention_mask" in dataset.column_names:
        sums = map(_sums, dataset.data.column("attention_mask").chunks)
        lengths = pyarrow.chunked_array(sums, pyarrow.int64())
    long = compute.fill_null(compute.greater_equal(lengths, least), False)
    if dataset._indices is None:
        return compute.indices_nonzero(long)
    rows = dataset._indices.column(0)
    return rows.filter(long.take(rows))


def _sums(lists: Any) -> Any:
    """The sum of each of some lists, by prefix sums over their flat values; of null, 0."""
    numpy, pyarrow = require("numpy", extra="train"), require("pyarrow", extra="train")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    before = numpy.concatenate([[0], numpy.cumsum(values, dtype=numpy.int64)])
    ends = numpy.cumsum(lengths, dtype=numpy.int64)
    return pyarrow.array(before[ends] - before[ends - lengths])


def _selected(dataset: Any, rows: Any, why: str) -> Any:
    """``dataset.select`` for an Arrow array of rows of the table, which is neither read, copied,
    nor hashed: that would take ten times as long as finding them."""
    pyarrow, datasets = require("pyarrow", extra="train"), require("datasets", extra="train")
    known = f"{dataset._fingerprint} {why}"
    found = datasets.Dataset(
        dataset.data,
        info=dataset.info.copy(),
        split=dataset.split,
        indices_table=datasets.table.InMemoryTable(pyarrow.table({"indices": rows})),
        fingerprint=hashlib.sha256(known.encode()).hexdigest()[:16],
    )
    found.set_format(**dataset.format)
    return found


def _sample(data: Any, size: int | None, seed: int) -> list[Any]:
    if size is None:
        return list(itertools.islice(iter(data), SAMPLE))
    picks = random.Random(seed).sample(range(size), min(SAMPLE, size))
    return [data[at] for at in sorted(picks)]


def _ask(message: str) -> None:
    """Ask a person whether to go on. Raises ValueError for no."""
    if not somebody_there():
        warnings.warn(message, QualityWarning, stacklevel=3)
        return
    answer = input(f"{message}\nContinue? (yes/no) ").strip().lower()
    if answer not in {"y", "yes"}:
        raise ValueError(f"stopped: {message}")
