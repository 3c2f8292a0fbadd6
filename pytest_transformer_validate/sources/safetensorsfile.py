"""Whether a safetensors file is what it says: its header is read, none of its tensors."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.wording import clipped, listed, reason, shown

if TYPE_CHECKING:
    from pathlib import Path


def check_safetensors(file: Path) -> None:
    """Raise SourceError for a file that is cut, overlaps, lies about sizes or types, or names a
    tensor twice (of which the library takes the last)."""
    safetensors = require("safetensors", extra="hf")
    try:
        with safetensors.safe_open(str(file), framework="pt"):
            pass
        twice = _twice(file)
    except Exception as error:
        words = reason(error).replace("Error while deserializing header: ", "")
        raise SourceError(f"{shown(file)} is no readable safetensors file: {words}") from error
    if twice:
        raise SourceError(
            f"{shown(file)} is no readable safetensors file: its header names "
            f"{clipped(listed(twice, 3))} twice"
        )


def _twice(file: Path) -> list[str]:
    """Keys of the header that are there more than once; the library has read it before."""
    with file.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        return dict(items)

    json.loads(header, object_pairs_hook=pairs)
    return twice
