"""A config made in steps: a thin chain over TrainingConfig."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training import presets
from pytest_transformer_validate.training.config import ALIASES, GROUPS, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable


def _of(*groups: str) -> frozenset[str]:
    return frozenset(f.name for name in groups for f in dataclasses.fields(GROUPS[name]))


_DATASET = frozenset({"dataset_name", "dataset_split", "dataset_subset", "eval_dataset_id"})
_SCHEDULE = frozenset({"warmup_ratio"})
_REPRODUCIBILITY = frozenset({"random_seed", "deterministic"})
# A setting that belongs to two subjects is taken by the steps of both.
_SUBJECTS = {
    "model": _of("about") - _DATASET - {"created_at"} | {"max_seq_len"},
    "training": _of("loop", "optim") - _REPRODUCIBILITY | {"validation_split"},
    "optimizer": _of("optim") - _SCHEDULE,
    "scheduler": _SCHEDULE,
    "hardware": _of("hardware"),
    "logging": _of("tracking"),
    "checkpointing": _of("checkpoint") | {"frequency"},
    "export": _of("export"),
    "reproducibility": _REPRODUCIBILITY,
    "dataset": _DATASET | _of("data"),
    "optimization": frozenset({"compile_mode", "gradient_accumulation_steps"}),
}
_OWN_NAMES = {"frequency": "save_every_n_epochs"}


class TrainingConfigBuilder:
    """Collects settings; every step returns a new builder, ``build()`` the config.

    ``TrainingConfigBuilder(**start)`` starts from settings. Steps take the settings of their
    subject by name: ``with_model``, ``with_training``, ``with_optimizer``, ``with_scheduler``,
    ``with_hardware``, ``with_logging``, ``with_checkpointing``, ``with_export``,
    ``with_reproducibility``, ``with_dataset``, ``with_optimization``. A setting of another subject
    raises ConfigError; values are checked by ``build()``.
    """

    def __init__(self, **start: Any) -> None:
        self._settings = start

    def __getattr__(self, name: str) -> Callable[..., TrainingConfigBuilder]:
        subject = name.removeprefix("with_")
        if name == subject or subject not in _SUBJECTS:
            raise AttributeError(f"TrainingConfigBuilder has no step {name!r}")
        return lambda **settings: self._with(subject, settings)

    @classmethod
    def from_config(cls, config: TrainingConfig) -> TrainingConfigBuilder:
        """A builder that starts from ``config``."""
        start = config.to_dict()
        del start["config_version"], start["created_at"]
        return cls(**start)

    @classmethod
    def quick_prototype(cls) -> TrainingConfigBuilder:
        """A builder that starts from this preset."""
        return cls.from_config(presets.quick_prototype())

    @classmethod
    def baseline(cls) -> TrainingConfigBuilder:
        """A builder that starts from this preset."""
        return cls.from_config(presets.baseline())

    @classmethod
    def production(cls) -> TrainingConfigBuilder:
        """A builder that starts from this preset."""
        return cls.from_config(presets.production())

    @classmethod
    def distributed(cls) -> TrainingConfigBuilder:
        """A builder that starts from this preset."""
        return cls.from_config(presets.distributed())

    @classmethod
    def low_memory(cls) -> TrainingConfigBuilder:
        """A builder that starts from this preset."""
        return cls.from_config(presets.low_memory())

    def fast(self) -> TrainingConfigBuilder:
        """The settings of the preset ``quick_prototype``, where nothing else was said."""
        return self._below(presets.quick_prototype())

    def quality(self) -> TrainingConfigBuilder:
        """The settings of the preset ``production``, where nothing else was said."""
        return self._below(presets.production())

    def build(self) -> TrainingConfig:
        """The config. Raises ConfigError that lists every fault."""
        return TrainingConfig(**self._settings)

    def _below(self, preset: TrainingConfig) -> TrainingConfigBuilder:
        base = TrainingConfigBuilder.from_config(preset)._settings
        return TrainingConfigBuilder(**{**base, **self._settings})

    def _with(self, subject: str, settings: dict[str, Any]) -> TrainingConfigBuilder:
        known = _SUBJECTS[subject]
        strange = [name for name in settings if ALIASES.get(name, name) not in known]
        if strange:
            allowed = ", ".join(sorted(known))
            raise ConfigError([f"{name}: with_{subject} takes {allowed}" for name in strange])
        own = {_OWN_NAMES.get(name, name): value for name, value in settings.items()}
        return TrainingConfigBuilder(**{**self._settings, **own})
