"""One run of pytest over many bad inputs, each a model of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.bad_inputs.loads import Case

WAYS = {"serial": (), "two-workers": ("-n2",)}


@dataclass(frozen=True)
class Seen:
    """How a run ended and what it said: its records by model."""

    code: int
    shown: str
    records: dict[str, list[dict[str, Any]]]


def write(folder: Path, cases: Iterable[Case]) -> dict[str, str]:
    """Write the files of every case into a folder of its own; the spec of each."""
    specs = {}
    for case in cases:
        home = folder / case.id
        home.mkdir(exist_ok=True)
        for name, content in case.files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (home / name).write_bytes(data)
        dotted = ":" in case.spec
        specs[case.id] = case.spec if dotted else f"{case.id}/{case.spec}".rstrip("/")
    return specs


def run(folder: Path, specs: Iterable[str], *args: str, **variables: str) -> Seen:
    """Run pytest in a process of its own."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    known = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    known |= {"OMP_NUM_THREADS": "1", **variables}
    models = [f"--tb-model={spec}" for spec in specs]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *models, "--tb-json=records.json", *args],
        cwd=folder,
        env=known,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=300,
        check=False,
    )
    records: dict[str, list[dict[str, Any]]] = {}
    file = folder / "records.json"
    for record in json.loads(file.read_text())["records"] if file.exists() else []:
        records.setdefault(record["model"], []).append(record)
    return Seen(done.returncode, done.stdout + done.stderr, records)
