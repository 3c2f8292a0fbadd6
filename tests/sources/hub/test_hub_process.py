"""The process that fetches: its time, its size, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.hub import process
from pytest_transformer_validate.sources.hub.process import ask


def request(hub, what="describe", **more):
    about = {"repository": hub.name, "revision": None, "pins": {}, "offline": False}
    return {"what": what, **about, **more}


def test_an_answer_comes_back(hub):
    commit = hub.push()
    (part,) = ask(request(hub))
    assert (part["commit"], part["names"]) == (commit, ["config.json"])


def test_the_token_is_taken_from_the_environment_that_is_given(hub):
    token = "hf_" + "y" * 34
    hub.push(private=True, token=token)
    assert ask(request(hub), {**os.environ, "HF_TOKEN": token})
    with pytest.raises(SourceError, match="no token was sent"):
        ask(request(hub))


def test_a_proxy_is_used(hub, monkeypatch):
    """Row 88: the stand-in answers for a host that does not exist."""
    commit = hub.push()
    direct = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    proxied = {**direct, "HTTP_PROXY": hub.url, "HF_ENDPOINT": "http://hub.invalid"}
    (part,) = ask(request(hub), proxied)
    assert part["commit"] == commit


def test_a_body_that_never_ends_is_left_at_the_limit(hub, tmp_path):
    hub.push(faults=[["GET .*/resolve/", "drip"]])
    began = time.monotonic()
    with pytest.raises(SourceError, match="^fetching it took longer than 1.5 seconds, which is"):
        ask(request(hub, seconds=1.5))
    assert time.monotonic() - began < 1.5 + process._GRACE
    assert [path for path in tmp_path.rglob("*") if "incomplete" in path.name] == []


def test_weights_that_take_too_long_say_how_to_go_on(hub):
    commit = hub.push({"config.json": "{}", "model.safetensors": b"w"})
    hub.change(faults=[["/cdn/", "drip"]])
    with pytest.raises(SourceError, match=f"hf download {hub.name} --revision {commit} --local"):
        ask(request(hub, "weights", revision=commit, seconds=2.0))


def test_a_file_larger_than_any_that_is_needed_is_cut_off(hub, tmp_path):
    hub.push({"config.json": b" " * 50_000})
    with pytest.raises(SourceError, match="cannot be written to .*/hf/hub: File too large"):
        ask(request(hub, size=10_000))
    assert all(path.stat().st_size <= 10_000 for path in tmp_path.rglob("*"))


def test_a_process_that_dies_is_an_error(hub, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SourceError, match="the process that fetches ended with code 1: it said"):
        ask(request(hub))


def test_it_ends_with_the_process_that_asked(hub):
    hub.push(faults=[["GET .*/resolve/", "drip"]])
    program = (
        "import sys, json; from pytest_transformer_validate.sources.hub.process import ask\n"
        "ask(json.loads(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(request(hub))]
    with subprocess.Popen(command) as parent:
        wait_for(lambda: any("/resolve/" in line for line in hub.requests()))
        (child,) = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(child))


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123 - no path of ours
        return [int(word) for word in file.read().split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - no path of ours
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
