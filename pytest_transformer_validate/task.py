"""What a model is for, and so what has to be true of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

TASKS = ("causal_lm", "masked_lm", "seq2seq", "classification", "vision_classification")
ALIASES = {"lm": "causal_lm", "text_classification": "classification"}
FAMILIES = ("decoder_only", "encoder_only", "encoder_decoder")
IGNORE_INDEX = -100  # what torch's cross_entropy leaves out, and Hugging Face's collators write

PER_TOKEN = frozenset({"causal_lm", "masked_lm", "seq2seq"})

_FAMILY = {"causal_lm": "decoder_only", "seq2seq": "encoder_decoder"}
_TEXT = ("input_ids", "attention_mask")
_INPUTS = {
    "seq2seq": (*_TEXT, "decoder_input_ids"),
    "vision_classification": ("pixel_values",),
}


@dataclass(frozen=True)
class TaskSpec:
    """A task: what a model reads, what it is trained to give, and where that is known from.

    ``task_type`` is one of TASKS or ALIASES. ``origin`` is the words that reports print:
    ``declared by --tb-task``, ``config.json``, ``architectures``, ``assumed``. What is left out
    follows from ``task_type``: ``model_family`` (one of FAMILIES), ``input_fields``, ``modality``
    (``text`` or ``vision``), ``loss_type``, ``metrics``. Labels equal to ``ignore_index`` are not
    trained; ``label_smoothing`` is that of cross entropy, 0 to 1. ``special_tokens``,
    ``input_schema``, ``output_schema``, ``preprocessing_config`` and ``additional_config``
    describe the data; nothing is derived from them. Raises SpecError.
    """

    task_type: str
    origin: str = "declared"
    name: str = field(default="", kw_only=True)
    model_family: str = field(default="", kw_only=True)
    input_fields: tuple[str, ...] = field(default=(), kw_only=True)
    target_field: str = field(default="labels", kw_only=True)
    loss_type: str = field(default="cross_entropy", kw_only=True)
    metrics: tuple[str, ...] = field(default=(), kw_only=True)
    modality: str = field(default="", kw_only=True)
    ignore_index: int = field(default=IGNORE_INDEX, kw_only=True)
    label_smoothing: float = field(default=0.0, kw_only=True)
    special_tokens: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    input_schema: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    output_schema: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    preprocessing_config: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    additional_config: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        task = canonical_task(self.task_type)
        vision = task == "vision_classification"
        derived = {
            "name": task,
            "model_family": _FAMILY.get(task, "encoder_only"),
            "input_fields": _INPUTS.get(task, _TEXT),
            "metrics": ("loss", *["perplexity"] * (task in PER_TOKEN), "accuracy"),
            "modality": "vision" if vision else "text",
        }
        values = {key: getattr(self, key) or value for key, value in derived.items()}
        for key in ("input_fields", "metrics"):
            values[key] = tuple(values[key])
        for key, value in {**values, "task_type": task}.items():
            object.__setattr__(self, key, value)
        self._refuse_wrong(vision)

    def _refuse_wrong(self, vision: bool) -> None:
        rules = (
            ("model_family", FAMILIES, self.model_family),
            ("modality", ("vision",) if vision else ("text",), self.modality),
            ("loss_type", ("cross_entropy",), self.loss_type),
        )
        for name, known, value in rules:
            if value not in known:
                allowed = " or ".join(known)
                raise SpecError(f"{name} of {self.task_type} must be {allowed}, given {value!r}")
        if not 0 <= self.label_smoothing < 1:
            raise SpecError(
                f"label_smoothing must be from 0 to below 1, given {self.label_smoothing!r}"
            )

    def __str__(self) -> str:
        if self.origin == "assumed":
            return f"{self.task_type} (assumed; declare with --tb-task)"
        return f"{self.task_type} ({self.origin})"

    @property
    def reads_tokens(self) -> bool:
        """Whether the input is token ids."""
        return self.task_type != "vision_classification"

    @property
    def per_token(self) -> bool:
        """Whether there is one output a token: (B, T, V)."""
        return self.task_type in PER_TOKEN

    @property
    def shifts(self) -> bool:
        """Whether the output at a position is held against the label of the next one."""
        return self.task_type == "causal_lm"

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON types; ``from_dict`` gives the spec back."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """The spec that ``to_dict`` gave. Raises SpecError for a key that is not a field."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise SpecError(f"a TaskSpec has no {key!r}; known are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def language_modeling(
        cls, name: str = "lm_tiny", vocab_size: int | None = None, max_seq_len: int | None = None
    ) -> TaskSpec:
        """Causal language modelling."""
        sizes = {"vocab_size": vocab_size, "max_seq_len": max_seq_len}
        known = {key: size for key, size in sizes.items() if size is not None}
        return cls("causal_lm", name=name, additional_config=known)

    @classmethod
    def vision_tiny(cls, name: str = "vision_tiny", num_classes: int = 4) -> TaskSpec:
        """Classification of images of 3x32x32."""
        return cls(
            "vision_classification",
            name=name,
            input_schema={"image_size": [3, 32, 32]},
            output_schema={"num_classes": num_classes},
        )


def get_default_task_specs() -> dict[str, TaskSpec]:
    """The specs called ``lm_tiny``, ``cls_tiny``, ``seq2seq_tiny`` and ``vision_tiny``."""
    classes = TaskSpec("classification", name="cls_tiny", output_schema={"num_classes": 2})
    specs = (
        TaskSpec.language_modeling(),
        classes,
        TaskSpec("seq2seq", name="seq2seq_tiny"),
        TaskSpec.vision_tiny(),
    )
    return {spec.name: spec for spec in specs}


def canonical_task(name: str) -> str:
    """The task that ``name`` means. Raises SpecError for an unknown one, naming the nearest."""
    task = ALIASES.get(name, name)
    if task not in TASKS:
        known = [*TASKS, *ALIASES]
        hint = did_you_mean(name, known)
        raise SpecError(f"unknown task {name!r}; known are {', '.join(known)}{hint}")
    return task
