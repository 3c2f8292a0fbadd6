"""Records as a JSON file, written and read. ``schema.json`` beside this module describes it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SpecError, first_line
from pytest_transformer_validate.report.record import STATUSES, Record
from pytest_transformer_validate.report.terminal import by_model
from pytest_transformer_validate.report.text import plain
from pytest_transformer_validate.sources.files import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA_VERSION = 1
MOST_BYTES = 2**30
SCHEMA = Path(__file__).with_name("schema.json")

_TEXT, _TEXT_OR_NONE = (str,), (str, type(None))
_FIELDS: dict[str, tuple[type, ...]] = {
    "model": _TEXT,
    "tier": (int,),
    "check": _TEXT,
    "status": _TEXT,
    "case": _TEXT_OR_NONE,
    "message": _TEXT,
    "where": _TEXT_OR_NONE,
    "numbers": (dict,),
    "context": (dict,),
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Stored:
    """What a file of ``--tb-json`` holds: facts about the run, and its records."""

    run: dict[str, Any]
    records: tuple[Record, ...]


def write(
    path: Path,
    records: Sequence[Record],
    *,
    models: Sequence[tuple[str, str]],
    run: Mapping[str, Any],
) -> None:
    """Write the records of ``models`` (id and spec) with what is known about the run."""
    groups = by_model(records)
    data = {
        "schema_version": SCHEMA_VERSION,
        "run": dict(run),
        "models": [_model(name, spec, groups.get(name, [])) for name, spec in models],
        "records": [record.to_json() for record in records],
    }
    text = json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Stored:
    """What ``write`` wrote, its texts made fit to be shown once more. Raises SpecError for a file
    that is none of ``--tb-json``, or of another version of it."""
    try:
        data = json.loads(read_file(path, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is None:
        raise SpecError(f"{path} was not written by --tb-json: it has no schema_version")
    if version != SCHEMA_VERSION:
        raise SpecError(
            f"{path} has schema_version {version!r}, this version of the plugin reads "
            f"{SCHEMA_VERSION}: write the file again with --tb-json"
        )
    data = plain(data)
    run, records = data.get("run"), data.get("records")
    if not isinstance(run, dict) or not isinstance(records, list):
        raise SpecError(f"{path} was not written by --tb-json: it has no run and no records")
    return Stored(run, tuple(_record(path, n, item) for n, item in enumerate(records)))


def about() -> dict[str, Any]:
    """What the numbers of a run depend on besides the models: versions, machine, time."""
    packages = ("pytest-transformer-validate", "pytest", "torch")
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": _machine(),
        "packages": {name: _version(name) for name in packages},
    }


def _record(path: Path, number: int, item: Any) -> Record:
    """One record; keys that a later version may have added are left out."""
    if not isinstance(item, dict):
        raise SpecError(f"{path}: records[{number}] is no object")
    for name, kinds in _FIELDS.items():
        if type(item.get(name)) not in kinds:
            raise SpecError(f"{path}: records[{number}].{name} is missing or of the wrong type")
    if item["status"] not in STATUSES:
        raise SpecError(f"{path}: records[{number}].status is {item['status']!r}")
    return Record.from_json({name: item[name] for name in _FIELDS})


def _model(name: str, spec: str, records: Sequence[Record]) -> dict[str, Any]:
    context: dict[str, Any] = next((r.context for r in records if r.context), {})
    passed = bool(records) and not any(record.failure for record in records)
    return {"id": name, "spec": spec, "passed": passed, "context": context}


def _machine() -> str:
    """Tells whether two runs were on one machine, without naming it."""
    facts = (platform.node(), platform.system(), platform.machine(), os.cpu_count())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
