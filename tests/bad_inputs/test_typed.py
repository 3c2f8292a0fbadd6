"""Rows 1 to 12, 84, 85, 87, 88, 91 and 92 of the table of bad input: what is typed, and where.

What is typed wrong ends with exit 4 before anything runs; that is shown in this process for
every row by tests/plugin/test_options.py (1 to 5, 7) and the tests named here:

| row | shown by |
| --- | --- |
| 6 | tests/plugin/test_fetched.py, tests/plugin/test_isolation.py |
| 8 | tests/plugin/test_collection.py::test_duplicate_models_are_a_usage_error |
| 9 | tests/plugin/test_inert.py |
| 10 | tests/plugin/test_run.py::TestNothingJudged |
| 11 | tests/plugin/test_collection.py, tests/plugin/test_xdist.py |
| 84 | tests/sources/fetch/test_store.py, tests/plugin/test_fetched.py (the cache) |
| 86 | tests/trust/test_sinks.py, tests/plugin/test_isolation.py |
| 89, 90 | tests/trust/test_sinks.py, tests/report/test_text.py |
| 88 | tests/sources/gist, tests/sources/hub |

Here are the same rows where the run would be distributed, and what needs a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_transformer_validate import validate
from tests.bad_inputs.loads import GOOD
from tests.bad_inputs.running import run
from tests.plugin.conftest import CHECKS, PASSING

USAGE = pytest.ExitCode.USAGE_ERROR
ROOT = Path(__file__).parent.parent.parent

TYPED = {
    "row01-path": (["--tb-model=modle.py"], "", "*has no 'modle.py' (did you mean model.py?)"),
    "row02-empty": (["--tb-model="], "", "*no model named*"),
    "row02-scheme": (["--tb-model=gits:x"], "", "*unknown scheme*did you mean gist*"),
    "row03-limit": (["--tb-model=model.py"], "tb_limits = laod.x = 1", "*did you mean load*"),
    "row03-excuse": (["--tb-model=model.py"], "tb_expect_fail = laod: x", "*did you mean load*"),
    "row04-inf": (["--tb-model=model.py", "--tb-seed=inf"], "", "*whole number*'inf'*"),
    "row05-device": (
        ["--tb-model=model.py", "--tb-device=cuda:77"],
        "",
        "*devices seen: cpu*auto*",
    ),
    "row06-offline": (["--tb-model=model.py", "--tb-offline", "--tb-trust=new"], "", "*--tb-*"),
    "row07-key": (
        ["--tb-model=model.py"],
        "tb_sed = 3",
        "*: unknown key; did you mean tb_seed*",
    ),
    "row07-type": (["--tb-model=model.py"], "tb_seed = x", "*tb_seed: *'x'*"),
    "row08-twice": (["--tb-model=model.py", "--tb-model=./model.py"], "", "*give each once*"),
}


@pytest.fixture
def folder(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(model=GOOD)
    return pytester


@pytest.mark.parametrize(("args", "line", "words"), TYPED.values(), ids=TYPED)
def test_typed_with_two_workers(
    folder: pytest.Pytester, args: list[str], line: str, words: str
) -> None:
    folder.makeini(f"[pytest]\n{line}\n")
    result = folder.runpytest_inprocess("-n2", *args)
    assert result.ret == USAGE, result.stdout.str()
    result.stderr.fnmatch_lines([words])
    told = [text for text in result.stderr.lines if text]
    assert len(told) <= 12, told


def test_row09_without_a_model_nothing_is_other_than_without_the_plugin(
    folder: pytest.Pytester,
) -> None:
    assert folder.runpytest_inprocess().ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result = folder.runpytest_inprocess("--tb-model=model.py", "-k", "nothing_is_called_so")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_row11_listing_runs_no_code_of_a_model(folder: pytest.Pytester) -> None:
    folder.makepyfile(model="open('ran', 'w')")
    folder.makeconftest(CHECKS)
    for more in ((), ("-q", "-m", "tier1"), ("-n2",), ("--fixtures-per-test",)):
        result = folder.runpytest_inprocess("--tb-model=model.py", "--co", *more)
        assert result.ret == pytest.ExitCode.OK
    folder.runpytest_inprocess("--tb-model=model.py", "--help")
    assert not (folder.path / "ran").exists()


@pytest.mark.parametrize(("args", "code"), [((), 2), (("-n2",), 1)], ids=["serial", "two-workers"])
def test_row12_a_syntax_error_in_a_file_of_tests_is_named(
    folder: pytest.Pytester, args: tuple[str, ...], code: int
) -> None:
    folder.makeconftest(CHECKS)
    folder.makepyfile(test_own="def test_one(tb_model):\n    x = (\n")
    result = folder.runpytest_inprocess("--tb-model=model.py", "-k", "load or one", *args)
    assert result.ret == code
    result.stdout.fnmatch_lines(["*test_own.py*, line 2*", "*SyntaxError*"])


def test_row12_a_conftest_that_declares_models_wrongly_is_exit_4(folder: pytest.Pytester) -> None:
    folder.makeconftest("def pytest_tb_models(config):\n    return [('net',)]\n")
    result = folder.runpytest_inprocess()
    assert result.ret == USAGE
    result.stderr.fnmatch_lines(["*pytest_tb_models must give specs or (id, factory) pairs*"])


def test_row84_row85_odd_surroundings(tmp_path: Path) -> None:
    """No home, no folder for temporary files, a plain locale, a long path with odd names."""
    folder = tmp_path / "with space, é and 模型"
    while len(str(folder)) < 3900:
        folder /= "x" * min(200, 3990 - len(str(folder)))
    folder.parent.mkdir(parents=True)
    folder.mkdir()
    (folder / "model.py").write_text(GOOD)
    (folder / "conftest.py").write_text(PASSING)
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    odd |= {"HOME": "/nonexistent", "XDG_CACHE_HOME": "", "TMPDIR": str(folder / "none")}
    seen = run(folder, ["model.py"], "--junitxml=junit.xml", **odd)
    assert seen.code == 0, seen.shown[-3000:]
    assert len(seen.records["model.py"]) == 5
    # With two workers in a locale that is not UTF-8, pytest-xdist itself bears no such folder.
    odd = {name: value for name, value in odd.items() if name in {"HOME", "TMPDIR", "PYTHONPATH"}}
    seen = run(folder, ["model.py"], "-n2", **odd)
    assert seen.code == 0, seen.shown[-3000:]
    assert len(seen.records["model.py"]) == 5


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())
"""
HUGGING_FACE = '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}'


def test_row87_packages_that_are_not_there(tmp_path: Path) -> None:
    away, old = tmp_path / "away", tmp_path / "old"
    (old / "torch-2.9.1.dist-info").mkdir(parents=True)
    (old / "torch-2.9.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.9.1\n")
    away.mkdir()
    folder = tmp_path / "project"
    (folder / "hf").mkdir(parents=True)
    (folder / "model.py").write_text(GOOD)
    (folder / "hf" / "config.json").write_text(HUGGING_FACE)
    path = f"{away}{os.pathsep}{ROOT}"

    (away / "sitecustomize.py").write_text(BLOCK.format(names={"torch", "numpy", "transformers"}))
    assert run(folder, [], PYTHONPATH=path).code == pytest.ExitCode.NO_TESTS_COLLECTED
    words = 'install it with: pip install "'
    torch = f'{words}torch>=2.10"'
    hugging_face = f'{words}pytest-transformer-validate[hf]"'
    for blocked, old_torch, spec, told in (
        ({"torch"}, False, "model.py", f"torch is not installed, which models need; {torch}"),
        (set(), True, "model.py", f"torch 2.9.1 is too old to judge models with; {torch}"),
        ({"transformers"}, False, "hf", f"transformers is not installed; {hugging_face}"),
    ):
        (away / "sitecustomize.py").write_text(BLOCK.format(names=blocked or {"nothing"}))
        first = f"{old}{os.pathsep}" if old_torch else ""
        seen = run(folder, [spec], PYTHONPATH=first + path)
        assert seen.code == USAGE
        assert told in seen.shown


MANY = """
import sys
def pytest_sessionfinish():
    print("HEAVY", sorted({"torch", "numpy", "transformers"} & set(sys.modules)))
"""


def test_row92_a_thousand_models_are_listed_as_quickly_as_other_tests_and_without_torch(
    tmp_path: Path,
) -> None:
    """Measured alone: 1.6 s of CPU time, where pytest takes 1.5 s for as many tests in files."""
    models, files = tmp_path / "models", tmp_path / "files"
    for folder in (models, files):
        folder.mkdir()
    names = [f"m{number}.py" for number in range(1000)]
    for name in names:
        (models / name).write_text(GOOD)
        (files / f"test_{name}").write_text("".join(f"def test_{n}(): ...\n" for n in range(5)))
    (models / "conftest.py").write_text(CHECKS + MANY)
    lines = "".join(f"    {name}\n" for name in names)
    (models / "pytest.ini").write_text(f"[pytest]\ntb_model =\n{lines}")
    (files / "pytest.ini").write_text("[pytest]\n")
    known = {**os.environ, "PYTHONPATH": str(ROOT)}

    def seconds(folder: Path, *args: str) -> tuple[float, str]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", *args],
            cwd=folder,
            env=known,
            capture_output=True,
            text=True,
            check=False,
        )
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, done.stdout

    few, _ = seconds(models, "-o", "tb_model=m0.py")
    many, shown = seconds(models)
    ordinary, _ = seconds(files)
    assert "HEAVY []" in shown
    assert "5000/6000 tests collected" in shown
    assert many - few < 2 * ordinary, f"{many - few:.1f} s for 1000 models, {ordinary:.1f} s"


def test_row91_a_cell_that_is_run_again_says_the_same_and_leaves_nothing() -> None:
    """As in a notebook: the class is defined again, the same name judged again."""
    verdicts = []
    for _ in range(2):
        cell: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(GOOD, "<cell>", "exec"), cell)
        for _ in range(2):
            result = validate(cell["Net"](), checks=["load", "determinism", "gradient_flow"])
            verdicts.append([(record.name, record.status, record.message) for record in result])
    assert all(verdict == verdicts[0] for verdict in verdicts)
    assert {status for _, status, _ in verdicts[0]} == {"passed"}
    assert multiprocessing.active_children() == []
    assert threading.active_count() == 1
