"""Fetched models run in workers without credentials; what ends a worker ends no run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.containment import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "MY_SECRET")

# As a Gist is: code that comes from another machine.
FETCHED = """
from pytest_transformer_validate.sources.file import FileSource
FileSource.fetched = True
"""

WRITES_ENVIRONMENT = """
import json, os, pathlib
pathlib.Path(__file__).with_name("seen.json").write_text(json.dumps(dict(os.environ)))
"""

# What a model does at import, or before it answers, and what is said of it. ``sum`` runs in C
# until it is done.
CRASHES = {
    "segfault": ("import ctypes; ctypes.string_at(0)", "", "was ended by SIGSEGV"),
    "killed": ("", "import os; os.kill(os.getpid(), 9)", "SIGKILL, likely for want of memory"),
    "stuck": ("", "sum(range(10**13))", "ran 4 s longer than its limit of 6 s"),
}


# The first worker ends after its first test.
ENDS = """
import os

def pytest_sessionstart(session):
    global xdist
    xdist = next((p for p in session.config.pluginmanager.get_plugins() if hasattr(p, "torun")), 0)

def pytest_runtest_protocol(item, nextitem):
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0" and "m1" in item.nodeid:
        stop = type(xdist).run_one_test.__globals__["Marker"].SHUTDOWN
        {end}
"""


@pytest.fixture
def fetched(healthy: pytest.Pytester) -> Iterator[pytest.Pytester]:
    """A project whose model files count as fetched."""
    from pytest_transformer_validate.sources.file import FileSource

    conftest = healthy.path / "conftest.py"
    conftest.write_text(conftest.read_text() + FETCHED)
    yield healthy
    FileSource.fetched = False


def records(project: pytest.Pytester) -> list[dict[str, Any]]:
    data: dict[str, Any] = json.loads((project.path / "out.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = data["records"]
    return found


class TestFetched:
    def test_runs_in_a_worker_without_credentials(
        self, fetched: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in SECRETS:
            monkeypatch.setenv(name, "x" * 12)
        model = fetched.path / "model.py"
        model.write_text(model.read_text() + WRITES_ENVIRONMENT)
        result = fetched.runpytest_inprocess("--tb-model=model.py", "-m", "tier1")
        result.assert_outcomes(passed=4)
        result.stdout.fnmatch_lines(["*fetched code runs in workers*no credentials"])
        seen = json.loads((fetched.path / "seen.json").read_text())
        assert seen["PYTEST_XDIST_WORKER"] == "gw0"
        assert seen.keys() & set(SECRETS) == set()
        assert [os.environ[name] for name in SECRETS] == ["x" * 12] * len(SECRETS)

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (("-n0",), "*-n 0 keeps it in this process: leave -n 0 out*"),
            (("--pdb",), "*--pdb needs it in this process: leave --pdb out*"),
            (("--trace",), "*--trace needs it in this process*"),
            (("-p", "no:xdist"), "*-p no:xdist turns pytest-xdist off*"),
            (("-n", "auto", "--maxprocesses=0", "--dist=no"), "*no worker was asked for*"),
        ],
    )
    def test_runs_nowhere_else(
        self,
        fetched: pytest.Pytester,
        monkeypatch: pytest.MonkeyPatch,
        args: tuple[str, ...],
        words: str,
    ) -> None:
        monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "0")
        (fetched.path / "model.py").write_text("raise SystemExit('the model was run')")
        result = fetched.runpytest_inprocess("--tb-model=model.py", *args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*model.py is code from another machine*", words])

    def test_not_beside_a_variable_of_this_process(self, fetched: pytest.Pytester) -> None:
        class Notebook:
            def pytest_tb_models(self) -> list[Any]:
                return [("mine", object)]

        result = fetched.inline_run("--tb-model=model.py", plugins=[Notebook()])
        assert result.ret == pytest.ExitCode.USAGE_ERROR

    def test_is_listed_without_a_worker(self, fetched: pytest.Pytester) -> None:
        (fetched.path / "model.py").write_text("raise SystemExit('the model was run')")
        args = ("--tb-model=model.py", "--co", "-q", "-p", "no:xdist")
        result = fetched.runpytest_inprocess(*args)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["model.py::tier1::load"])


class TestWorkersThatEnd:
    @pytest.fixture
    def crashing(self, healthy: pytest.Pytester) -> pytest.Pytester:
        """Models that end their process at import or in forward, and a sound one at the end."""
        sound = (healthy.path / "model.py").read_text()
        for name, (at_import, inside, _) in CRASHES.items():
            text = sound.replace("input_ids):\n", f"input_ids):\n        {inside or 'pass'}\n")
            (healthy.path / f"{name}.py").write_text(f"{at_import}\n{text}")
        return healthy

    def test_blame_their_check_and_nothing_else(
        self, crashing: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two checks a model: the one that is left alone has to be run, too."""
        monkeypatch.setattr(deadline, "GRACE", 4.0)
        models = [f"--tb-model={name}.py" for name in (*CRASHES, "model")]
        args = ("-n1", "--tb-json=out.json", "--tb-timeout=6", "-k", "load or sound")
        result = crashing.runpytest_inprocess(*models, *args)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(failed=6, passed=2)
        found = records(crashing)
        for name, (*_, words) in CRASHES.items():
            own = sorted(r["status"] for r in found if r["model"] == f"{name}.py")
            assert own == ["blocked", "broken"]
            broken, *blocked = (r["message"] for r in found if r["model"] == f"{name}.py")
            assert words in broken
            assert all("blocked by tier1::" in text and words in text for text in blocked)
        crash = next(r["message"] for r in found if r["model"] == "segfault.py")
        assert "Segmentation fault" in crash
        assert f"segfault.py::tier1::{crash.partition('[')[0].partition(' ')[0]}" in crash

    @pytest.mark.parametrize("end", ["xdist.torun.put(stop)", "os.abort()"])
    def test_between_tests_fail_none(self, healthy: pytest.Pytester, end: str) -> None:
        """One hears no more, which pytest-xdist takes for an error of its own; one is gone."""
        conftest = healthy.path / "conftest.py"
        conftest.write_text(conftest.read_text() + ENDS.format(end=end))
        text = (healthy.path / "model.py").read_text()
        for number in range(5):
            (healthy.path / f"m{number}.py").write_text(text)
        models = [f"--tb-model=m{number}.py" for number in range(5)]
        result = healthy.runpytest_subprocess(*models, "-n1", "-k", "load or sound", timeout=120)
        result.assert_outcomes(passed=10)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["*replacing crashed worker gw0*"])

    def test_what_never_ran_is_named(self, crashing: pytest.Pytester) -> None:
        models = ("--tb-model=segfault.py", "--tb-model=model.py")
        result = crashing.runpytest_inprocess(*models, "-n1", "--max-worker-restart=0")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*never ran*", "segfault.py::tier1::sound", "model.py::*"])
