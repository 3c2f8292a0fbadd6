"""Runs of pytest over models of the Hub: exit codes, with and without ``-n 2``."""

from __future__ import annotations

import re

import pytest

from tests.sources import remote_code
from tests.sources.hub.conftest import CONFIG

EITHER = pytest.mark.parametrize("extra", [(), ("-n", "2")], ids=["alone", "n2"])
TOKEN = "hf_" + "z" * 34
SPY = """
import os, pathlib
pathlib.Path({place!r}).write_text(str(os.environ.get("HF_TOKEN")))
"""


@pytest.fixture
def run(hub, pytester, tmp_path, monkeypatch):
    """Run the check ``load`` of this test's model in a process of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CI", raising=False)

    def run_it(*args, models=(f"hf:{hub.name}",)):
        named = [f"--tb-model={model}" for model in models]
        result = pytester.runpytest_subprocess(
            *named, "-k", "load", "-p", "no:cacheprovider", *args
        )
        text = f"{result.stdout.str()}\n{result.stderr.str()}"
        assert TOKEN not in text
        assert "INTERNALERROR" not in text
        return result.ret, text

    return run_it


def not_found(hub, text):
    """Row 59: a model that is not there fails alone, and its check says why."""
    assert f"hf:{hub.org}/gone: not found on {hub.url}" in text
    assert "mistyped, deleted, or private" in text
    return re.search(rf"FAILED hf:{hub.org}/gone::tier1::load", text)


def test_a_model_is_fetched_checked_and_named_by_its_commit(hub, run):
    commit = hub.push()
    name = f"hf:{hub.name}@{commit[:12]}"
    gone = f"hf:{hub.org}/gone"
    ids = (f"{name}::tier1::load", f"{gone}::tier1::load")
    code, text = run("-v", *ids, models=(f"hf:{hub.name}", gone))
    assert code == pytest.ExitCode.TESTS_FAILED
    assert f"{name}: revision {commit} by {hub.org}, sha256 " in text
    assert re.search(rf"PASSED {name}::tier1::load", text)
    assert not_found(hub, text)
    assert "1 failed, 1 passed" in text


@EITHER
def test_code_that_nobody_accepted_is_usage(hub, run, extra):
    """Rows 57 and 61: exit 4, whatever the config says about trust."""
    hub.push(remote_code.FILES)
    code, text = run(*extra)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "code from another machine that nobody has accepted yet" in text
    assert f"accept it: pytest --tb-model=hf:{hub.name} --tb-trust=" in text


def test_accepted_code_runs_in_a_worker_without_the_token(hub, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code = remote_code.CONFIGURATION + SPY.format(place=str(tmp_path / "found"))
    files = {**remote_code.FILES, "configuration_tiny.py": code}
    hub.push(files, private=True, token=TOKEN)
    models = (f"hf:{hub.name}", f"hf:{hub.org}/gone")
    code, text = run("--tb-trust=new", "-n", "2", models=models)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "accepted by --tb-trust, written to tb.lock" in text
    assert (tmp_path / "found").read_text() == "None"
    assert not_found(hub, text)
    assert "1 failed, 1 passed" in text


def test_listing_fetches_nothing(hub, run):
    hub.push({"config.json": CONFIG})
    code, text = run("--co", "-q")
    assert code == 0
    assert f"hf:{hub.name}::tier1::load" in text
    assert hub.requests() == []


def test_what_is_no_name_is_usage(hub, run):
    code, text = run(models=("hf:org/name@../x",))
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "named by hf:org/name" in text
