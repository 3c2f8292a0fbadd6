"""Weights from a file, loaded strictly: every tensor has its place and every place its tensor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.safetensorsfile import check_safetensors
from pytest_transformer_validate.sources.wording import clipped, listed, reason, shown

if TYPE_CHECKING:
    from pathlib import Path

    import torch

CHECKPOINT_FILE = "model.safetensors"
PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt"})
_INSIDE = ("model_state_dict", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")


def load_weights(model: torch.nn.Module, path: Path) -> str:
    """Load the weights in ``path`` into ``model``; returns their short name for reports.

    ``path`` is a safetensors file, a ``.pt``, ``.pth`` or ``.bin`` file with a dict of tensors,
    or a checkpoint folder with model.safetensors. Raises SourceError.
    """
    file, label = _weights_file(path)
    tensors = read_tensors(file)
    expected = model.state_dict(keep_vars=True)
    tensors = _without_wrappers(tensors, expected)
    tied = _tied_groups(expected)
    _compare(tensors, expected, tied, file)
    for group in tied:
        _agree([key for key in group if key in tensors], tensors, file)
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise SourceError(f"{shown(file)} does not fit the model: {reason(error)}") from error
    return label


def _weights_file(path: Path) -> tuple[Path, str]:
    if path.is_dir():
        file = path / CHECKPOINT_FILE
        if not file.is_file():
            raise SourceError(f"no {CHECKPOINT_FILE} in {shown(path)}; name the weights' file")
        return file, f"{path.name}/{CHECKPOINT_FILE}"
    if not path.is_file():
        raise SourceError(f"no weights at {shown(path)}")
    return path, path.name


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name; runs nothing that the file holds."""
    if file.stat().st_size == 0:
        raise SourceError(f"{shown(file)} is empty")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in PICKLED:
        return _read_pickled(file)
    raise SourceError(f"{shown(file)}: weights end in .safetensors, .pt, .pth, .bin or .ckpt")


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    check_safetensors(file)
    safetensors = require("safetensors.torch", extra="hf")
    try:
        tensors: dict[str, torch.Tensor] = safetensors.load_file(str(file), device="cpu")
    except Exception as error:
        raise SourceError(
            f"{shown(file)} is no readable safetensors file: {reason(error)}"
        ) from error
    return tensors


def _read_pickled(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(
            f"{shown(file)} cannot be read as plain tensors: {refusal(error)}\n"
            "  only tensors are read, because a pickle can run code; save model.state_dict(), "
            "best as safetensors"
        ) from error
    for inner in (value, *(value.get(key) for key in _INSIDE if isinstance(value, Mapping))):
        if _is_state(inner):
            return {key: item for key, item in inner.items() if isinstance(item, torch.Tensor)}
    raise SourceError(
        f"{shown(file)} holds {type(value).__name__}, no dict of tensors by name, nor one under "
        f"{', '.join(_INSIDE)}"
    )


def refusal(error: Exception) -> str:
    """Why a file was not read; torch's advice to trust a pickle is left out."""
    text = str(error)
    if not text.startswith("Weights only load failed"):
        return reason(error)
    _, found, refused = text.partition("WeightsUnpickler error: ")
    parts = [part for part in text.split("\n\n") if part.strip() and "weights_only" not in part]
    return clipped(refused if found else parts[0] if parts else "no plain tensors")


def _is_state(value: Any) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and any(isinstance(item, torch.Tensor) for item in value.values())
        and all(
            isinstance(key, str)
            and (isinstance(item, torch.Tensor) or key.endswith("_extra_state"))
            for key, item in value.items()
        )
    )


def _without_wrappers(
    tensors: dict[str, torch.Tensor], expected: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Strip what torch.compile and DataParallel put before every key."""
    while not all(key in expected for key in tensors):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None)
        if prefix is None:
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _tied_groups(expected: Mapping[str, Any]) -> list[list[str]]:
    """The keys that are one tensor in the model, where there are several for one."""
    groups: dict[object, list[str]] = {}
    for key, value in expected.items():
        groups.setdefault(_identity(value), []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def _identity(value: Any) -> object:
    if _is_unmade(value) or not value.numel() or value.is_meta:
        return id(value)
    storage = value.untyped_storage().data_ptr()
    return (storage, value.storage_offset(), tuple(value.shape), tuple(value.stride()))


def _is_unmade(value: Any) -> bool:
    """Whether ``value`` has no shape yet: no tensor, or a lazy parameter."""
    import torch

    return not isinstance(value, torch.Tensor) or torch.nn.parameter.is_lazy(value)


def _compare(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, Any],
    tied: list[list[str]],
    file: Path,
) -> None:
    given_by_tie = {key for group in tied if any(k in tensors for k in group) for key in group}
    made = {key for key, value in expected.items() if not key.endswith("_extra_state")}
    missing = [key for key in made if key not in tensors and key not in given_by_tie]
    unexpected = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} {_shape(value)} for {_shape(expected[key])}"
        for key, value in tensors.items()
        if key in expected and not _is_unmade(expected[key]) and value.shape != expected[key].shape
    ]
    lines = difference(sorted(missing), unexpected, shapes)
    if lines:
        raise SourceError(
            "\n".join([f"{shown(file)} does not fit the model; nothing was loaded", *lines])
        )


def difference(missing: list[str], unexpected: list[str], shapes: list[str]) -> list[str]:
    """One line for each way in which weights and a model differ, with the first five keys."""
    titles = ("missing in the file", "unexpected in the file", "of another shape")
    return [
        f"  {len(keys)} {title}: {listed(keys, 5)}"
        for title, keys in zip(titles, (missing, unexpected, shapes), strict=True)
        if keys
    ]


def _agree(keys: list[str], tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    import torch

    for one, other in itertools.pairwise(keys):
        if not torch.equal(tensors[one], tensors[other]):
            raise SourceError(
                f"{shown(file)}: {one} and {other} are one tensor in the model and differ in "
                "the file; one of the two would be lost"
            )


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
