"""What a training run is told: groups of settings that are valid once they are made.

``TrainingConfig(learning_rate=1e-4, epochs=3)`` takes every setting by its flat name and sorts it
into the group that owns it; ``config.optim.learning_rate`` and ``config.learning_rate`` are the
same number. All faults are reported at once.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

CONFIG_VERSION = "5.0"
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
STRATEGIES = ("auto", "ddp", "fsdp")
EXPORT_FORMATS = ("onnx", "torchscript", "pytorch")
LARGEST_SEED = 2**32 - 1

# Other names under which saved configs and older code know a setting, or a value of one.
ALIASES = {
    "max_grad_norm": "gradient_clip_norm",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "checkpoint_frequency": "save_every_n_epochs",
}
_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "fsdp_native": "fsdp"}


class ConfigWarning(UserWarning):
    """A setting does something else than it says, or nothing."""


@dataclass(frozen=True)
class Rule:
    """What a value has to be: ``allowed`` in words, and whether ``accepts`` it."""

    allowed: str
    accepts: Callable[[Any], bool]


def setting(default: Any, rule: Rule) -> Any:
    """A field with a default and its rule."""
    return field(default=default, metadata={"rule": rule})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number within bounds that belong to it."""
    upper = "" if most is None else f" to {most}"
    return Rule(
        f"a whole number from {least}{upper or ' on'}",
        lambda v: _whole(v) and least <= v and (most is None or v <= most),
    )


def number(least: float, below: float = math.inf, *, open_below: bool = False) -> Rule:
    """A finite number from ``least`` (or above it), smaller than or equal to ``below``."""
    start = f"above {least:g}" if open_below else f"from {least:g}"
    end = "" if below == math.inf else f" to {below:g}"

    def accepts(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        inside = least < value if open_below else least <= value
        return math.isfinite(value) and inside and value <= below

    return Rule(f"a number {start}{end}", accepts)


def one_of(*known: str) -> Rule:
    """One of a few texts."""
    return Rule(
        f"one of {', '.join(map(repr, known))}", lambda v: any(v is k or v == k for k in known)
    )


def optional(rule: Rule) -> Rule:
    """``None``, or what ``rule`` accepts."""
    return Rule(f"{rule.allowed}, or None", lambda v: v is None or rule.accepts(v))


FLAG = Rule("True or False", lambda v: isinstance(v, bool))
TEXT = Rule("a text that is not empty", lambda v: isinstance(v, str) and bool(v.strip()))
ANY_TEXT = Rule("a text", lambda v: isinstance(v, str))
MAYBE = optional(TEXT)
COUNT = optional(whole(1))
FORMATS = Rule(
    f"a list out of {', '.join(EXPORT_FORMATS)}",
    lambda v: isinstance(v, tuple) and all(f in EXPORT_FORMATS for f in v),
)
DEVICES = Rule("'auto' or a whole number from 1 on", lambda v: v == "auto" or whole(1).accepts(v))


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The optimizer and its schedule: AdamW, linear warm-up, then cosine decay to zero.

    ``warmup_ratio`` is the part of all optimizer steps that the learning rate rises in;
    ``gradient_clip_norm`` bounds the norm of all gradients together, 0 or None: no bound.
    """

    learning_rate: float = setting(5e-5, number(0, open_below=True))
    weight_decay: float = setting(0.01, number(0))
    warmup_ratio: float = setting(0.1, number(0, 1))
    gradient_clip_norm: float | None = setting(1.0, optional(number(0)))


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How often, how much at once, and when to stop.

    ``batch_size`` is that of one device and one micro-batch; ``gradient_accumulation_steps``
    micro-batches make one optimizer step. ``early_stopping_patience`` counts epochs in which
    ``early_stopping_metric`` did not get better (None: never stops early).
    """

    epochs: int = setting(10, whole(1))
    batch_size: int = setting(4, whole(1))
    gradient_accumulation_steps: int = setting(1, whole(1))
    early_stopping_patience: int | None = setting(5, COUNT)
    early_stopping_metric: str = setting("val/loss", TEXT)
    early_stopping_mode: str = setting("min", one_of("min", "max"))
    random_seed: int = setting(42, whole(0, LARGEST_SEED))
    deterministic: bool = setting(False, FLAG)


@dataclass(frozen=True, kw_only=True)
class Data:
    """How much of the data is used.

    ``validation_split`` of the training data is set aside where no validation data is given;
    texts are cut to ``max_seq_len`` tokens (None: to what the model takes).
    """

    validation_split: float = setting(0.1, number(0, 0.5))
    max_train_samples: int | None = setting(None, COUNT)
    max_val_samples: int | None = setting(None, COUNT)
    max_seq_len: int | None = setting(None, COUNT)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Precision, compilation and devices.

    ``use_amp=False`` trains in float32 whatever ``precision`` says of a mixed one.
    """

    use_amp: bool = setting(True, FLAG)
    precision: str = setting("bf16-mixed", one_of(*PRECISIONS))
    activation_checkpointing: bool = setting(False, FLAG)
    compile_mode: str | None = setting(None, optional(one_of(*COMPILE_MODES)))
    compile_fullgraph: bool = setting(False, FLAG)
    compile_dynamic: bool = setting(True, FLAG)
    strategy: str = setting("auto", one_of(*STRATEGIES))
    devices: int | str = setting("auto", DEVICES)
    num_nodes: int = setting(1, whole(1))


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where and how often states are saved; the last epoch always is.

    ``checkpoint_dir=None`` saves nothing.
    """

    checkpoint_dir: str | None = setting("./checkpoints", MAYBE)
    save_every_n_epochs: int = setting(5, whole(1))
    keep_best_only: bool = setting(False, FLAG)
    resume_from_checkpoint: str | None = setting(None, MAYBE)


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What the run is called and who is told about it.

    ``console`` writes a line an epoch, ``metrics_csv`` a row an epoch to that file,
    ``experiment_db`` everything to that SQLite file (see ``ExperimentDB``); ``use_wandb`` sends
    it to Weights & Biases, or keeps it in the folder ``wandb`` beside ``checkpoint_dir`` where
    there is no key.
    """

    run_name: str | None = setting(None, MAYBE)
    console: bool = setting(True, FLAG)
    metrics_csv: str | None = setting(None, MAYBE)
    experiment_db: str | None = setting(None, MAYBE)
    use_wandb: bool = setting(False, FLAG)
    wandb_project: str | None = setting(None, MAYBE)
    wandb_entity: str | None = setting(None, MAYBE)
    notes: str = setting("", ANY_TEXT)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is written after training."""

    export_bundle: bool = setting(False, FLAG)
    export_formats: tuple[str, ...] = setting(("onnx", "torchscript"), FORMATS)
    export_dir: str = setting("exports", TEXT)


@dataclass(frozen=True, kw_only=True)
class About:
    """Facts about model and data that a saved config carries; nothing is built from them."""

    task_name: str = setting("lm_tiny", TEXT)
    model_name: str | None = setting(None, MAYBE)
    model_type: str | None = setting(None, MAYBE)
    vocab_size: int | None = setting(None, COUNT)
    d_model: int | None = setting(None, COUNT)
    num_layers: int | None = setting(None, optional(whole(0)))
    num_heads: int | None = setting(None, COUNT)
    d_ff: int | None = setting(None, COUNT)
    dropout: float | None = setting(None, optional(number(0, 1)))
    dataset_name: str | None = setting(None, MAYBE)
    dataset_split: str | None = setting(None, MAYBE)
    dataset_subset: str | None = setting(None, MAYBE)
    eval_dataset_id: str | None = setting(None, MAYBE)
    created_at: str | None = setting(None, MAYBE)


GROUPS: dict[str, type] = {
    "optim": Optimization,
    "loop": Loop,
    "data": Data,
    "hardware": Hardware,
    "checkpoint": Checkpointing,
    "tracking": Tracking,
    "export": Export,
    "about": About,
}
OWNER = {f.name: name for name, group in GROUPS.items() for f in dataclasses.fields(group)}
RULES: dict[str, Rule] = {
    f.name: f.metadata["rule"] for group in GROUPS.values() for f in dataclasses.fields(group)
}
DEFAULTS = {f.name: f.default for group in GROUPS.values() for f in dataclasses.fields(group)}

# A setting that does nothing, as long as another one has its default.
_NEEDS = {
    "compile_fullgraph": ("compile_mode", "compile_mode is None"),
    "compile_dynamic": ("compile_mode", "compile_mode is None"),
    "wandb_project": ("use_wandb", "use_wandb is False"),
    "wandb_entity": ("use_wandb", "use_wandb is False"),
    "export_formats": ("export_bundle", "export_bundle is False"),
    "export_dir": ("export_bundle", "export_bundle is False"),
    "early_stopping_metric": ("early_stopping_patience", "early_stopping_patience is None"),
    "early_stopping_mode": ("early_stopping_patience", "early_stopping_patience is None"),
    "num_nodes": ("strategy", "strategy is 'auto', which is one node"),
}


class TrainingConfig:
    """All settings of a run: immutable, valid once made, read by group or by flat name.

    Args:
        **settings: any field of the groups in this module by its name; also
            ``max_grad_norm`` (``gradient_clip_norm``), ``accumulate_grad_batches``
            (``gradient_accumulation_steps``) and ``checkpoint_frequency``
            (``save_every_n_epochs``). ``precision`` takes ``32``, ``16`` and ``bf16`` too.

    Raises:
        ConfigError: a ValueError that lists every fault: what was given, what is allowed, and
            for an unknown name the nearest known one.
    """

    optim: Optimization
    loop: Loop
    data: Data
    hardware: Hardware
    checkpoint: Checkpointing
    tracking: Tracking
    export: Export
    about: About

    def __init__(self, **settings: Any) -> None:
        values = _canonical(settings)
        values.setdefault("created_at", time.strftime("%Y-%m-%dT%H:%M:%S"))
        version = values.pop("config_version", CONFIG_VERSION)
        faults = [*_faults(values)]
        if version != CONFIG_VERSION:
            faults.append(f"config_version: {CONFIG_VERSION!r} is what is made, given {version!r}")
        if faults:
            raise ConfigError(faults)
        for name, group in GROUPS.items():
            own = {key: value for key, value in values.items() if OWNER[key] == name}
            object.__setattr__(self, name, group(**own))

    def __getattr__(self, name: str) -> Any:
        if name == "config_version":
            return CONFIG_VERSION
        if name not in OWNER:
            raise AttributeError(f"TrainingConfig has no setting {name!r}{_nearest(name)}")
        return getattr(getattr(self, OWNER[name]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a TrainingConfig does not change; make another: config.replace({name}={value!r})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainingConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in GROUPS))

    def __repr__(self) -> str:
        changed = {k: v for k, v in self._flat().items() if v != DEFAULTS[k] and k != "created_at"}
        return f"TrainingConfig({', '.join(f'{k}={v!r}' for k, v in changed.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._flat(),)

    def replace(self, **settings: Any) -> TrainingConfig:
        """The same config with other ``settings``. Raises ConfigError."""
        return TrainingConfig(**{**self._flat(), **_canonical(settings)})

    def validate(self) -> bool:
        """True: a config that can be made is valid."""
        return True

    def save(self, path: str | Path | None = None) -> Path:
        """Write the config as JSON and return where; see ``config_file.save_config``."""
        from pytest_transformer_validate.training.config_file import save_config

        return save_config(self, path)

    @staticmethod
    def load(path: str | Path) -> TrainingConfig:
        """The config in a file of this or an older version. Raises ConfigError."""
        from pytest_transformer_validate.training.config_file import load_config

        return load_config(path)

    def to_dict(self) -> dict[str, Any]:
        """Every setting by its flat name, and ``config_version``, as JSON types."""
        flat = {k: list(v) if isinstance(v, tuple) else v for k, v in self._flat().items()}
        return {**flat, "config_version": CONFIG_VERSION}

    @property
    def effective_precision(self) -> str:
        """The precision that a run uses: ``precision``, or ``32-true`` without ``use_amp``."""
        return (
            "32-true" if not self.use_amp and self.precision.endswith("mixed") else self.precision
        )

    def without_effect(self) -> Iterator[str]:
        """What was set and does nothing in a run, one line each."""
        for name, (other, why) in _NEEDS.items():
            idle = getattr(self, other) == DEFAULTS[other] or getattr(self, other) is None
            if other == "early_stopping_patience":
                idle = self.early_stopping_patience is None
            if idle and getattr(self, name) != DEFAULTS[name]:
                yield f"{name}={getattr(self, name)!r} has no effect: {why}"
        if self.export_bundle:
            yield "export_bundle=True has no effect: this version writes no bundle"
        if self.checkpoint_dir is None and self.keep_best_only:
            yield "keep_best_only=True has no effect: checkpoint_dir is None"
        if self.effective_precision != self.precision != DEFAULTS["precision"]:
            yield f"precision={self.precision!r} has no effect: use_amp is False"

    def _flat(self) -> dict[str, Any]:
        return {name: getattr(getattr(self, group), name) for name, group in OWNER.items()}


def _restored(settings: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig(**settings)


def _canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their own names, with values in their one form."""
    values = {}
    for name, value in settings.items():
        own = ALIASES.get(name, name)
        if own != name and own in settings:
            raise ConfigError([f"{name} is another name of {own}; give one of them"])
        values[own] = value
    for name in ("precision", "strategy"):
        if name in values and not isinstance(values[name], bool):
            values[name] = _SHORT.get(str(values[name]), values[name])
    if isinstance(values.get("export_formats"), list):
        values["export_formats"] = tuple(values["export_formats"])
    return values


def _faults(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name not in RULES:
            yield f"{name}: unknown setting{_nearest(name)}"
        elif not RULES[name].accepts(value):
            yield f"{name}: must be {RULES[name].allowed}, given {value!r}"


def _nearest(name: str) -> str:
    return did_you_mean(name, [*RULES, *ALIASES])
