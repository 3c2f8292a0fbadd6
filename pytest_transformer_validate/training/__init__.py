"""The bundled trainer: knows no pytest and no checks.

Nothing heavy is imported here: the names below load their modules when first used, so that what
needs PyTorch Lightning is loaded by those who use it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_transformer_validate.task import TaskSpec, get_default_task_specs
    from pytest_transformer_validate.training.builder import TrainingConfigBuilder
    from pytest_transformer_validate.training.config import TrainingConfig
    from pytest_transformer_validate.training.config_file import compare_configs
    from pytest_transformer_validate.training.coordinator import TrainingCoordinator
    from pytest_transformer_validate.training.data.choose import register_collator
    from pytest_transformer_validate.training.data.collators import (
        ClassificationDataCollator,
        LanguageModelingDataCollator,
        Seq2SeqDataCollator,
        VisionDataCollator,
    )
    from pytest_transformer_validate.training.data.lightning import SimpleDataModule
    from pytest_transformer_validate.training.data.module import UniversalDataModule
    from pytest_transformer_validate.training.data.quality import (
        TASK_MIN_SEQ_LEN,
        SequenceLengthValidator,
        filter_short_sequences,
    )
    from pytest_transformer_validate.training.data.tokens import CharacterTokenizer
    from pytest_transformer_validate.training.hooks import TrainingHooks
    from pytest_transformer_validate.training.metrics.experiment_db import ExperimentDB
    from pytest_transformer_validate.training.metrics.tracker import MetricsTracker
    from pytest_transformer_validate.training.presets import (
        baseline,
        distributed,
        low_memory,
        production,
        quick_prototype,
    )
    from pytest_transformer_validate.training.seeds import set_random_seed
    from pytest_transformer_validate.training.trainer import Trainer

_ROOT = __name__.rpartition(".")[0]
_HOMES = {
    "CharacterTokenizer": "training.data.tokens",
    "ClassificationDataCollator": "training.data.collators",
    "ExperimentDB": "training.metrics.experiment_db",
    "LanguageModelingDataCollator": "training.data.collators",
    "MetricsTracker": "training.metrics.tracker",
    "Seq2SeqDataCollator": "training.data.collators",
    "SequenceLengthValidator": "training.data.quality",
    "SimpleDataModule": "training.data.lightning",
    "TASK_MIN_SEQ_LEN": "training.data.quality",
    "TaskSpec": "task",
    "Trainer": "training.trainer",
    "TrainingConfig": "training.config",
    "TrainingConfigBuilder": "training.builder",
    "TrainingCoordinator": "training.coordinator",
    "TrainingHooks": "training.hooks",
    "UniversalDataModule": "training.data.module",
    "VisionDataCollator": "training.data.collators",
    "baseline": "training.presets",
    "compare_configs": "training.config_file",
    "distributed": "training.presets",
    "filter_short_sequences": "training.data.quality",
    "get_default_task_specs": "task",
    "low_memory": "training.presets",
    "production": "training.presets",
    "quick_prototype": "training.presets",
    "register_collator": "training.data.choose",
    "set_random_seed": "training.seeds",
}

__all__ = [
    "TASK_MIN_SEQ_LEN",
    "CharacterTokenizer",
    "ClassificationDataCollator",
    "ExperimentDB",
    "LanguageModelingDataCollator",
    "MetricsTracker",
    "Seq2SeqDataCollator",
    "SequenceLengthValidator",
    "SimpleDataModule",
    "TaskSpec",
    "Trainer",
    "TrainingConfig",
    "TrainingConfigBuilder",
    "TrainingCoordinator",
    "TrainingHooks",
    "UniversalDataModule",
    "VisionDataCollator",
    "baseline",
    "compare_configs",
    "distributed",
    "filter_short_sequences",
    "get_default_task_specs",
    "low_memory",
    "production",
    "quick_prototype",
    "register_collator",
    "set_random_seed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{_ROOT}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
