"""Local files as datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_transformer_validate.errors import TrainingError, error_line
from pytest_transformer_validate.optional import require

_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_KINDS |= {".txt": "text", ".text": "text", ".md": "text"}
_GZIP = b"\x1f\x8b"


def read_file(path: str | Path) -> Any:
    """A Hugging Face dataset of a csv, tsv, json, jsonl, text or parquet file.

    Raises TrainingError for a file that is not there, empty, of an unknown kind, or damaged, with
    the line where there is one; MissingDependency without the ``datasets`` package.
    """
    place = Path(path)
    _look(place)
    datasets = require("datasets", extra="train")
    kind = _KINDS[place.suffix.lower()]
    extra = {"delimiter": "\t"} if place.suffix.lower() == ".tsv" else {}
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        data = (
            datasets.Dataset.from_json(str(place))
            if kind == "json"
            else getattr(datasets.Dataset, f"from_{kind}")(str(place), **extra)
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        line = error_line(error.__cause__ or error)
        raise TrainingError(f"{place} cannot be read as {kind}: {line}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    if not len(data):
        raise TrainingError(f"{place} holds no row")
    return data


def _look(place: Path) -> None:
    """Raise for what the library would not name the place of."""
    if place.is_dir():
        raise TrainingError(f"{place} is a folder; name a file in it")
    if not place.is_file():
        raise TrainingError(f"no file {place}")
    if place.suffix.lower() not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise TrainingError(f"{place}: data files end in {known}, not {place.suffix or 'nothing'}")
    if place.suffix.lower() == ".parquet":
        return
    with place.open("rb") as file:
        if file.read(2) == _GZIP:
            raise TrainingError(f"{place} is compressed with gzip; unpack it")
    if not place.stat().st_size:
        raise TrainingError(f"{place} is empty")
    _check_lines(place)


def _check_lines(place: Path) -> None:
    lines = place.suffix.lower() == ".jsonl"
    filled = 0
    with place.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8")
                if lines and text.strip():
                    json.loads(text)
            except UnicodeDecodeError as error:
                around = raw[max(error.start - 8, 0) : error.start + 8]
                raise TrainingError(f"{place}, line {number}: not UTF-8: {around!r}") from error
            except json.JSONDecodeError as error:
                raise TrainingError(f"{place}, line {number}: no JSON: {error}") from error
            if "\0" in text:
                raise TrainingError(f"{place}, line {number}: holds a NUL character")
            filled += bool(text.strip())
    if not filled:
        raise TrainingError(f"{place}: every line is blank")
    if filled == 1 and _KINDS[place.suffix.lower()] == "csv":
        raise TrainingError(f"{place} holds no row: its only line is the header")
