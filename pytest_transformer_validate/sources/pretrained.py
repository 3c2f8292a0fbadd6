"""A class of transformers with the weights that lie in a folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.safetensorsfile import check_safetensors
from pytest_transformer_validate.sources.weights import difference, refusal
from pytest_transformer_validate.sources.wording import clipped, listed, shown

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_transformer_validate.sources.packaged import Package

# The forms that are read, the best one first: what can run no code, then what is only read as
# tensors.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Weights in a form that is not read: a model drawn at random beside them would be a surprise.
OTHER_WEIGHTS = ("*.safetensors", "*.gguf", "tf_model.h5", "flax_model.msgpack")


def find_weights(folder: Path) -> str | None:
    """The file with the weights of a folder, or with their index. Raises SourceError where there
    are only weights that are not read."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return name
    other = sorted({file.name for form in OTHER_WEIGHTS for file in folder.glob(form)})
    if other:
        raise SourceError(
            f"{shown(folder)} holds weights that are not read here: {listed(other)}\n"
            f"  read are {', '.join(WEIGHTS)}, or the file that --tb-weights names"
        )
    return None


def from_weights(
    head: Any, config: Any, folder: Path, name: str, package: Package | None
) -> tuple[Any, str]:
    """The model with the weights in ``name`` and a short text about them.

    Raises SourceError where they cannot be read, or where a tensor is missing or of another
    shape; what code of ``package`` raises comes through.
    """
    place = shown(folder / name)
    for file in _files(folder, name):
        check_safetensors(file)
    try:
        model, report = head.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            use_safetensors="safetensors" in name,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        if package is not None and package.raised(error):
            raise
        raise SourceError(f"{place} cannot be loaded: {refusal(error)}") from error
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    mismatched = sorted(report["mismatched_keys"], key=lambda entry: str(entry[0]))
    shapes = [f"{key} {_shape(one)} for {_shape(two)}" for key, one, two in mismatched]
    if missing or shapes or report["error_msgs"]:
        lines = difference(missing, unexpected, shapes)
        lines += [f"  {clipped(message)}" for message in report["error_msgs"][:2]]
        raise SourceError(
            "\n".join([f"{place} does not fit {head.__name__} as config.json says", *lines])
        )
    unused = f" ({len(unexpected)} of its tensors not used)" if unexpected else ""
    return model, f"{name}{unused}"


def _files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that hold the weights. Raises SourceError where one is not there."""
    if name.endswith(".safetensors"):
        return [folder / name]
    if not name.endswith(".safetensors.index.json"):
        return []
    names = shard_names(folder / name)
    absent = [shard for shard in names if not (folder / shard).is_file()]
    if absent:
        raise SourceError(
            f"{shown(folder / name)} names {len(absent)} of {len(names)} files that are not "
            f"there: {listed(absent, 5)}"
        )
    return [folder / shard for shard in names]


def shard_names(index: Path) -> list[str]:
    """The files that an index of weights names. Raises SourceError where it is none."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("no names of files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{shown(index)} is no index of weights, which has a weight_map from tensors to files"
        ) from error
    return sorted(names)


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes)) or "scalar"
