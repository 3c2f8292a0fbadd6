"""Which files are fetched, at which commit, and what is asked of the Hub for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_transformer_validate.errors import SourceError
from tests.sources.hub.conftest import CONFIG

SHARDS = {"model.safetensors.index.json": {"weight_map": {"a": "s1.safetensors"}}}
EVERYTHING = {
    "config.json": CONFIG,
    "README.md": "read me",
    "tokenizer.json": "{}",
    "vocab.txt": "a",
    "model.safetensors": b"s" * 40,
    "pytorch_model.bin": b"p" * 40,
    "tf_model.h5": b"t" * 40,
    "flax_model.msgpack": b"f" * 40,
    "onnx/model.onnx": b"o" * 40,
    "modeling_gpt2.py": "raise SystemExit",
}


def names(parts):
    return [sorted(part["names"]) for part in parts]


def test_only_what_is_needed_is_fetched(hub, describe, weights):
    commit = hub.push(EVERYTHING)
    parts = describe()
    assert names(parts) == [["config.json", "tokenizer.json", "vocab.txt"]]
    assert parts[0]["commit"] == commit
    assert (Path(parts[0]["folder"]) / "vocab.txt").read_text() == "a"
    assert hub.files() == ["config.json", "tokenizer.json", "vocab.txt"]
    weights(commit)
    assert hub.files() == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]


def test_what_is_there_is_not_asked_for_again(hub, describe, weights):
    commit = hub.push(EVERYTHING)
    describe()
    weights(commit)
    before = hub.requests()
    assert describe(commit)[0]["commit"] == commit
    weights(commit)
    assert describe(offline=True)[0]["commit"] == commit
    weights(commit, offline=True)
    assert hub.requests() == before


@pytest.mark.parametrize("typed", ["main", "v1", "refs/pr/1", "short", "commit"])
def test_a_revision_is_resolved_to_a_commit(hub, describe, typed):
    old = hub.push({"config.json": {**CONFIG, "n_layer": 2}})
    new = hub.push()
    hub.change(refs={"main": new, "v1": old, "refs/pr/1": old})
    typed = {"short": old[:8], "commit": old}.get(typed, typed)
    commit = describe(typed)[0]["commit"]
    assert commit == (new if typed == "main" else old)
    before = hub.requests()
    assert describe(typed, offline=True)[0]["commit"] == commit
    assert hub.requests() == before


def test_a_branch_that_moved_is_seen(hub, describe):
    old = hub.push()
    assert describe()[0]["commit"] == old
    new = hub.push({"config.json": {**CONFIG, "n_layer": 2}})
    assert describe()[0]["commit"] == new
    assert describe(offline=True)[0]["commit"] == new


def test_shards_are_fetched_by_their_index(hub, describe, weights):
    commit = hub.push({"config.json": CONFIG, **SHARDS, "s1.safetensors": b"1", "s2.bin": b"2"})
    describe()
    weights(commit)
    assert hub.files() == ["config.json", "model.safetensors.index.json", "s1.safetensors"]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"README.md": ""}, "no model of transformers: there is no config.json; found: README.md"),
        ({"config.json": "[]"}, "config.json holds a list"),
        ({"config.json": CONFIG | {"auto_map": "x"}}, "key auto_map: must be an object"),
        ({"config.json": CONFIG, "net.gguf": b"x"}, "weights that are not read here: net.gguf"),
        ({"config.json": CONFIG, **SHARDS}, "names 1 files that the repository does not have: s1"),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": {"weight_map": {"a": "../x"}}},
            r"does not have: \.\./x",
        ),
        ({"config.json": CONFIG, "model.safetensors.index.json": "[]"}, "is no index of weights"),
    ],
)
def test_a_repository_that_is_no_model(hub, describe, weights, files, text):
    commit = hub.push(files)
    with pytest.raises(SourceError, match=text) as caught:
        _ = describe(), weights(commit)
    assert len(str(caught.value).splitlines()) <= 6


def test_a_model_without_weights_needs_none(hub, describe, weights):
    commit = hub.push()
    describe()
    weights(commit)
    weights(commit, offline=True)
    assert hub.files() == ["config.json"]


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("model.safetensors", 30_000_000_000, "weights have 30,000 MB; at most 20,000 MB"),
        ("tokenizer.json", 200_000_000, "descriptions have 200 MB; at most 100 MB"),
        ("own.py", 26_000_000, "Python files have 26 MB; at most 25 MB"),
    ],
)
def test_what_is_too_large_is_not_begun(hub, describe, weights, name, size, text):
    config = {**CONFIG, "auto_map": {"AutoModel": "own.Net"}}
    commit = hub.push(
        {"config.json": config, "own.py": "", name: b"x"}, tree={name: {"size": size}}
    )
    with pytest.raises(SourceError, match=f"{text} are fetched\n.*name the folder"):
        _ = describe(), weights(commit)
    assert name not in hub.files()


def test_too_many_files_of_code(hub, describe):
    files = {f"m{at}.py": "" for at in range(301)}
    hub.push({"config.json": {**CONFIG, "auto_map": {"AutoModel": "m1.Net"}}, **files})
    with pytest.raises(SourceError, match="has 301 Python files; at most 300"):
        describe()


def test_code_is_fetched_where_the_config_names_it(hub, describe):
    code = {"modeling.py": "a", "ops/fast.py": "b", "setup-it.py": "c", "1.py": "d"}
    commit = hub.push(
        {"config.json": {**CONFIG, "auto_map": {"AutoModel": "modeling.Net"}}, **code}
    )
    parts = describe()
    assert names(parts) == [["config.json", "modeling.py", "ops/fast.py"]]
    assert parts[0]["commit"] == commit


def test_code_of_a_tokenizer_is_code(hub, describe):
    tokens = {"auto_map": {"AutoTokenizer": ["own.Slow", None]}}
    hub.push({"config.json": CONFIG, "tokenizer_config.json": tokens, "own.py": ""})
    assert names(describe()) == [["config.json", "own.py", "tokenizer_config.json"]]


def test_code_of_another_repository_is_pinned_too(hub, describe):
    old = hub.push({"modeling.py": "old", "config.json": "not fetched"}, name="code")
    reference = f"{hub.org}/code--modeling.Net"
    hub.push({"config.json": {**CONFIG, "auto_map": {"AutoModel": reference}}, "mine.py": ""})
    parts = describe()
    assert names(parts) == [["config.json"], ["modeling.py"]]
    assert (parts[1]["repository"], parts[1]["commit"]) == (f"{hub.org}/code", old)
    new = hub.push({"modeling.py": "new"}, name="code")
    assert describe()[1]["commit"] == new
    assert describe(pins={f"{hub.org}/code": old})[1]["commit"] == old


def test_the_token_stays_with_the_hub(hub, describe, weights, monkeypatch):
    token = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    commit = hub.push(
        {"config.json": CONFIG, "model.safetensors": b"w"}, private=True, token=token
    )
    describe()
    weights(commit)
    sent = {line.split()[1].split("/")[1]: "+token" in line for line in hub.requests()}
    assert sent == {"api": True, "model": True, "cdn": False}
