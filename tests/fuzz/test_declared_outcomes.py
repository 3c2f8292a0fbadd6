"""Whatever is typed, found in a file or answered by a host: what comes of it is declared.

Specs, config.json, answers about Gists and tb.lock, by hypothesis. Without ``FUZZ`` the examples
are few and always the same; ``FUZZ=100000`` looks for new ones. What was found once stays here
as an ``@example``.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.sources.fetch.http import Answer
from pytest_transformer_validate.sources.fetch.lock import Lock
from pytest_transformer_validate.sources.gist.answer import newest_revision, read_gist
from pytest_transformer_validate.sources.parse import parse
from pytest_transformer_validate.sources.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLES = int(os.environ.get("FUZZ", "0"))
bounded = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
IDENTITY = "0123456789abcdef" * 2
REVISION = "0123456789" * 4
HASH = "ab" * 32

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
JSON = "application/json"

PIECES = ["gist:", "hf:", "::", ":", "@", "/", "..", ".py", "model.py", "https://", "C:\\", "#"]
PIECES += ["gist.github.com/", "user/", IDENTITY, REVISION, "org/name", "pkg.mod:Net", " ", "~"]
PIECES += ["#gist_id=", "&name=", "huggingface.co/", "%2e%2e", "\u202e", "\ud800", "é", "-rf"]
PIECES += [".git", "\x00", "?"]
specs = st.one_of(
    st.text(st.characters(), max_size=60),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
)


def broken_json(base: Any, fields: list[str]) -> st.SearchStrategy[bytes]:
    """Bytes near a valid document: fields replaced, cut, or anything at all."""
    replaced = st.dictionaries(st.sampled_from(fields), values, max_size=4).map(
        lambda new: json.dumps(_merged(base, new)).encode("utf-8", "surrogatepass")
    )
    whole = values.map(lambda value: json.dumps(value).encode())
    cut = st.tuples(replaced, st.integers(0, 400)).map(lambda pair: pair[0][: pair[1]])
    return st.one_of(replaced, whole, cut, st.binary(max_size=80))


def outcome(call: Callable[[], Any], declared: type[Exception]) -> tuple[Any, str]:
    """What ``call`` returns, or the text of the error that it may raise; others come through."""
    try:
        return call(), ""
    except declared as error:
        return None, str(error) or "<no text>"


def _merged(base: Any, new: dict[str, Any]) -> Any:
    """``base`` with values put in at dotted keys."""
    merged = json.loads(json.dumps(base))
    for path, value in new.items():
        at = merged
        *way, last = path.split(".")
        for key in way:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[last] = value
    return merged


@bounded
@given(spec=specs)
@example(spec="gist:" + "\u0660" * 32)
@example(spec="https://gist.github.com/[")
@example(spec="https://[::1/gist")
@example(spec="~nobody/model.py")
@example(spec="a" * 5000)
def test_a_spec_is_a_source_or_a_spec_error(spec: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    source, text = outcome(lambda: parse(spec, rootdir=tmp_path, cwd=tmp_path), SpecError)
    assert len(text.splitlines()) <= 12
    assert not CONTROL.search(text)
    assert text or re.fullmatch(r"[A-Za-z0-9._:/@=-]{1,130}", source.id)


CONFIG = {
    "vocab_size": 16,
    "max_seq_len": 8,
    "expect_fail": {"causality": "why"},
    "nodes": [{"type": "x", "params": {"vocab_size": 16}}],
    "task": "lm",
}


@bounded
@given(data=broken_json(CONFIG, [*CONFIG, "seq_length", "nodes", "expect_fail.causality", "x"]))
@example(data=b'{"a": ' + b"9" * 5000 + b"}")
@example(data=b"[" * 100_000)
@example(data=b'{"a": 1e999, "b": NaN}')
@example(data=b'{"nodes": [{"params": [1]}]}')
@example(data=b'{"\\ud800": 1}')
@example(data=b"\xef\xbb\xbf\xef\xbb\xbf{}")
def test_a_configuration_is_settings_or_a_source_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    found, text = outcome(lambda: read_settings(path), SourceError)
    assert "config.json" in text or not found.empty


GIST = {
    "id": IDENTITY,
    "owner": {"login": "user"},
    "history": [{"version": REVISION}],
    "truncated": False,
    "fork_of": {"id": "f" * 32, "owner": {"login": "other"}},
    "files": {
        "model.py": {"size": 2, "content": "x\n", "truncated": False, "raw_url": "https://x/y"}
    },
}
FIELDS = [*GIST, "files.model", "owner.login", "fork_of.owner", "fork_of.id"]


@bounded
@given(data=broken_json(GIST, FIELDS), headers=st.sampled_from([JSON, "text/html", ""]))
@example(data=json.dumps({**GIST, "files": {"a": {"size": True}}}).encode(), headers=JSON)
@example(
    data=json.dumps({**GIST, "history": [{"version": "x" * 40}]}).encode(),
    headers=JSON,
)
@example(data=b"[" * 100_000, headers=JSON)
@example(data=b'{"id": ' + b"9" * 5000 + b"}", headers=JSON)
def test_an_answer_about_a_gist_is_one_or_a_source_error(data: bytes, headers: str) -> None:
    answer = Answer(200, {"content-type": headers}, data, f"https://host/gists/{IDENTITY}")
    for read in (lambda: read_gist(answer, IDENTITY, None), lambda: newest_revision(answer)):
        _, text = outcome(read, SourceError)
        assert len(text) < 1000
        assert not CONTROL.search(text)


LOCK = {
    "version": 1,
    "models": {
        f"gist:{IDENTITY}": {
            "revision": REVISION,
            "owner": "user",
            "sha256": HASH,
            "files": {"model.py": {"size": 3, "sha256": HASH}},
        }
    },
}


@bounded
@given(data=broken_json(LOCK, ["version", "models", f"models.gist:{IDENTITY}", "more"]))
@example(data=b"")
@example(data=b'{"models": {}, "version": true}')
@example(data=b'{"models": {"gist:x": null}, "version": 1}')
@example(data=json.dumps(LOCK).encode())
def test_a_lock_is_one_or_a_spec_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tb.lock"
    path.write_bytes(data)
    lock, text = outcome(lambda: Lock.read(path), SpecError)
    assert "tb.lock" in text or isinstance(lock.pins, dict)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}"])
def test_a_lock_that_is_a_link_to_nothing_or_odd_is_declared_too(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "tb.lock"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(SpecError):
        Lock.read(path)
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(SpecError):
        Lock.read(path)
