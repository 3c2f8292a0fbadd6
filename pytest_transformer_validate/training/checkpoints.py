"""Checkpoints: whole or not there, readable with ``weights_only=True``, few.

A checkpoint is ``checkpoint_epoch0009_step000009_20251122_065455.pt`` (plain types and tensors)
and, written after it, a file of the same name ending in ``.json`` for people, with its metrics and
the hash of the first. A ``.pt`` without its ``.json`` is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_transformer_validate.errors import CheckpointError, error_line

BEST, LAST = 3, 5
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Saved:
    """One checkpoint of a folder; ``value`` is that of its monitored metric."""

    path: Path
    run_name: str
    epoch: int
    step: int
    monitor: str
    value: float | None
    sha256: str


def save(folder: Path, state: dict[str, Any], *, mode: str) -> Path:
    """Write ``state`` and return its path. Raises OSError; then nothing of it is left."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d_%H%M%S")
    name = f"checkpoint_epoch{state['epoch']:04d}_step{state['global_step']:06d}_{stamp}"
    names = (name, *(f"{name}_{number}" for number in range(2, 1_000)))
    path = next(p for p in (folder / f"{name}.pt" for name in names) if not p.exists())
    _write(path, lambda file: torch.save(state, file))
    about = {
        "run_name": state["custom_state"]["run_name"],
        "epoch": state["epoch"],
        "step": state["global_step"],
        "monitor": state["monitor"],
        "value": state["monitor_value"],
        "mode": mode,
        "sha256": sha256(path),
        "metrics": state["metrics"],
    }
    text = json.dumps(about, indent=2).encode() + b"\n"
    _write(path.with_suffix(".json"), lambda file: file.write(text))
    return path


def load(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint. A path ending in ``.pt``, or without it, is found.

    Raises FileNotFoundError, and CheckpointError for a file that is not what was written.
    """
    place = Path(path)
    place = place if place.suffix == ".pt" else place.with_name(place.name + ".pt")
    if not place.is_file():
        raise FileNotFoundError(f"no checkpoint {place}")
    meta = place.with_suffix(".json")
    if meta.is_file() and json.loads(meta.read_text())["sha256"] != sha256(place):
        raise CheckpointError(f"{place} is damaged: its sha256 is not the one in {meta.name}")
    try:
        state = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:
        line = error_line(error)
        raise CheckpointError(f"{place} cannot be read as plain data: {line}") from error
    if not isinstance(state, dict) or "model_state_dict" not in state:
        raise CheckpointError(f"{place} holds no model_state_dict")
    return state


def checkpoints(folder: Path, run_name: str | None = None) -> list[Saved]:
    """The checkpoints in a folder (of one run), oldest step first."""
    found = []
    for meta in folder.glob("checkpoint_*.json"):
        path = meta.with_suffix(".pt")
        about = json.loads(meta.read_text())
        if path.is_file() and run_name in (None, about["run_name"]):
            keys = ("run_name", "epoch", "step", "monitor", "value", "sha256")
            found.append(Saved(path, *(about[key] for key in keys)))
    return sorted(found, key=lambda saved: (saved.step, saved.path.name))


def best(saved: list[Saved], mode: str, count: int = 1) -> list[Saved]:
    """Those with the best values, the best first; earlier ones win."""
    valued = [s for s in saved if s.value is not None]
    sign = 1 if mode == "min" else -1
    return sorted(valued, key=lambda s: (sign * (s.value or 0.0), s.step))[:count]


def retain(saved: list[Saved], *, mode: str, best_only: bool) -> None:
    """Delete checkpoints of a run but the best 3 and last 5, or but the best and the last."""
    kept = {*best(saved, mode, 1 if best_only else BEST), *saved[-(1 if best_only else LAST) :]}
    for old in saved:
        if old not in kept:
            old.path.with_suffix(".json").unlink(missing_ok=True)
            old.path.unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """States of Python's and torch's generators, as plain types."""
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what ``rng_state`` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def git_commit() -> str | None:
    """The commit that the working directory is at, if any."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def sha256(path: Path) -> str:
    """The hash of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write(path: Path, write: Any) -> None:
    """Write a temporary file, make it durable, give it its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
