"""Local files as datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_transformer_validate.errors import TrainingError, error_line
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.training.data.tokens import text_field

_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_KINDS |= {".txt": "text", ".text": "text", ".md": "text"}
_GZIP = b"\x1f\x8b"
LONGEST_LINE = 1 << 24  # bytes
MOST_FAULTS = 3


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
    """Raise TrainingError with the number of the first line that is no text, or too long for one;
    of JSON lines also with what is wrong in the first three that are no examples."""
    kind = place.suffix.lower()
    filled, rows = 0, JsonLines() if kind == ".jsonl" else None
    with place.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if len(raw) > LONGEST_LINE and kind != ".json":
                raise TrainingError(
                    f"{place}, line {number}: {len(raw) / 2**20:.0f} MB in one line; a file holds "
                    "one example a line"
                )
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                around = raw[max(error.start - 8, 0) : error.start + 8]
                raise TrainingError(f"{place}, line {number}: not UTF-8: {around!r}") from error
            if "\0" in text:
                raise TrainingError(f"{place}, line {number}: holds a NUL character")
            filled += bool(text.strip())
            if rows is not None and text.strip():
                rows.see(number, text)
    if rows is not None and rows.faults:
        raise TrainingError("\n".join(f"{place}, {fault}" for fault in rows.faults))
    if not filled:
        raise TrainingError(f"{place}: every line is blank")
    if filled == 1 and _KINDS[kind] == "csv":
        raise TrainingError(f"{place} holds no row: its only line is the header")


class JsonLines:
    """Looks at JSON lines one after the other; ``faults`` are the first three."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._types: dict[str, type] = {}
        self._text: str | None = None

    def see(self, number: int, line: str) -> None:
        """One line that is not blank."""
        found = None if len(self.faults) == MOST_FAULTS else self._wrong(line)
        if found is not None:
            self.faults.append(f"line {number}: {found}")

    def _wrong(self, line: str) -> str | None:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            return f"no JSON: {error}"
        if not isinstance(row, dict):
            return f"an example is an object {{...}}, given {type(row).__name__}"
        self._text = self._text or text_field(row)
        if self._text is not None and row.get(self._text) is None:
            return f"no field {self._text!r}; it has {', '.join(row) or 'nothing'}"
        for name, value in row.items():
            kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
            if value is not None and self._types.setdefault(name, kind) is not kind:
                before = self._types[name].__name__
                return f"field {name!r} is {type(value).__name__}, in lines before {before}"
        return None
