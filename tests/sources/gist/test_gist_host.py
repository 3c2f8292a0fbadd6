"""What a host of Gists can answer, and what is made of it; the rows of table C by number.

The host is a real HTTP server in another process (``gisthost``).
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from gisthost import MODEL, OLDER, REVISION, Host, answer

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.fetch.http import Client, Limits
from pytest_transformer_validate.sources.fetch.rate import Token
from pytest_transformer_validate.sources.fetch.source import Fetched, Resolution
from pytest_transformer_validate.sources.fetch.store import Store
from pytest_transformer_validate.sources.gist.api import Api
from pytest_transformer_validate.sources.gist.source import GistSource

QUICK = Limits(seconds=10, wait=0.5, pause=0.01)

Fetch = Callable[..., Fetched]
Refusal = Callable[..., str]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def gist(host: Host) -> GistSource:
    """The Gist of this test, with limits that a test can wait for."""
    source = GistSource.parse(f"gist:{host.gist_id}", Api.of(host.url))
    return replace(source, limits=QUICK)


@pytest.fixture
def fetch(gist: GistSource, store: Store) -> Fetch:
    def fetch_it(revision: str | None = None, **limits: Any) -> Fetched:
        return replace(gist, limits=replace(QUICK, **limits)).fetch(revision, store)

    return fetch_it


@pytest.fixture
def refusal(fetch: Fetch, store: Store) -> Refusal:
    """The text of the error that fetching ends with; the cache stays empty."""

    def refusal_of(revision: str | None = None, **limits: Any) -> str:
        with pytest.raises(SourceError) as caught:
            fetch(revision, **limits)
        text = str(caught.value)
        assert list((store.root / "trees").iterdir()) == []
        assert len(text.splitlines()) <= 12
        assert text.replace("\n", "").isprintable()
        return text

    return refusal_of


def files(fetched: Fetched) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in fetched.folder.iterdir()}


def test_one_request_gives_revision_owner_and_files(host, fetch):
    host.serve({"model.py": MODEL, "config.json": "{}"})
    got = fetch()
    assert (got.pin.revision, got.pin.owner) == (REVISION, "octocat")
    assert files(got) == {"model.py": MODEL.encode(), "config.json": b"{}"}
    assert [request["path"] for request in host.requests] == [f"/gists/{host.gist_id}"]


def test_a_revision_is_asked_for_by_name(host, fetch):
    host.serve(revision=OLDER)
    assert fetch(OLDER).pin.revision == OLDER
    assert [request["path"] for request in host.requests] == [f"/gists/{host.gist_id}/{OLDER}"]


def test_c18_not_found(host, refusal):
    """C18: 404."""
    text = refusal()
    assert "not found: deleted, mistyped, or secret" in text
    assert f"/gist/{host.gist_id}" in text
    assert len(host.requests) == 1


@pytest.mark.parametrize("variable", ["GITHUB_TOKEN", "GH_TOKEN"])
def test_c18_a_bad_token_is_named_by_its_variable(host, refusal, monkeypatch, variable):
    """C18: 401 names the variable, never the value."""
    token = "ghp_" + "x" * 36
    monkeypatch.setenv(variable, token)
    host.gist(answer({"message": f"Bad credentials {token}"}, 401))
    text = refusal()
    assert variable in text
    assert token not in text
    assert host.requests[0]["headers"]["authorization"] == f"Bearer {token}"


def test_c18_a_token_that_is_wanted_is_asked_for(host, refusal):
    host.gist(answer({}, 401))
    assert "set GITHUB_TOKEN" in refusal()


@pytest.mark.parametrize("status", [404, 422])
def test_c19_an_unknown_revision_prints_the_newest(host, refusal, status):
    """C19: 422 on a revision."""
    host.serve()
    host.gist(answer({"message": "No commit found"}, status), revision=OLDER)
    text = refusal(OLDER)
    assert f"no revision {OLDER}; its newest is {REVISION}" in text


def test_c19_where_the_gist_is_gone_too_that_is_said(host, refusal):
    assert "not found" in refusal(OLDER)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"Retry-After": "0"}),
        (403, {"Retry-After": "0"}),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000"}),
    ],
)
def test_c20_a_short_limit_is_waited_for(host, fetch, status, headers):
    """C20: waits where the budget allows."""
    host.gist(answer({}, status, headers), answer(host.about()))
    assert fetch().pin.revision == REVISION
    assert len(host.requests) == 2


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "70"}, "in 70 s"),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "{later}"}, "UTC"),
        (429, {}, "does not say until when"),
        (429, {"Retry-After": "soon"}, "does not say until when"),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 5000}, "does not say"),
        (429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, "UTC"),
    ],
)
def test_c20_a_long_limit_is_explained(host, refusal, status, headers, words):
    """C20: when it ends, what a token does, what the cache does; nobody waits."""
    later = str(int(time.time()) + 1800)
    headers = {key: value.format(later=later) for key, value in headers.items()}
    host.gist(answer({"message": "API rate limit exceeded"}, status, headers))
    start = time.monotonic()
    text = refusal()
    assert time.monotonic() - start < 2
    for part in (words, "API rate limit exceeded", "GITHUB_TOKEN", "without network"):
        assert part in text
    assert len(host.requests) == 1


def test_c20_waiting_ends_after_some_tries(host, refusal):
    host.gist(answer({}, 429, {"Retry-After": "0"}))
    assert "takes no more requests" in refusal()
    assert len(host.requests) == 3


def test_c21_a_refusal_without_a_limit_is_not_repeated(host, refusal):
    """C21: 403 for abuse, DMCA, SSO: the host's own words, capped and escaped."""
    host.gist(answer({"message": "blocked\x1b[2J " + "y" * 900}, 403))
    text = refusal()
    assert "answered 403" in text
    assert "blocked?[2J" in text
    assert len(text) < 600
    assert len(host.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
def test_c21_a_host_that_stumbles_is_asked_three_times(host, refusal, status):
    """C21: 5xx."""
    host.gist(answer("oops", status))
    text = refusal()
    assert f"answered {status} to all of 3 requests in 0." in text
    assert len(host.requests) == 3


def test_c21_one_stumble_is_nothing(host, fetch):
    host.gist(answer("", 502), answer(host.about()))
    assert fetch().pin.revision == REVISION


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_c22_a_redirect_to_the_same_host_is_followed(host, fetch, monkeypatch, status):
    """C22, with the token."""
    monkeypatch.setenv("GITHUB_TOKEN", "t0ken")
    place = f"/moved/{host.gist_id}"
    host.gist(answer("", status, {"Location": place}))
    host.says(place, answer(host.about()))
    assert fetch().pin.revision == REVISION
    sent = [request["headers"].get("authorization") for request in host.requests]
    assert sent == ["Bearer t0ken"] * 2


@pytest.mark.parametrize(
    "place",
    [
        "https://evil.example/gists/x",
        "http://evil.example/gists/x",
        "//evil.example/x",
        "{other}/gists/x",
        "https://127.0.0.1@evil.example/",
        "file:///etc/passwd",
        "ftp://evil.example/x",
        "https://[::1/x",
    ],
)
def test_c22_a_redirect_elsewhere_is_refused(host, refusal, place):
    """C22: another host, another port, another scheme: named, and never asked."""
    other = host.url.replace("127.0.0.1", "localhost")
    host.gist(answer("", 301, {"Location": place.format(other=other)}))
    text = refusal()
    assert "which is not asked" in text
    assert "evil.example" in text or "localhost" in text or "passwd" in text or "[::1" in text
    assert len(host.requests) == 1


def test_c22_a_token_goes_to_the_api_alone(monkeypatch):
    """C22: hosts of raw files get none, nor do other schemes and ports of the API's own."""
    monkeypatch.setenv("GITHUB_TOKEN", "t0ken")
    client = Client("https://api.github.com", Api().hosts, Token.of_environment())
    assert "t0ken" not in repr(client)
    got = {
        url: client.request(url).has_header("Authorization")
        for url in (
            "https://api.github.com/gists/x",
            "http://api.github.com/gists/x",
            "https://api.github.com:8443/gists/x",
            "https://gist.githubusercontent.com/x",
            "https://api.github.com.evil.example/gists/x",
        )
    }
    assert list(got.values()) == [True, False, False, False, False]


def test_c22_redirects_have_an_end(host, refusal):
    host.gist(answer("", 302, {"Location": f"/gists/{host.gist_id}"}))
    assert "redirected more than 5 times" in refusal()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<html>\x1b[31m<title>Log in</title>" + "x" * 5000, "text/html"),
        ("plain", "text/plain"),
        ("{}", "application/octet-stream"),
    ],
)
def test_c23_what_is_no_json_is_shown(host, refusal, body, kind):
    """C23: a login page with status 200."""
    host.gist(answer(body, 200, {"Content-Type": kind}))
    text = refusal()
    assert f"sent {kind} where JSON was expected" in text
    assert body[:6] in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"id": "abc', "cut or broken"),
        ("[" * 100_000, "cut or broken"),
        ('{"id": ' + "9" * 5000 + "}", "cut or broken"),
        ("[]", "the answer must be an object"),
        ("null", "the answer must be an object"),
        ("{}", "id must be a text"),
    ],
)
def test_c24_json_that_is_no_gist(host, refusal, body, words):
    """C24: cut, a list, nothing."""
    host.gist(answer(body, 200, {"Content-Type": "application/json"}))
    assert words in refusal()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"id": "another"}, "answered with another Gist"),
        ({"files": None}, "files must be an object, and is missing or null"),
        ({"files": []}, "files must be an object"),
        ({"files": {}}, "it has no files"),
        ({"files": {"model.py": None}}, "files['model.py'] must be an object"),
        ({"files": {"model.py": {"size": "3"}}}, "files['model.py'].size must be a number"),
        ({"files": {"model.py": {"size": -1}}}, "files['model.py'].size must be a number"),
        ({"files": {"model.py": {"size": True}}}, "files['model.py'].size must be a number"),
        ({"files": {"model.py": {"size": 1, "content": 3}}}, ".content must be a text"),
        ({"files": {"model.py": {"size": 1, "content": "\ud800"}}}, ".content must be text"),
        (
            {"files": {"model.py": {"size": 1, "content": "?", "encoding": "base64"}}},
            ".content must be text or base64",
        ),
        ({"files": {"model.py": {"size": 1, "raw_url": 3}}}, ".raw_url must be a text"),
        ({"history": None}, "history must be a list"),
        ({"history": []}, "history[0] must be an object"),
        ({"history": [{"version": "main"}]}, "history[0].version must be 40 hex digits"),
        ({"owner": []}, "owner must be an object"),
        ({"owner": {}}, "owner.login must be a text"),
        ({"fork_of": 3}, "fork_of must be an object"),
    ],
)
def test_c24_a_wrong_field_is_named_by_its_path(host, refusal, facts, words):
    """C24: files null or missing, an entry null, and every other field that is used."""
    host.gist(answer(host.about() | facts))
    assert words in refusal()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["net.py"], ":net.py"),
        (["Model.py"], ":Model.py"),
        (["a.py", "b.py"], ":a.py"),
        (["train.ipynb"], "exported to a .py file"),
        (["README.md"], "files: README.md"),
    ],
)
def test_c25_a_gist_without_model_py_lists_its_files(host, refusal, names, words):
    """C25."""
    host.serve(dict.fromkeys(names, "x = 1\n"))
    text = refusal()
    assert "it has no model.py" in text
    assert words in text


def test_c25_another_file_is_named_by_the_spec(host, store):
    """C25: ``gist:ID:file.py``."""
    host.serve({"net.py": MODEL, "README.md": "hi"})
    source = GistSource.parse(f"gist:{host.gist_id}:net.py", Api.of(host.url))
    got = source.fetch(None, store)
    loaded = accepted(source, got).load(LoadOptions())
    assert type(loaded.model).__name__ == "Model"


def accepted(source: GistSource, got: Fetched) -> GistSource:
    known = Resolution(pin=got.pin, folder=str(got.folder))
    return source.resolved(Resolution.from_json(json.loads(json.dumps(known.to_json()))))


def test_c26_without_a_config_a_class_that_needs_none_loads(host, gist, fetch):
    """C26: P."""
    host.serve({"model.py": MODEL})
    source = accepted(gist, fetch())
    assert source.id == f"gist:{host.gist_id}@{REVISION[:12]}"
    assert source.load(LoadOptions()).weights == "random (seed 0)"


def test_c26_without_a_config_a_class_names_what_it_needs(host, gist, fetch):
    """C26: F1."""
    host.serve({"model.py": MODEL.replace("__init__(self)", "__init__(self, d_model, heads)")})
    with pytest.raises(SourceError, match="d_model") as caught:
        accepted(gist, fetch()).load(LoadOptions())
    assert "heads" in str(caught.value)
    assert "no config.json" in str(caught.value)


def test_c27_a_file_that_is_too_large(host, refusal):
    """C27: more than 10 MB: both numbers, git, a local path."""
    entry = {"size": 10_000_001, "truncated": True, "content": "", "raw_url": "https://x"}
    host.serve({"model.py": MODEL, "weights.txt": entry})
    text = refusal()
    for part in ("weights.txt has 10000001 bytes", "10000000", "git clone", "name its folder"):
        assert part in text


def test_c27_more_files_than_are_listed(host, refusal):
    """C27: the list itself is truncated (more than 300 files)."""
    host.serve(truncated=True)
    assert "more files than the API lists (300)" in refusal()


@pytest.mark.parametrize("content", ["x" * 10, "x" * 12, ""])
def test_c27_a_size_that_is_not_what_was_sent(host, refusal, content):
    """C27: asked for once more, then refused with both numbers."""
    host.serve({"model.py": {"size": 11, "truncated": False, "content": content}})
    text = refusal()
    assert "model.py has 11 bytes by its description" in text
    assert f"sent {len(content)} bytes" in text
    assert len(host.requests) == 2


@pytest.mark.parametrize(
    "name",
    ["../x.py", "/etc/x", "a\\..\\b", "..", "", "x\0", "a\nb", "n" * 300, "torch.py", "Model.py"],
)
def test_c28_a_name_that_may_not_be_written(host, refusal, name, tmp_path):
    """C28: nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    host.serve({"model.py": MODEL, name: "x"})
    assert "which is not written here" in refusal()
    made = {path.name for path in tmp_path.rglob("*")} - {path.name for path in before}
    assert name not in made


def test_c29_more_in_all_than_is_fetched(host, refusal):
    """C29: more than 25 MB."""
    entry = {"size": 9_000_000, "truncated": True, "content": "", "raw_url": "https://x"}
    host.serve({"model.py": MODEL, "a": entry, "b": entry, "c": entry})
    text = refusal()
    assert f"{27_000_000 + len(MODEL)} bytes in all; at most 25000000" in text
    assert "git clone" in text


def test_c29_an_answer_without_end_is_cut_off(host, refusal):
    """C29: sizes are not believed."""
    host.gist(answer("x" * 100_000, 200, {"Content-Type": "application/json"}))
    assert "sent more than 2000 bytes" in refusal(total=1000)


@pytest.mark.parametrize(("code", "offset"), [(b"x = '\xff'\n", 5), (b"\x80\x81", 0)])
def test_c30_bytes_that_are_no_text_keep_their_place(host, gist, fetch, code, offset):
    """C30: the API sends text; the raw file has the bytes, and loading names the offset."""
    entry = {"size": len(code), "content": code.decode("utf-8", "replace")}
    entry["raw_url"] = host.raw("model.py", answer(code))
    host.serve({"model.py": entry})
    got = fetch()
    assert files(got)["model.py"] == code
    with pytest.raises(SourceError, match=f"at offset {offset}"):
        accepted(gist, got).load(LoadOptions())


def test_c30_base64_is_decoded(host, fetch):
    entry = {"size": 2, "encoding": "base64", "content": base64.b64encode(b"\xff\n").decode()}
    host.serve({"model.py": MODEL, "data.bin": entry})
    assert files(fetch())["data.bin"] == b"\xff\n"


def test_c31_a_truncated_file_is_fetched_whole(host, fetch):
    """C31: ``truncated: true`` means raw_url; one request for each, the size is checked."""
    code = MODEL + "# " + "x" * 1_100_000 + "\n"
    entry = {"size": len(code), "truncated": True, "content": code[:1000]}
    entry["raw_url"] = host.raw("model.py", answer(code))
    host.serve({"model.py": entry})
    assert files(fetch())["model.py"] == code.encode()
    assert len(host.requests) == 2


def test_c31_a_raw_file_of_another_size_is_refused(host, refusal):
    entry = {"size": 2000, "truncated": True, "content": "x"}
    entry["raw_url"] = host.raw("model.py", answer("y" * 1999))
    host.serve({"model.py": entry})
    assert "sent 1999 bytes" in refusal()


@pytest.mark.parametrize("place", ["https://evil.example/x", "http://127.0.0.1:1/x", "nonsense"])
def test_c31_a_raw_file_elsewhere_is_not_fetched(host, refusal, place):
    entry = {"size": 2000, "truncated": True, "content": "x", "raw_url": place}
    host.serve({"model.py": entry})
    assert "which is not asked" in refusal()


def test_c31_a_fork_is_remarked(host, fetch):
    """C31: forked."""
    other = {"id": "ab" * 10, "owner": {"login": "hubot"}}
    host.serve(fork_of=other)
    assert fetch().remarks == (f"it is a fork of gist:{'ab' * 10} by hubot",)


def test_c31_nobody_has_to_own_it(host, fetch):
    host.serve(owner=None)
    assert fetch().pin.owner is None


def test_an_unchanged_gist_costs_nothing_against_the_limit(host, fetch, monkeypatch):
    """ETag with a token: the second answer is 304 and has no body."""
    monkeypatch.setenv("GITHUB_TOKEN", "t0ken")
    host.serve(etag='W/"one"')
    first, second = fetch(), fetch()
    assert (first.cached, second.cached) == (False, True)
    assert first.pin == second.pin
    sent = [request["headers"].get("if-none-match") for request in host.requests]
    assert sent == [None, 'W/"one"']


def test_an_etag_without_files_is_not_sent(host, fetch, store):
    host.serve(etag='"one"')
    folder = fetch().folder
    folder.chmod(0o700)
    (folder / "model.py").chmod(0o600)
    (folder / "model.py").write_text("import os")
    assert files(fetch())["model.py"] == MODEL.encode()
    assert [request["headers"].get("if-none-match") for request in host.requests] == [None, None]


def test_d22_a_body_that_is_cut(host, refusal):
    """D22: with Content-Length, chunked, and over HTTP/1.0 without either."""
    about = host.about()
    for manners in (
        {"cut": 100},
        {"cut": 100, "chunked": True},
        {"cut": 100, "version": "1.0", "length": None},
        {"cut": 0},
        {"length": 10**6},
    ):
        host.gist(answer(about, **manners))
        text = refusal()
        assert "cut" in text, manners


def test_d22_a_raw_file_that_is_cut_is_told_by_its_size(host, refusal):
    """D22: over HTTP/1.0 nothing but the size tells."""
    entry = {"size": 2000, "truncated": True, "content": "x"}
    cut = answer("y" * 2000, cut=1000, version="1.0", length=None)
    entry["raw_url"] = host.raw("model.py", cut)
    host.serve({"model.py": entry})
    assert "sent 1000 bytes" in refusal()


@pytest.mark.parametrize(
    "manners", [{"drip": 0.05}, {"pause": 5}, {"drip": 0.05, "chunked": True}]
)
def test_d23_one_deadline_for_everything(host, refusal, manners):
    """D23: a byte now and then does not keep us; headers drip too."""
    host.gist(answer(host.about(), **manners))
    start = time.monotonic()
    text = refusal(seconds=0.6)
    assert time.monotonic() - start < 1.5
    assert "did not send everything within 0.6 s" in text


def test_d23_the_deadline_covers_retries_and_all_files(host, refusal):
    entry = {"size": 200, "truncated": True, "content": "x"}
    entry["raw_url"] = host.raw("model.py", answer("y" * 200, pause=0.5))
    host.gist(answer(host.about({"model.py": entry}), pause=0.5))
    start = time.monotonic()
    assert "within 0.8 s" in refusal(seconds=0.8)
    assert time.monotonic() - start < 1.6


def test_d24_nobody_there(store):
    """D24: refused."""
    source = GistSource.parse(f"gist:{'ab' * 16}", Api.of("http://127.0.0.1:9"))
    with pytest.raises(SourceError, match="no answer from 127.0.0.1:9: .*refused"):
        source.fetch(None, store)


def test_d24_no_such_name(store, host):
    """D24: the name server does not know it."""
    source = GistSource.parse(f"gist:{'ab' * 16}", Api.of("https://no-such-host.invalid"))
    with pytest.raises(SourceError, match="no answer from no-such-host.invalid"):
        source.fetch(None, store)


def test_d24_no_tls(host, store):
    """D24: a TLS handshake with something else."""
    source = GistSource.parse(
        f"gist:{host.gist_id}", Api.of(host.url.replace("http://", "https://"))
    )
    source = replace(source, limits=replace(QUICK, seconds=5))
    with pytest.raises(SourceError, match="no answer from 127.0.0.1.*(SSL|TLS|closed)"):
        source.fetch(None, store)


def test_d24_a_proxy_that_refuses_is_named(host, store, monkeypatch):
    """D24, C88: proxies are honoured, and the message names the variable."""
    monkeypatch.setenv("https_proxy", host.url)
    source = GistSource.parse(f"gist:{host.gist_id}", Api.of("https://github.example.com/api/v3"))
    with pytest.raises(SourceError, match="HTTPS_PROXY or https_proxy"):
        replace(source, limits=QUICK).fetch(None, store)


def test_c88_a_proxy_is_used(host, store, monkeypatch):
    """C88: the host itself plays the proxy, and refuses with 407 for one Gist."""
    monkeypatch.setenv("http_proxy", host.url)
    monkeypatch.setenv("no_proxy", "")
    url = "http://localhost:9"
    host.says(f"{url}/gists/{host.gist_id}", answer("", 407))
    source = GistSource.parse(f"gist:{host.gist_id}", Api.of(url))
    with pytest.raises(SourceError, match="answered 407"):
        replace(source, limits=QUICK).fetch(None, store)
    assert [request["path"] for request in host.requests] == [f"{url}/gists/{host.gist_id}"]


def test_d26_an_edit_in_between_is_asked_for_again(host, fetch):
    """D26: a raw file of another size than described means once more, from the start."""
    entry = {"size": 5, "truncated": True, "content": ""}
    entry["raw_url"] = host.raw("model.py", answer("newer code"))
    host.gist(answer(host.about({"model.py": entry})), answer(host.about(revision=OLDER)))
    got = fetch()
    assert got.pin.revision == OLDER
    assert files(got) == {"model.py": MODEL.encode()}


def test_a_store_that_is_full_says_so(host, fetch, store, monkeypatch):
    host.serve()
    monkeypatch.setattr(store, "put", lambda contents: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(SourceError, match="cannot be written to .*: full"):
        fetch()


def test_files_that_changed_after_the_check_are_not_run(host, gist, fetch, tmp_path):
    """D28: a worker hashes again."""
    host.serve({"model.py": MODEL, "config.json": "{}"})
    got = fetch()
    source = accepted(gist, got)
    got.folder.chmod(0o700)
    (got.folder / "model.py").chmod(0o600)
    mark = tmp_path / "ran"
    (got.folder / "model.py").write_text(f"open({str(mark)!r}, 'w')\n" + MODEL)
    with pytest.raises(SourceError, match="changed after they had been checked"):
        source.load(LoadOptions())
    assert not mark.exists()


def test_a_fetched_model_may_not_excuse_itself(host, gist, fetch):
    config = {"expect_fail": {"causality": "because"}}
    host.serve({"model.py": MODEL, "config.json": json.dumps(config)})
    assert accepted(gist, fetch()).load(LoadOptions()).expect_fail == {}
