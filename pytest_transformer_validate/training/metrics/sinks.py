"""Who is told the numbers of a run: a database, a CSV file, the console."""

from __future__ import annotations

import csv
import sqlite3
import sys
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_transformer_validate.training.metrics.experiment_db import ExperimentDB

_AT_ONCE = 200


class DatabaseSink:
    """Writes a run into an ExperimentDB, many numbers a transaction.

    While the file cannot be written the numbers wait in memory; training goes on.
    """

    def __init__(
        self, database: ExperimentDB, run_name: str, config: Mapping[str, Any], notes: str = ""
    ) -> None:
        self.database = database
        self.run_id = database.log_run(run_name, config, notes)
        self._waiting: deque[tuple[str, float, int | None, int | None]] = deque()
        self._warned = False

    def log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        self._waiting.extend((name, float(value), step, None) for name, value in values.items())
        if len(self._waiting) >= _AT_ONCE:
            self._write()

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        epoch = row["epoch"]
        numbers = ((n, v) for n, v in row.items() if n != "epoch" and isinstance(v, int | float))
        self._waiting.extend((name, float(value), None, epoch) for name, value in numbers)
        self._write()

    def close(self, status: str) -> None:
        self._write()
        try:
            self.database.update_run_status(self.run_id, status)
        except sqlite3.Error as error:
            self._warn(error)

    def _write(self) -> None:
        if not self._waiting:
            return
        try:
            self.database.log_rows(self.run_id, list(self._waiting))
        except sqlite3.Error as error:
            self._warn(error)
        else:
            self._waiting.clear()

    def _warn(self, error: sqlite3.Error) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.database.path}: {error}; {len(self._waiting)} numbers wait in memory",
                stacklevel=3,
            )


class CsvSink:
    """Writes a row an epoch to a CSV file; a run that goes on adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        """Steps are not written."""

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        rows: list[Mapping[str, Any]] = []
        try:
            if self.path.is_file():
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            rows.append(row)
            names = list(dict.fromkeys(name for known in rows for name in known))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            warnings.warn(f"{self.path}: {error}; the row is not written", stacklevel=3)

    def close(self, status: str) -> None:
        """Nothing is open."""


class ConsoleSink:
    """Writes a line an epoch to the standard error stream."""

    def log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        """Steps are the progress bar's."""

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        shown = ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "learning_rate")
        parts = [f"{name} {row[name]:.4g}" for name in shown if row.get(name) is not None]
        seconds = row.get("epoch_duration")
        parts += [] if seconds is None else [f"{seconds:.1f} s"]
        sys.stderr.write(f"epoch {row['epoch'] + 1}: {', '.join(parts)}\n")

    def close(self, status: str) -> None:
        """Nothing is open."""
