"""ExperimentDB: what was logged is there, whatever else happens to the file."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.errors import TrainingError
from pytest_transformer_validate.training.metrics.experiment_db import ExperimentDB
from pytest_transformer_validate.training.metrics.sinks import CsvSink, DatabaseSink
from pytest_transformer_validate.training.metrics.tracker import MetricsTracker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ExperimentDB]:
    with ExperimentDB(tmp_path / "runs.db") as opened:
        yield opened


def test_a_run_is_read_as_it_was_logged(database):
    run = database.log_run("first", {"lr": 0.1}, "née", sweep_params={"lr": 0.1}, gist_id="abc")
    row = database.get_run(run)
    assert (row["run_name"], row["config"], row["notes"]) == ("first", {"lr": 0.1}, "née")
    assert (row["status"], row["sweep_params"], row["gist_id"]) == ("running", {"lr": 0.1}, "abc")
    database.update_run_status(run, "completed")
    assert database.get_run(run)["status"] == "completed"
    assert list(database.list_runs().run_name) == ["first"]


def test_what_is_not_there_is_named(database):
    with pytest.raises(KeyError, match="no run 7"):
        database.get_run(7)
    with pytest.raises(ValueError, match="must be one of running"):
        database.update_run_status(database.log_run("a", {}), "done")
    assert database.get_best_run() is None


def test_runs_are_compared_and_the_best_is_found(database):
    for name, losses in (("a", [3.0, 1.0, 2.0]), ("b", [1.5, math.nan, 0.5])):
        run = database.log_run(name, {"name": name})
        for epoch, loss in enumerate(losses):
            database.log_metrics(run, {"loss": loss}, "val", epoch=epoch)
            database.log_metric(run, "train/loss", loss + 1, epoch=epoch)
    table = database.compare_runs([1, 2]).set_index("run_name")
    assert list(table.best_val_loss) == [1.0, 0.5]
    assert list(table.final_train_loss) == [3.0, 1.5]
    assert table.best_epoch["a"] == 1
    best = database.get_best_run("val/loss", "min")
    assert (best["run_name"], best["best_value"], best["best_epoch"]) == ("b", 0.5, 2)
    assert database.get_best_run("val/loss", "max")["best_value"] == 3.0


def test_a_number_that_is_none_is_never_best_and_is_flagged(database):
    run = database.log_run("a", {})
    database.log_metric(run, "val/loss", math.nan, step=1)
    assert math.isnan(database.get_metrics(run, "val/loss").value[0])
    assert database.get_best_run() is None
    rows = database._rows("SELECT nonfinite FROM metrics")
    assert rows[0]["nonfinite"] == "nan"


def test_artifacts_and_export(database, tmp_path):
    run = database.log_run("a", {})
    database.log_artifact(run, "checkpoint", tmp_path / "c.pt", {"epoch": 3})
    (artifact,) = database.get_artifacts(run)
    assert artifact["metadata"] == {"epoch": 3}
    data = json.loads(database.export(tmp_path / "out.json").read_text())
    assert data["runs"][0]["artifacts"][0]["filepath"] == str(tmp_path / "c.pt")


class TestFiles:
    def test_an_older_file_gets_what_it_lacks(self, tmp_path: Path) -> None:
        path = tmp_path / "old.db"
        with sqlite3.connect(path) as old:
            old.execute(
                "CREATE TABLE runs (run_id INTEGER PRIMARY KEY, run_name TEXT, config TEXT)"
            )
            old.execute("INSERT INTO runs VALUES (1, 'old', '{\"lr\": 1}')")
        old.close()
        with ExperimentDB(path) as database:
            assert database.get_run(1)["config"] == {"lr": 1}
            assert database.log_run("new", {}) == 2

    def test_a_newer_file_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "new.db"
        with sqlite3.connect(path) as new:
            new.execute("PRAGMA user_version = 99")
        new.close()
        with pytest.raises(TrainingError, match="of version 99"):
            ExperimentDB(path)

    @pytest.mark.parametrize("length", [1, 100])  # SQLite itself writes over short files
    def test_no_database_is_put_aside(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / "runs.db"
        path.write_bytes(b"<html>" * length)
        with pytest.warns(UserWarning, match="runs.db.corrupt-1"), ExperimentDB(path) as database:
            assert database.log_run("a", {}) == 1
        assert (tmp_path / "runs.db.corrupt-1").read_bytes().startswith(b"<html>")

    def test_eight_processes_lose_nothing(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pytest_transformer_validate.training.metrics.experiment_db import "
            "ExperimentDB\n"
            "db = ExperimentDB(sys.argv[1]); run = db.log_run(sys.argv[2], {})\n"
            "for i in range(50): db.log_metric(run, 'loss', i, step=i)\n"
        )
        path = str(tmp_path / "runs.db")
        running = [subprocess.Popen([sys.executable, "-c", code, path, str(i)]) for i in range(8)]
        assert [process.wait(60) for process in running] == [0] * 8
        with ExperimentDB(path) as database:
            assert database._rows("SELECT count(*) AS n FROM metrics")[0]["n"] == 400

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_fork_opens_its_own_connection(self, database) -> None:
        run = database.log_run("a", {})
        child = os.fork()
        if not child:
            database.log_metric(run, "loss", 1.0)
            os._exit(0 if len(database._connections) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(database.get_metrics(run)) == 1


class TestSinks:
    def test_the_tracker_writes_a_run_into_the_database(self, database) -> None:
        sink = DatabaseSink(database, "run", {"lr": 1})
        tracker = MetricsTracker(sinks=[sink])
        tracker.log_scalars({"train/loss": 2.0}, 1)
        tracker.log_epoch(0, {"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0})
        tracker.close()
        assert database.get_run(sink.run_id)["status"] == "completed"
        names = set(database.get_metrics(sink.run_id).metric_name)
        assert {"train/loss", "train/perplexity", "val/loss", "train/accuracy"} <= names

    def test_a_locked_file_stops_nothing(self, database, monkeypatch) -> None:
        sink = DatabaseSink(database, "run", {})
        database._connection().execute("PRAGMA busy_timeout = 10")
        with sqlite3.connect(database.path) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            with pytest.warns(UserWarning, match="wait in memory"):
                sink.log_epoch({"epoch": 0, "val/loss": 1.0})
            holder.rollback()
        holder.close()
        sink.close("completed")
        assert len(database.get_metrics(sink.run_id)) == 1

    def test_the_csv_file_goes_on_where_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "metrics.csv"
        MetricsTracker(sinks=[CsvSink(path)]).log_epoch(0, {"loss": 2.0})
        MetricsTracker(sinks=[CsvSink(path)]).log_epoch(1, {"loss": 1.0}, {"loss": 3.0})
        first, *rows = path.read_text().splitlines()
        assert first.startswith("epoch,train/loss")
        assert [row.split(",")[:2] for row in rows] == [["0", "2.0"], ["1", "1.0"]]
