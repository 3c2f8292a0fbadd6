"""The file of --tb-json: its schema, what is written, what is read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.report import json as json_report
from pytest_transformer_validate.report.record import STATUSES, Record

jsonschema = pytest.importorskip("jsonschema")

if TYPE_CHECKING:
    from pathlib import Path

FACTS = {"arguments": ["--tb-model=m.py"], "exit": 1, "seed": 0, "workers": 0}
RECORD = Record(
    model="m.py",
    tier=1,
    check="causality",
    status="failed",
    case="full_length",
    message="it looks ahead",
    where="blocks.0",
    numbers={"value": "nan", "limit": {"value": 1e-6, "rule": "16 u"}, "notes": ["a"], "odd": 1},
    context={"task": "causal_lm", "parameters": 544, "seed": 0},
    seconds=0.5,
)
NO_RECORD: dict[str, Any] = {"schema_version": 1, "run": {}, "records": [{}]}


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json_report.SCHEMA.read_text(encoding="utf-8"))
    kind = jsonschema.Draft202012Validator
    kind.check_schema(schema)
    return kind(schema)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "out.json"
    run = {**json_report.about(), **FACTS}
    json_report.write(path, [RECORD], models=[("m.py", "m.py"), ("n.py", "n.py")], run=run)
    return path


def test_what_is_written_follows_the_schema(written: Path, validator: Any) -> None:
    data = json.loads(written.read_text(encoding="utf-8"))
    validator.validate(data)
    assert validator.schema["properties"]["schema_version"]["const"] == json_report.SCHEMA_VERSION
    record = validator.schema["$defs"]["record"]
    assert record["properties"]["status"]["enum"] == list(STATUSES)
    assert set(record["required"]) == set(RECORD.to_json()) == set(record["properties"])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("schema_version",), 2),
        (("run", "machine"), "build-host-7"),
        (("records", 0, "status"), "xpassed"),
        (("records", 0, "seconds"), -1),
        (("records", 0, "numbers", "limit"), {"value": 1.0}),
        (("models", 0, "passed"), None),
    ],
)
def test_the_schema_refuses(written: Path, validator: Any, keys: Any, value: object) -> None:
    data = place = json.loads(written.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    assert not validator.is_valid(data)


def test_what_was_written_is_read_back(written: Path) -> None:
    stored = json_report.read(written)
    assert stored.records == (RECORD,)
    assert stored.run["workers"] == 0
    assert stored.run["machine"] == json_report.about()["machine"]


def test_keys_of_a_later_version_are_left_out(written: Path) -> None:
    data = json.loads(written.read_text(encoding="utf-8"))
    data["records"][0]["new"] = data["new"] = 1
    written.write_text(json.dumps(data))
    assert json_report.read(written).records == (RECORD,)


def test_texts_that_are_read_are_fit_to_be_shown(written: Path) -> None:
    token = "ghp_" + "x" * 36
    data = json.loads(written.read_text(encoding="utf-8"))
    data["records"][0]["message"] = f"\x1b[2J{token}"
    written.write_text(json.dumps(data))
    assert json_report.read(written).records[0].message == "\\x1b[2J[redacted]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "has no schema_version"),
        ("{}", "has no schema_version"),
        ('{"schema_version": 7}', "has schema_version 7, this version of the plugin reads 1"),
        ('{"schema_version": 1}', "it has no run and no records"),
        (json.dumps({**NO_RECORD, "records": [3]}), r"records\[0\] is no object"),
        (json.dumps(NO_RECORD), r"records\[0\].model is missing or of the wrong type"),
        (
            json.dumps({**NO_RECORD, "records": [{**RECORD.to_json(), "tier": True}]}),
            r"records\[0\].tier is missing or of the wrong type",
        ),
        (
            json.dumps({**NO_RECORD, "records": [{**RECORD.to_json(), "status": "fine"}]}),
            r"records\[0\].status is 'fine'",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=f"old.json.*{words}"):
        json_report.read(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read as JSON: "):
        json_report.read(tmp_path)
