"""A model's config.json: checked, flattened, and ready to give constructor arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.wording import clipped, in_gib, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POSITIVE = (
    "vocab_size",
    "d_model",
    "nhead",
    "max_seq_len",
    "seq_length",
    "max_batch_size",
)
COUNTS = ("num_layers",)
LARGEST = 2**31 - 1
_BEYOND = 10**18

# What declares something about the model as a whole is never taken from one of its nodes.
_DECLARATIONS = frozenset(
    {"architectures", "expect_fail", "model_name", "model_type", "nodes", "task", "version"}
)


@dataclass(frozen=True)
class Settings:
    """What is known about a model before it is built.

    ``whole`` is what a parameter called ``config`` receives; ``place`` says in errors where the
    values are from, or where they were looked for.
    """

    config: ModelConfig = field(default_factory=ModelConfig)
    whole: Any = None
    place: str = "no configuration"
    expect_fail: Mapping[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is no configuration at all."""
        return self.whole is None


def read_settings(path: Path) -> Settings:
    """The settings in a config.json. Raises SourceError."""
    values = flatten(read_object(path), path)
    check_numbers(values, path)
    config = ModelConfig(values)
    return Settings(config, config, shown(path), read_expect_fail(values, path))


def given_settings(config: Any) -> Settings:
    """Settings of a configuration object that a person passed."""
    if config is None:
        return Settings()
    return Settings(ModelConfig(config), config, "the given config")


def flatten(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Lift what a graph's nodes agree about to the top; ``seq_length`` gives ``max_seq_len``.

    What the top level says is not changed.
    """
    lifted, disputed = _lift(values.get("nodes"), path)
    flat = {**lifted, **values}
    if "seq_length" in flat and "max_seq_len" not in flat and "max_seq_len" not in disputed:
        flat["max_seq_len"] = flat["seq_length"]
    return flat


def _lift(nodes: Any, path: Path) -> tuple[dict[str, Any], set[str]]:
    lifted: dict[str, Any] = {}
    disputed: set[str] = set()
    if not isinstance(nodes, list):
        return lifted, disputed
    for at, node in enumerate(nodes):
        params = node.get("params") if isinstance(node, dict) else None
        if params is None:
            continue
        if not isinstance(params, dict):
            raise SourceError(
                f"{shown(path)}, key nodes[{at}].params: must be an object, "
                f"given {clipped(repr(params), 40)}"
            )
        check_numbers(params, path, f"nodes[{at}].params.")
        for key, value in params.items():
            if key in lifted and not _same(lifted[key], value):
                disputed.add(key)
            lifted.setdefault(key, value)
    left_out = disputed | _DECLARATIONS
    return {key: value for key, value in lifted.items() if key not in left_out}, disputed


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def check_numbers(values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Raise SourceError for a size that is no positive whole number; ``null`` says nothing."""
    for keys, smallest in ((POSITIVE, 1), (COUNTS, 0)):
        for key in keys:
            value = values.get(key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is None or (whole and smallest <= value <= LARGEST):
                continue
            raise SourceError(
                f"{shown(path)}, key {prefix}{key}: must be a whole number from {smallest} to "
                f"{LARGEST}, given {_as_json(value)}{_taken(value)}"
            )


def _taken(value: Any) -> str:
    """What a number that is too large would cost."""
    if not isinstance(value, int) or not LARGEST < value < _BEYOND:
        return ""
    return f", of which one float32 each takes {in_gib(4 * value)}"


def _as_json(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return clipped(repr(value), 60)


def read_expect_fail(values: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The deviations that a config.json declares. Raises SourceError."""
    declared = values.get("expect_fail", {})
    rule = (
        f"{shown(path)}, key expect_fail: must be an object of check names and reasons, both "
        'texts: {"causality": "prefix LM by design"}'
    )
    if not isinstance(declared, dict):
        raise SourceError(f"{rule}; given {clipped(repr(declared), 60)}")
    for name, why in declared.items():
        if not (name.strip() and isinstance(why, str) and why.strip()):
            raise SourceError(f"{rule}; given {clipped(repr({name: why}), 60)}")
    return dict(declared)
