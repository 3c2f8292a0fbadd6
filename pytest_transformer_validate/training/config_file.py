"""Configs as files, of this version and of older ones, and what tells two configs apart."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training.config import CONFIG_VERSION, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_COMPARED = ("created_at", "run_name", "config_version")


def save_config(config: TrainingConfig, path: str | Path | None = None) -> Path:
    """Write ``config`` as JSON and return where: ``config_YYYYMMDD_HHMMSS.json`` by default."""
    place = Path(path or time.strftime("config_%Y%m%d_%H%M%S.json"))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    return place


def load_config(path: str | Path) -> TrainingConfig:
    """The config in a file, brought to this version. Raises ConfigError, FileNotFoundError."""
    place = Path(path)
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError([f"{place}: no JSON: {error}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{place}: must be a JSON object, given {type(values).__name__}"])
    return TrainingConfig(**upgraded(values))


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a saved config of any version up to this one, under today's names.

    Before 5.0 W&B was switched on by ``wandb_project`` alone, where ``use_wandb`` was not saved.
    Raises ConfigError for a newer version.
    """
    flat = dict(values)
    version = str(flat.pop("config_version", "1.0"))
    if _parts(version) > _parts(CONFIG_VERSION):
        raise ConfigError(
            [
                f"config_version: this is {CONFIG_VERSION}, the file is of {version}; "
                "update pytest-transformer-validate"
            ]
        )
    if _parts(version) < (5,) and flat.get("wandb_project"):
        flat.setdefault("use_wandb", True)
    return flat


def compare_configs(one: TrainingConfig, other: TrainingConfig) -> dict[str, dict[str, Any]]:
    """What ``other`` changes of ``one``: ``changed`` {name: (old, new)}, ``added`` and ``removed``
    {name: value} where one of the two says nothing (None). Times and run names do not count."""
    old, new = one.to_dict(), other.to_dict()
    found: dict[str, dict[str, Any]] = {"changed": {}, "added": {}, "removed": {}}
    for name in old:
        if name in _NOT_COMPARED or old[name] == new[name]:
            continue
        if old[name] is None:
            found["added"][name] = new[name]
        elif new[name] is None:
            found["removed"][name] = old[name]
        else:
            found["changed"][name] = (old[name], new[name])
    return found


def _parts(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise ConfigError(
            [f"config_version: must be like {CONFIG_VERSION}, given {version!r}"]
        ) from error
