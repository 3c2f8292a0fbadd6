"""Runs of pytest over models of the Hub: exit codes, with and without ``-n 2``."""

from __future__ import annotations

import re

import pytest

from tests.sources import remote_code
from tests.sources.hub.conftest import CONFIG

EITHER = pytest.mark.parametrize("extra", [(), ("-n", "2")], ids=["alone", "n2"])
TOKEN = "hf_" + "z" * 34
LOUD = f"""
import os, sys
sys.stderr.write(f"token: {{os.environ.get('HF_TOKEN')}}")
raise ValueError("{TOKEN[:9]}" + "{TOKEN[9:]}")
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
    code, text = run("-v")
    assert code == 0
    name = f"hf:{hub.name}@{commit[:12]}"
    assert f"{name}: revision {commit} by {hub.org}, sha256 " in text
    assert re.search(rf"PASSED {name}::tier1::load", text)
    before = hub.requests()
    code, text = run("--tb-offline", f"{name}::tier1::load", model=f"hf:{hub.name}@{commit}")
    assert (code, hub.requests()) == (0, before)
    assert "1 passed" in text
    assert "(cached)" in text


@EITHER
def test_code_that_nobody_accepted_is_usage(hub, run, extra):
    """Rows 57 and 61: exit 4, whatever the config says about trust."""
    hub.push(remote_code.FILES)
    code, text = run(*extra)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "code from another machine that nobody has accepted yet" in text
    assert f"accept it: pytest --tb-model=hf:{hub.name} --tb-trust=" in text


def test_accepted_code_runs_in_a_worker_without_the_token(hub, run, monkeypatch, pytester):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.push({**remote_code.FILES, "parts/head.py": LOUD}, private=True, token=TOKEN)
    code, text = run("--tb-trust=new")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "token: None" in text
    assert "ValueError: [redacted]" in text
    assert (pytester.path / "tb.lock").exists()
    hub.push(remote_code.FILES, private=True, token=TOKEN)
    assert run("--tb-trust=new", "-n", "2")[0] == 0


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
