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

    def run_it(*args, model=f"hf:{hub.name}"):
        options = (f"--tb-model={model}", "-k", "load", "-p", "no:cacheprovider")
        result = pytester.runpytest_subprocess(*options, *args)
        text = f"{result.stdout.str()}\n{result.stderr.str()}"
        assert TOKEN not in text
        assert "INTERNALERROR" not in text
        return result.ret, text

    return run_it


def test_a_model_is_fetched_checked_and_named_by_its_commit(hub, run):
    commit = hub.push()
    name = f"hf:{hub.name}@{commit[:12]}"
    code, text = run("-v", f"{name}::tier1::load")
    assert code == 0
    assert f"{name}: revision {commit} by {hub.org}, sha256 " in text
    assert re.search(rf"PASSED {name}::tier1::load", text)
    assert "1 passed" in text


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
    code, text = run("--tb-trust=new", "-n", "2")
    assert code == 0
    assert "accepted by --tb-trust, written to tb.lock" in text
    assert (tmp_path / "found").read_text() == "None"


@EITHER
def test_a_model_that_is_not_there_fails_alone(hub, run, extra):
    """Row 59: exit 1, the model's check says why."""
    code, text = run(*extra, model=f"hf:{hub.org}/gone")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert f"hf:{hub.org}/gone: not found on {hub.url}: mistyped, deleted, or private" in text
    assert f"FAILED hf:{hub.org}/gone::tier1::load" in text


def test_listing_fetches_nothing(hub, run):
    hub.push({"config.json": CONFIG})
    code, text = run("--co", "-q")
    assert code == 0
    assert f"hf:{hub.name}::tier1::load" in text
    assert hub.requests() == []


@pytest.mark.parametrize("spec", ["hf:name", "hf:org/name@../x", "https://huggingface.co/a/b"])
def test_what_is_no_name_is_usage(hub, run, spec):
    code, text = run(model=spec)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "hf:" in text
