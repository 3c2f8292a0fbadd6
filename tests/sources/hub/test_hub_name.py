from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.hub.name import hub, parse_name, short_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("spec", "repository", "revision", "short"),
    [
        ("hf:org/name", "org/name", None, "hf:org/name"),
        ("hf:o-r.g/n_a.me-1", "o-r.g/n_a.me-1", None, "hf:o-r.g/n_a.me-1"),
        ("hf:org/name@main", "org/name", "main", "hf:org/name@main"),
        ("hf:org/name@refs/pr/1", "org/name", "refs/pr/1", "hf:org/name@refs/pr/1"),
        ("hf:org/name@0123456", "org/name", "0123456", "hf:org/name@0123456"),
        (f"hf:org/name@{COMMIT.upper()}", "org/name", COMMIT, "hf:org/name@0123456789ab"),
    ],
)
def test_names(spec, repository, revision, short):
    name = parse_name(spec)
    assert (name.repository, name.revision) == (repository, revision)
    assert short_id(*name) == short


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "name",
        "a/b/c",
        "../b",
        "a/..",
        "a/b--c",
        "a/b.git",
        "a b/c",
        "-a/b",
        "a/b@",
        "a/b@../c",
    ],
)
def test_what_is_no_name(rest):
    with pytest.raises(SpecError, match="named by hf:org/name"):
        parse_name(f"hf:{rest}")


@pytest.mark.parametrize(
    "rest", ["a/b@-c", "a/b@c d", "//a/b", "a/b@c@d", "ä/b", "a/" + "b" * 100, "a/b@" + "c" * 101]
)
def test_what_is_no_name_either(rest):
    with pytest.raises(SpecError, match="named by hf:org/name"):
        parse_name(f"hf:{rest}")


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("", "https://huggingface.co"),
        ("https://user:word@mirror.example:8443/hub?x=1", "https://mirror.example:8443"),
        ("https://mirror.example:port", "https://mirror.example"),
    ],
)
def test_the_host_is_shown_without_secrets(monkeypatch, endpoint, shown):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert hub() == shown
