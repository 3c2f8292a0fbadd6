"""Configs for common purposes, each a function that returns a full one."""

from __future__ import annotations

from typing import Any

from pytest_transformer_validate.training.config import TrainingConfig


def quick_prototype(**settings: Any) -> TrainingConfig:
    """Three epochs at a high learning rate: does it train at all?"""
    preset = {"epochs": 3, "learning_rate": 5e-4, "batch_size": 8, "warmup_ratio": 0.05}
    preset |= {"early_stopping_patience": 2, "save_every_n_epochs": 1, "keep_best_only": True}
    return TrainingConfig(**{**preset, **settings})


def baseline(**settings: Any) -> TrainingConfig:
    """The defaults, compiled."""
    return TrainingConfig(**{"compile_mode": "default", **settings})


def production(**settings: Any) -> TrainingConfig:
    """Long, deterministic, exported at the end; 32 sequences of 256 an optimizer step."""
    preset: dict[str, Any] = {"epochs": 20, "learning_rate": 3e-5, "batch_size": 8}
    preset |= {"gradient_accumulation_steps": 4, "max_seq_len": 256, "deterministic": True}
    preset |= {"early_stopping_patience": 10, "compile_mode": "reduce-overhead"}
    preset |= {"export_bundle": True, "save_every_n_epochs": 2}
    return TrainingConfig(**{**preset, **settings})


def distributed(**settings: Any) -> TrainingConfig:
    """Four devices under DDP; 64 sequences of 256 an optimizer step."""
    preset: dict[str, Any] = {"epochs": 15, "learning_rate": 1e-4, "batch_size": 8}
    preset |= {"gradient_accumulation_steps": 2, "max_seq_len": 256, "strategy": "ddp"}
    preset |= {"devices": 4, "early_stopping_patience": 8, "compile_mode": "default"}
    return TrainingConfig(**{**preset, "save_every_n_epochs": 3, **settings})


def low_memory(**settings: Any) -> TrainingConfig:
    """Two sequences at a time on one device, on a part of the data."""
    preset: dict[str, Any] = {"batch_size": 2, "gradient_accumulation_steps": 8, "devices": 1}
    preset |= {"precision": "16-mixed", "max_train_samples": 10_000, "max_val_samples": 1_000}
    return TrainingConfig(**{**preset, "keep_best_only": True, **settings})
