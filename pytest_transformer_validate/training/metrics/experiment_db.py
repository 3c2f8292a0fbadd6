"""Runs, their metrics and artifacts in one SQLite file.

Several processes may write at once: write-ahead log, one transaction a call, 30 s of patience. A
connection belongs to the process that opened it. Files of older versions get what they lack; a
file that is no database is put aside.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pytest_transformer_validate.errors import TrainingError
from pytest_transformer_validate.optional import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VERSION = 1
PATIENCE = 30.0
_MAGIC = b"SQLite format 3\0"
STATUSES = ("running", "completed", "failed", "stopped")

# Column and declaration by table. A column that a file lacks is added, so each may be NULL.
_TABLES = {
    "runs": {
        "run_id": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "run_name": "TEXT",
        "config": "TEXT",
        "notes": "TEXT",
        "created_at": "TEXT",
        "status": "TEXT",
        "sweep_id": "TEXT",
        "sweep_params": "TEXT",
        "gist_id": "TEXT",
        "gist_revision": "TEXT",
        "gist_sha256": "TEXT",
    },
    "metrics": {
        "metric_id": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "run_id": "INTEGER REFERENCES runs(run_id)",
        "metric_name": "TEXT",
        "value": "REAL",
        "step": "INTEGER",
        "epoch": "INTEGER",
        "timestamp": "TEXT",
        "nonfinite": "TEXT",
    },
    "artifacts": {
        "artifact_id": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "run_id": "INTEGER REFERENCES runs(run_id)",
        "artifact_type": "TEXT",
        "filepath": "TEXT",
        "metadata": "TEXT",
        "created_at": "TEXT",
    },
}
_INDEX = "CREATE INDEX IF NOT EXISTS metrics_of_run ON metrics(run_id, metric_name)"


class ExperimentDB:
    """The experiments of one SQLite file.

    Raises TrainingError for a file of a newer version; sqlite3.OperationalError where another
    process holds the file for more than 30 seconds.
    """

    def __init__(self, db_path: str | Path = "experiments.db") -> None:
        self.path = Path(db_path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connections: dict[int, sqlite3.Connection] = {}
        try:
            self._refuse_other_files()
            self._prepare()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._put_aside(error)
            self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connection."""
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    # Writing.

    def log_run(
        self,
        run_name: str,
        config: Mapping[str, Any],
        notes: str = "",
        *,
        sweep_id: str | None = None,
        sweep_params: Mapping[str, Any] | None = None,
        gist_id: str | None = None,
        gist_revision: str | None = None,
        gist_sha256: str | None = None,
    ) -> int:
        """A new run with the status ``running``; its id."""
        row = {
            "run_name": run_name,
            "config": _json(config),
            "notes": notes,
            "created_at": _now(),
            "status": "running",
            "sweep_id": sweep_id,
            "sweep_params": None if sweep_params is None else _json(sweep_params),
            "gist_id": gist_id,
            "gist_revision": gist_revision,
            "gist_sha256": gist_sha256,
        }
        return self._insert("runs", [row])

    def log_metric(
        self,
        run_id: int,
        metric_name: str,
        value: float,
        step: int | None = None,
        epoch: int | None = None,
    ) -> None:
        """One number. One that is not finite is kept as its name, its value as NULL."""
        self.log_metrics(run_id, {metric_name: value}, step=step, epoch=epoch)

    def log_metrics(
        self,
        run_id: int,
        metrics: Mapping[str, float],
        split: str | None = None,
        step: int | None = None,
        epoch: int | None = None,
    ) -> None:
        """Several numbers at once; with ``split`` their names become ``split/name``."""
        self.log_rows(run_id, [(_named(split, n), v, step, epoch) for n, v in metrics.items()])

    def log_rows(
        self, run_id: int, rows: Sequence[tuple[str, float, int | None, int | None]]
    ) -> None:
        """Many numbers in one transaction: name, value, step, epoch."""
        now = _now()
        self._insert(
            "metrics",
            [
                {
                    "run_id": run_id,
                    "metric_name": name,
                    "value": value if math.isfinite(value) else None,
                    "step": step,
                    "epoch": epoch,
                    "timestamp": now,
                    "nonfinite": None if math.isfinite(value) else str(value),
                }
                for name, value, step, epoch in rows
            ],
        )

    def log_artifact(
        self,
        run_id: int,
        artifact_type: str,
        filepath: str | Path,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """A file that a run made; its id."""
        row = {"run_id": run_id, "artifact_type": artifact_type, "filepath": str(filepath)}
        row |= {"metadata": _json(metadata or {}), "created_at": _now()}
        return self._insert("artifacts", [row])

    def update_run_status(self, run_id: int, status: str) -> None:
        """Set the status, one of STATUSES. Raises ValueError, KeyError."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, given {status!r}")
        self.get_run(run_id)
        with self._transaction() as connection:
            connection.execute("UPDATE runs SET status = ? WHERE run_id = ?", (status, run_id))

    # Reading.

    def get_run(self, run_id: int) -> dict[str, Any]:
        """One run: ``run_id, run_name, config`` (a dict), ``notes, created_at`` (UTC, ISO 8601),
        ``status, sweep_id, sweep_params, gist_id, gist_revision, gist_sha256``. Raises KeyError.
        """
        rows = self._rows("SELECT * FROM runs WHERE run_id = ?", run_id)
        if not rows:
            raise KeyError(f"{self.path} has no run {run_id}")
        return _run(rows[0])

    def list_runs(self, limit: int = 10) -> Any:
        """A DataFrame of the newest runs, the newest first, with the columns of ``get_run``."""
        rows = self._rows("SELECT * FROM runs ORDER BY run_id DESC LIMIT ?", limit)
        return require("pandas", extra="train").DataFrame(map(_run, rows), columns=_TABLES["runs"])

    def get_metrics(self, run_id: int, metric_name: str | None = None) -> Any:
        """A DataFrame ``metric_name, value, step, epoch, timestamp`` in the order of logging."""
        columns = ("metric_name", "value", "step", "epoch", "timestamp")
        query = "SELECT * FROM metrics WHERE run_id = ?"
        given: list[Any] = [run_id]
        if metric_name is not None:
            query, given = f"{query} AND metric_name = ?", [run_id, metric_name]
        rows = []
        for row in self._rows(f"{query} ORDER BY metric_id", *given):
            values = {name: row[name] for name in columns}
            if values["value"] is None:
                values["value"] = float(row["nonfinite"] or "nan")
            rows.append(values)
        return require("pandas", extra="train").DataFrame(rows, columns=columns)

    def get_artifacts(self, run_id: int) -> list[dict[str, Any]]:
        """The artifacts of a run, ``metadata`` as a dict."""
        rows = self._rows("SELECT * FROM artifacts WHERE run_id = ? ORDER BY artifact_id", run_id)
        return [{**dict(row), "metadata": _read(row["metadata"])} for row in rows]

    def compare_runs(self, run_ids: Sequence[int]) -> Any:
        """A DataFrame, a row a run: ``run_id, run_name, created_at, status, final_train_loss,
        final_val_loss, best_val_loss, best_epoch, total_epochs``. Raises KeyError."""
        rows = []
        shown = ("run_id", "run_name", "created_at", "status")
        for run in map(self.get_run, run_ids):
            train = self._by_epoch(run["run_id"], "train/loss")
            val = self._by_epoch(run["run_id"], "val/loss")
            best = min(val, key=lambda pair: pair[1], default=(None, None))
            rows.append(
                {
                    **{name: run[name] for name in shown},
                    "final_train_loss": train[-1][1] if train else None,
                    "final_val_loss": val[-1][1] if val else None,
                    "best_val_loss": best[1],
                    "best_epoch": best[0],
                    "total_epochs": len({epoch for epoch, _ in train}),
                }
            )
        return require("pandas", extra="train").DataFrame(rows)

    def get_best_run(
        self, metric_name: str = "val/loss", mode: str = "min"
    ) -> dict[str, Any] | None:
        """The run with the best value of a metric: ``run_id, run_name, best_value, best_epoch,
        config``; ``None`` where no run has a finite one. Raises ValueError."""
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', given {mode!r}")
        order = "ASC" if mode == "min" else "DESC"
        rows = self._rows(
            "SELECT run_id, value, epoch FROM metrics WHERE metric_name = ? AND value IS NOT NULL "
            f"ORDER BY value {order}, metric_id LIMIT 1",
            metric_name,
        )
        if not rows:
            return None
        run = self.get_run(rows[0]["run_id"])
        found = {name: run[name] for name in ("run_id", "run_name", "config")}
        return {**found, "best_value": rows[0]["value"], "best_epoch": rows[0]["epoch"]}

    def export(self, path: str | Path, run_id: int | None = None) -> Path:
        """Write all runs (or one), with metrics and artifacts, as JSON; where."""
        query = "SELECT * FROM metrics WHERE run_id = ? ORDER BY metric_id"
        known = self._rows("SELECT run_id FROM runs ORDER BY run_id")
        chosen = [row["run_id"] for row in known] if run_id is None else [run_id]
        data = [
            {
                **self.get_run(number),
                "metrics": [dict(row) for row in self._rows(query, number)],
                "artifacts": self.get_artifacts(number),
            }
            for number in chosen
        ]
        place = Path(path)
        place.write_text(json.dumps({"version": VERSION, "runs": data}, indent=2) + "\n")
        return place

    # How it is done.

    def _by_epoch(self, run_id: int, name: str) -> list[tuple[int, float]]:
        rows = self._rows(
            "SELECT epoch, value FROM metrics WHERE run_id = ? AND metric_name = ? AND "
            "epoch IS NOT NULL AND value IS NOT NULL ORDER BY metric_id",
            run_id,
            name,
        )
        return [(row["epoch"], row["value"]) for row in rows]

    def _connection(self) -> sqlite3.Connection:
        """This process's own: a connection does not survive a fork."""
        pid = os.getpid()
        if pid not in self._connections:
            connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._connections[pid] = connection
        return self._connections[pid]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _insert(self, table: str, rows: Sequence[Mapping[str, Any]]) -> int:
        names = list(rows[0])
        marks = ", ".join("?" * len(names))
        with self._transaction() as connection:
            cursor = connection.cursor()
            for row in rows:
                cursor.execute(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
                    [row[name] for name in names],
                )
        return int(cursor.lastrowid or 0)

    def _rows(self, query: str, *given: Any) -> list[sqlite3.Row]:
        return self._connection().execute(query, given).fetchall()

    def _prepare(self) -> None:
        version = self._connection().execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            self.close()
            raise TrainingError(
                f"{self.path} is of version {version}, newer than {VERSION}, which is read here; "
                "update pytest-transformer-validate"
            )
        with self._transaction() as connection:
            for table, columns in _TABLES.items():
                declared = ", ".join(f"{name} {kind}" for name, kind in columns.items())
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({declared})")
                known = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
                for name in columns.keys() - known:
                    kind = columns[name].partition(" REFERENCES")[0].partition(" PRIMARY")[0]
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
            connection.execute(_INDEX)
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _refuse_other_files(self) -> None:
        """Raise DatabaseError for a file of something else; a short one SQLite overwrites."""
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise sqlite3.DatabaseError("file is not a database")

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        self.close()
        number = 1
        while (other := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        self.path.rename(other)
        warnings.warn(
            f"{self.path} is no database that can be read ({error}); it is now {other.name}, and "
            "a new one was made",
            stacklevel=3,
        )


def _run(row: sqlite3.Row) -> dict[str, Any]:
    values = {name: row[name] for name in _TABLES["runs"]}
    values["config"] = _read(row["config"])
    values["sweep_params"] = None if row["sweep_params"] is None else _read(row["sweep_params"])
    values["notes"] = row["notes"] or ""
    return values


def _named(split: str | None, name: str) -> str:
    return name if split is None else f"{split}/{name}"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), default=str, sort_keys=True)


def _read(text: str | None) -> dict[str, Any]:
    return dict(json.loads(text)) if text else {}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
