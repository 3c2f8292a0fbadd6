"""What reports cost: tier 1 of many tiny models in one run, with --html and --tb-json.

The time in reporters is taken inside the run, so that what others do on the machine cancels out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from measure import EXAMPLE, compare, pytest, run, show

REPORTS = {"--html": "report.html", "--tb-json": "report.json"}

# A conftest that counts the CPU time inside the hooks of those who report, and of the whole run.
COUNT = """
import functools, json, time
import pytest

spent = {}

def counted(impl, name):
    function = impl.function
    @functools.wraps(function)
    def call(*args):
        start = time.process_time()
        try:
            return function(*args)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
    impl.function = call

@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    for hook in ("pytest_runtest_logreport", "pytest_sessionfinish"):
        for impl in getattr(session.config.hook, hook).get_hookimpls():
            kind = type(impl.plugin).__module__
            if kind.startswith("pytest_html") or type(impl.plugin).__name__ == "HtmlRows":
                counted(impl, "html")
            elif type(impl.plugin).__name__ == "Results":
                counted(impl, "json")

def pytest_unconfigure(config):
    spent["run"] = time.process_time()
    open("spent.json", "w").write(json.dumps(spent))
"""


def main() -> None:
    """Print the cost for a few numbers of models, and how it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 50], help="of models")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(COUNT, encoding="utf-8")
        for number in range(max(options.counts)):
            shutil.copytree(EXAMPLE, folder / f"{number:03}")
        found = {count: by_model(folder, count) for count in sorted(options.counts)}
    few, many = min(found), max(found)
    print(f"what one of {many} models costs / one of {few}")
    for what, each in found[few].items():
        compare(what, [found[many][what] / each], 1.2)


def by_model(folder: Path, count: int) -> dict[str, float]:
    """What the reports of ``count`` models cost, by the model: CPU time in ms, sizes in KB."""
    models = [f"--tb-model={number:03}/model.py" for number in range(count)]
    options = [f"{option}={name}" for option, name in REPORTS.items()]
    total = run(pytest(*models, *options, "--self-contained-html"), folder)
    spent: dict[str, float] = json.loads((folder / "spent.json").read_text(encoding="utf-8"))
    print(f"{count} tiny models in one run: {total.wall:.0f} s, CPU {spent['run']:.0f} s")
    reports = spent["html"] + spent["json"]
    compare("run with reports / without, CPU", [spent["run"] / (spent["run"] - reports)], 1.1)
    found = {f"{kind}, CPU": 1e3 * spent[kind] / count for kind in ("html", "json")}
    found |= {
        f"{name}, size": (folder / name).stat().st_size / 1024 / count for name in REPORTS.values()
    }
    for what, each in found.items():
        show(f"{what}, a model", [each], "ms" if what.endswith("CPU") else "KB")
    print()
    return found


if __name__ == "__main__":
    main()
