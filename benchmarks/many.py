"""Many tiny models in one run: time and memory by model, and on two workers.

With ``--large`` also two models of 124M parameters on two workers (needs transformers).
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import statistics
import tempfile
from pathlib import Path

from measure import EXAMPLE, Usage, compare, interleave, pytest, run, show

# A conftest that notes, after the last test of each model, the time and the memory in use.
WATCH = """
import contextlib, ctypes, gc, resource, time

last, start = None, time.perf_counter()

def _used():
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps is no leak
    try:
        pages = int(open("/proc/self/statm").read().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

def pytest_runtest_logfinish(nodeid):
    global last
    model = nodeid.partition("::")[0]
    if model != last:
        last = model
        line = f"{time.perf_counter() - start:.4f} {time.process_time():.4f} {_used():.2f}"
        open("models.txt", "a").write(line + chr(10))
"""

# A model of 124M parameters, as a file that a run can name.
LARGE = """
from transformers import GPT2Config, GPT2LMHeadModel

def model():
    return GPT2LMHeadModel(GPT2Config())
"""


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--counts", type=int, nargs="*", default=[4, 8, 16], help="on 2 workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also two models of 124M")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(max([options.models, *options.counts])):
            shutil.copytree(EXAMPLE, folder / f"{number:03}")
        in_one_run(folder, options.models)
        (folder / "conftest.py").unlink(missing_ok=True)
        for count in options.counts:
            on_workers(folder, f"{count} tiny models", _models(count), options.rounds)
        if options.large:
            names = ("large_a.py", "large_b.py")
            for large in names:
                (folder / large).write_text(LARGE, encoding="utf-8")
            models = [f"--tb-model={large}::model" for large in names]
            on_workers(folder, "two models of 124M", models, options.rounds)


def in_one_run(folder: Path, count: int) -> None:
    """Whether later models cost more than earlier ones; of memory, what plain tests keep too."""
    if count < 2:
        return
    (folder / "conftest.py").write_text(WATCH, encoding="utf-8")
    total, rows = _watched(_models(count), folder)
    quarter = max(1, len(rows) // 4)
    print(f"{count} tiny models in one run: {total.wall:.1f} s, peak {total.peak:.0f} MB")
    for column, kind in ((0, "wall"), (1, "CPU")):
        each = [b[column] - a[column] for a, b in itertools.pairwise(rows)]
        early, late = each[:quarter], each[-quarter:]
        show(f"each of the first {quarter}, {kind}", early)
        show(f"each of the last {quarter}, {kind}", late)
        ratio = statistics.median(late) / statistics.median(early)
        compare(f"last / first, {kind}", [ratio], 1.2)
    _show_memory("memory in use", rows)
    tenths = rows[max(1, len(rows) // 10) - 1 :: max(1, len(rows) // 10)]
    print(f"  after each tenth, MB: {' '.join(f'{row[2]:.0f}' for row in tenths)}")
    outcomes = re.findall(r"(\d+) (?:passed|failed|skipped|xfailed)\b", total.output)
    tests = sum(map(int, outcomes)) // count
    _show_memory(
        f"files of {tests} tests that do nothing",
        _watched(_plain(folder, count, tests), folder)[1],
    )
    print()


def _watched(arguments: list[str], folder: Path) -> tuple[Usage, list[list[float]]]:
    """A run, and what its conftest noted: seconds of wall clock and of CPU, and MB in use."""
    notes = folder / "models.txt"
    notes.unlink(missing_ok=True)
    total = run(pytest(*arguments), folder)
    lines = notes.read_text(encoding="utf-8").splitlines()
    return total, [[float(value) for value in line.split()] for line in lines]


def _show_memory(what: str, rows: list[list[float]]) -> None:
    quarter = max(1, len(rows) // 4)
    first = statistics.median(row[2] for row in rows[:quarter])
    last = statistics.median(row[2] for row in rows[-quarter:])
    grown = (last - first) / (len(rows) - quarter)
    print(f"  {what}: {first:.1f} MB, then {last:.1f} MB: {grown:+.3f} MB each")


def _plain(folder: Path, count: int, tests: int) -> list[str]:
    """As many files as there are models, with as many tests as a model has checks."""
    mark = "import pytest\npytestmark = pytest.mark.tier1\n"
    code = mark + "".join(f"def test_{number}(): pass\n" for number in range(tests))
    files = [folder / f"test_{number:03}.py" for number in range(count)]
    for file in files:
        file.write_text(code, encoding="utf-8")
    return [file.name for file in files]


def on_workers(folder: Path, what: str, models: list[str], rounds: int) -> None:
    """Two workers against one process."""
    two, one = interleave(pytest("-n2", *models), pytest("-n0", *models), folder, rounds)
    print(f"{what}, {rounds} pairs of runs")
    show("one process, wall", [u.wall for u in one])
    show("-n 2, wall", [u.wall for u in two])
    show("one process, CPU", [u.cpu for u in one])
    show("-n 2, CPU of all processes", [u.cpu for u in two])
    compare("-n 2 / one, wall", [a.wall / b.wall for a, b in zip(two, one, strict=True)], 1.0)


def _models(count: int) -> list[str]:
    return [f"--tb-model={number:03}/model.py" for number in range(count)]


if __name__ == "__main__":
    main()
