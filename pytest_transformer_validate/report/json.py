"""Records as a JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.terminal import by_model
from pytest_transformer_validate.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_transformer_validate.report.record import Record

SCHEMA_VERSION = 1


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
        "run": {**_about(), **run},
        "models": [_model(name, spec, groups.get(name, [])) for name, spec in models],
        "records": [record.to_json() for record in records],
    }
    text = json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _model(name: str, spec: str, records: Sequence[Record]) -> dict[str, Any]:
    context: dict[str, Any] = next((r.context for r in records if r.context), {})
    passed = bool(records) and not any(record.failure for record in records)
    return {"id": name, "spec": spec, "passed": passed, "context": context}


def _about() -> dict[str, Any]:
    packages = ("pytest-transformer-validate", "pytest", "torch")
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
