"""Fetched models in a run: exit codes, what is asked of the host, what workers are told."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gisthost import MODEL, REVISION, Host, answer

from pytest_transformer_validate import validate
from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.fetch.tree import Tree

MARKED = MODEL + "\nimport pathlib\npathlib.Path({mark!r}).touch()\n"
USAGE = pytest.ExitCode.USAGE_ERROR

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that the model makes when its code runs."""
    return tmp_path / "mark"


@pytest.fixture
def code(mark: Path) -> str:
    return MARKED.format(mark=str(mark))


@pytest.fixture
def sha256(code: str) -> str:
    return Tree.of({"model.py": code.encode()}).sha256


@pytest.fixture
def run(healthy: pytest.Pytester, host: Host, monkeypatch: pytest.MonkeyPatch) -> Run:
    """pytest with the Gist of this test; in a process of its own where there are workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_it(*args: str, model: str | None = f"gist:{host.gist_id}") -> pytest.RunResult:
        models = [] if model is None else [f"--tb-model={model}"]
        api = f"tb_api_url={host.url}"
        runner = healthy.runpytest_subprocess if "-n" in args else healthy.runpytest
        return runner(*models, "-o", api, "-p", "no:cacheprovider", *args)

    return run_it


def text_of(result: pytest.RunResult) -> str:
    return f"{result.stdout.str()}\n{result.stderr.str()}"


@pytest.mark.parametrize("extra", [(), ("-n", "2")])
def test_c16_without_consent_nothing_runs(host, run, mark, code, sha256, extra):
    """C16: exit 4 with and without -n."""
    host.serve({"model.py": code})
    result = run(*extra)
    assert result.ret == USAGE
    text = text_of(result)
    for part in ("octocat", REVISION, f"--tb-model=gist:{host.gist_id} --tb-trust={sha256}"):
        assert part in text
    assert "Traceback" not in text
    assert not mark.exists()


def test_once_accepted_it_runs_offline(host, run, healthy, code, sha256, mark):
    host.serve({"model.py": code})
    result = run(f"--tb-trust={sha256}", "-v", "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    short = f"gist:{host.gist_id}@{REVISION[:12]}"
    result.stdout.fnmatch_lines(
        [
            f"transformer-validate *: {short} (cpu, seed 0)",
            f"  {short}: revision {REVISION} by octocat, sha256 {sha256}, "
            "accepted by --tb-trust, written to tb.lock",
        ]
    )
    lock = json.loads((healthy.path / "tb.lock").read_text())
    assert lock["models"][f"gist:{host.gist_id}"]["sha256"] == sha256
    count = len(host.requests)
    assert not mark.exists()
    again = run("--tb-offline", f"{short}::tier1::load")
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(["*accepted in tb.lock (cached)"])
    assert len(host.requests) == count
    assert mark.exists()


def test_c17_a_changed_content_runs_nothing(host, run, healthy, code, mark):
    """C17: exit 4 with and without -n."""
    host.serve()
    run("--tb-trust=new", "-k", "nothing")
    newer = "c3" * 20
    host.serve({"model.py": code}, revision=newer)
    for extra in ((), ("-n", "2")):
        result = run(*extra, model=f"gist:{host.gist_id}@{newer}")
        assert result.ret == USAGE
        assert "is not what was accepted" in text_of(result)
        assert "model.py (changed)" in text_of(result)
    assert not mark.exists()


@pytest.mark.parametrize("extra", [(), ("-n", "2")])
def test_c18_a_gist_that_is_not_there_fails_alone(host, run, extra):
    """C18: load fails, the other model goes on, exit 1 with and without -n."""
    result = run("--tb-model=model.py", *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = text_of(result)
    assert f"gist:{host.gist_id}: not found: deleted, mistyped" in text
    assert re.search(rf"FAILED gist:{host.gist_id}::tier1::load", text)
    assert "FAILED model.py" not in text
    assert "Traceback" not in text


def test_in_ci_only_a_hash_is_taken(host, run, healthy, monkeypatch, code, sha256, mark):
    """CI mode: the lock is only read."""
    monkeypatch.setenv("CI", "true")
    host.serve({"model.py": code})
    assert run("--tb-trust=new").ret == USAGE
    assert run().ret == USAGE
    assert host.requests[1:] == []
    assert not mark.exists()
    result = run(f"--tb-trust={sha256}", "-k", "nothing")
    assert "not recorded" in text_of(result)
    assert not (healthy.path / "tb.lock").exists()


def test_c11_listing_asks_nobody(host, run, healthy, mark, code):
    """C11: --co fetches nothing and runs no code; without consent it is exit 4 all the same."""
    host.serve({"model.py": code})
    assert run("--co").ret == USAGE
    result = run("--co", "--tb-trust=new", "-q")
    assert result.ret == 0
    assert f"gist:{host.gist_id}::tier1::load" in text_of(result)
    for args in (("--help",), ("--markers",), ("--fixtures",), ("--version",)):
        assert run(*args).ret == 0
    assert host.requests == []
    assert not (healthy.path / "tb.lock").exists()
    assert not mark.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--tb-trust=new", "--tb-offline"), "--tb-offline and --tb-trust=new contradict"),
        (("--tb-trust=yes",), "--tb-trust must be new or a sha256"),
        (("-o", "tb_trust=new"), "tb_trust in the ini file must be hashes"),
        (("-o", "tb_api_url=http://example.com"), "tb_api_url must be a URL over https"),
    ],
)
def test_c6_what_contradicts_is_exit_4(host, run, args, words):
    """C6, and options of a wrong form: no request."""
    result = run(*args)
    assert result.ret == USAGE
    assert words in text_of(result)
    assert host.requests == []


@pytest.mark.parametrize("form", ["{id}", "gist:{id}", "https://gist.github.com/me/{id}"])
def test_the_environment_names_a_gist(host, run, monkeypatch, form):
    host.serve()
    monkeypatch.setenv("GIST_ID", form.format(id=host.gist_id))
    result = run("--tb-trust=new", "--co", "-q", model=None)
    assert result.ret == 0
    assert f"gist:{host.gist_id}::tier1::load" in text_of(result)
    assert host.gist_id not in text_of(run("--co", "-q", model="model.py"))


def test_c13_a_wrong_gist_of_the_environment_is_exit_4(host, run, monkeypatch):
    monkeypatch.setenv("GIST_ID", "my-model-deadbeef")
    result = run(model=None)
    assert result.ret == USAGE
    assert "GIST_ID: model 'gist:my-model-deadbeef'" in text_of(result)
    assert host.requests == []


def test_the_environment_is_in_the_command_that_repeats(host, run, monkeypatch):
    monkeypatch.setenv("GIST_ID", host.gist_id)
    result = run("-k", "load", model=None)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"again: pytest --tb-model=gist:{host.gist_id} -o=tb_api_url=" in text_of(result)


def test_d20_many_workers_make_one_request(host, run, healthy, code):
    """D20: a cold cache: one request to the API and one for the raw file, whoever loads it."""
    healthy.makepyfile(test_own="def test_load(tb_model): pass")
    entry = {"size": len(code), "truncated": True, "content": ""}
    entry["raw_url"] = host.raw("model.py", answer(code))
    host.serve({"model.py": entry})
    args = ("test_own.py", "-k", "test_load or sound")
    result = run("--tb-trust=new", "-n", "2", "--dist=load", *args)
    assert result.ret == 0
    assert len(host.requests) == 2


def test_the_same_gist_twice_is_exit_4(host, run):
    host.serve()
    result = run("--tb-trust=new", f"--tb-model=https://gist.github.com/{host.gist_id}")
    assert result.ret == USAGE
    assert "two models would both be called" in text_of(result)


def test_the_reference_needs_consent_too(host, run, mark, code):
    host.serve({"model.py": code})
    result = run(f"--tb-reference=gist:{host.gist_id}", model="model.py")
    assert result.ret == USAGE
    assert "nobody has accepted yet" in text_of(result)
    assert not mark.exists()


def test_c87_without_platformdirs_the_install_line_is_given(host, run, healthy):
    """C87."""
    healthy.makeconftest("import sys\nsys.modules['platformdirs'] = None")
    result = run("--tb-trust=new")
    assert result.ret == USAGE
    assert 'pip install "pytest-transformer-validate[gist]"' in text_of(result)


def test_c84_a_cache_that_others_can_write_to_is_exit_4(host, run, mark, code):
    """C84, D29."""
    host.serve({"model.py": code})
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "pytest-transformer-validate"
    cache.mkdir(mode=0o700)
    cache.chmod(0o777)
    result = run("--tb-trust=new")
    assert result.ret == USAGE
    assert str(cache) in text_of(result)
    assert not mark.exists()


def test_validate_runs_a_gist_by_its_hash(host, monkeypatch, tmp_path, mark, code, sha256):
    monkeypatch.setenv("GITHUB_API_URL", host.url)
    monkeypatch.chdir(tmp_path)
    host.serve({"model.py": code})
    spec = f"gist:{host.gist_id}"
    with pytest.raises(SpecError, match=f"accept it with trust='{sha256}'"):
        validate(spec)
    with pytest.raises(SpecError, match="trust must be a sha256"):
        validate(spec, trust="new")
    with pytest.raises(SpecError, match="nobody has accepted"):
        validate(spec, trust="0" * 64)
    assert not mark.exists()
    result = validate(spec, checks="load", trust=sha256)
    assert result.passed
    assert result[0].model == f"{spec}@{REVISION[:12]}"
    assert mark.exists()
    assert not (tmp_path / "tb.lock").exists()


def test_validate_says_what_a_host_does_not_give(host, monkeypatch):
    monkeypatch.setenv("GITHUB_API_URL", host.url)
    (record,) = validate(f"gist:{host.gist_id}", checks="load", trust="0" * 64)
    assert record.status == "broken"
    assert "not found" in record.message
