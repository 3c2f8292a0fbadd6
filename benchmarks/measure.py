"""Timing whole processes in pairs that take turns, on a machine that others may be using."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "gpt"


@dataclass(frozen=True)
class Usage:
    """One process: seconds of wall clock and of CPU, peak memory in MB, and what it printed."""

    wall: float
    cpu: float
    peak: float
    output: str


def run(command: list[str], folder: Path) -> Usage:
    """Run a command in a folder. Raises RuntimeError with its output where it fails."""
    log = folder / "output.txt"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=_env())
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}\n{text}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, text)


def python(code: str) -> list[str]:
    """The command that runs a few lines."""
    return [sys.executable, "-c", code]


def pytest(*arguments: str) -> list[str]:
    """The command of a run of tier 1, without the plugins that happen to be installed beside
    what this one needs: some of them take as long as half an ``import torch``."""
    needed = [f"-p{name}" for name in ("timeout", "xdist", "transformer_validate")]
    quiet = ["-q", "-m", "tier1", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *needed, *quiet, *arguments]


def interleave(
    first: list[str], second: list[str], folder: Path, rounds: int
) -> tuple[list[Usage], list[Usage]]:
    """Both commands in turn, after one round that is not counted (it writes bytecode)."""
    pairs = [(run(first, folder), run(second, folder)) for _ in range(rounds + 1)][1:]
    return [a for a, _ in pairs], [b for _, b in pairs]


def show(name: str, values: list[float], unit: str = "s") -> float:
    """Print the median and the range of some values; gives the median."""
    median = statistics.median(values)
    print(f"  {name:<44}{median:9.2f} {unit}  ({min(values):.2f} to {max(values):.2f})")
    return median


def compare(name: str, ratios: list[float], goal: float) -> None:
    """Print the median of ratios taken pair by pair, against what it should be."""
    median = statistics.median(ratios)
    verdict = "met" if median <= goal else "missed"
    spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"  {name:<44}{median:9.2f} x  {spread}  goal {goal:g} x: {verdict}")


def _env() -> dict[str, str]:
    """The environment, with one thread a process, with bytecode written, and in which pytest
    loads the plugins that it is told to."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"OMP_NUM_THREADS": "1", **kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
