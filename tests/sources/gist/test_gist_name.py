"""Every form in which people name a Gist; nobody is asked."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.gist.api import Api
from pytest_transformer_validate.sources.gist.name import GistName, is_gist, parse_gist
from pytest_transformer_validate.sources.gist.source import GistSource
from pytest_transformer_validate.sources.parse import parse

ID = "6cad326836d38bd3a7ae0123456789ab"
SHORT = "6cad326836d38bd3a7ae"
REV = "57a7f021a713b1c5a6a199b54cc514735d2d462f"
WEB = "https://gist.github.com"
RAW = "https://gist.githubusercontent.com"
BOOK = "https://colab.research.google.com/github/o/r/blob/main/template.ipynb"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (f"gist:{ID}", GistName(ID)),
        (f"gist:{SHORT}", GistName(SHORT)),
        (f"GIST:{ID.upper()}", GistName(ID)),
        (f"gist:{ID}@{REV}", GistName(ID, REV)),
        (f"gist:{ID}@{REV.upper()}", GistName(ID, REV)),
        (f"gist:{ID}:net.py", GistName(ID, file="net.py")),
        (f"gist:{ID}:model.py", GistName(ID)),
        (f"gist:{ID}::Net", GistName(ID, name="Net")),
        (f"gist:{ID}@{REV}:net.py::Net", GistName(ID, REV, "net.py", "Net")),
        (f"{WEB}/me/{ID}", GistName(ID)),
        (f"{WEB}/{ID}", GistName(ID)),
        (f"{WEB}/{ID.upper()}", GistName(ID)),
        (f"{WEB}/me/{SHORT}/", GistName(SHORT)),
        (f"{WEB}/me/{ID}/{REV}", GistName(ID, REV)),
        (f"{WEB}/{ID}/{REV}/", GistName(ID, REV)),
        (f"{WEB}/me/{ID}#file-model-py", GistName(ID)),
        (f"{WEB}/me/{ID}/{REV}#file-model-py-L10", GistName(ID, REV)),
        (f"{WEB}/me/{ID}?permalink_comment_id=5#c", GistName(ID)),
        (f"{WEB}/{ID}.git", GistName(ID)),
        (f"{WEB}/me/{ID}.git", GistName(ID)),
        (f"HTTPS://GIST.GITHUB.COM/me/{ID}", GistName(ID)),
        (f"gist.github.com/me/{ID}", GistName(ID)),
        (f"{RAW}/me/{ID}/raw/net.py", GistName(ID, file="net.py")),
        (f"{RAW}/me/{ID}/raw", GistName(ID)),
        (f"{BOOK}#gist_id={ID}&name=MyGpt", GistName(ID, name="MyGpt")),
        (f"{BOOK}#gist_id={ID}@{REV}", GistName(ID, REV)),
        (f"…#gist_id={ID}&name=Net", GistName(ID, name="Net")),
        (f"{BOOK}?gist_id={ID}#name=Net", GistName(ID, name="Net")),
    ],
)
def test_c14_every_form_means_the_same(spec, name):
    """C14: the same id and revision whatever was copied."""
    api = Api()
    assert is_gist(spec, api)
    assert parse_gist(spec, api) == name


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gist:", "20 or 32 hex digits, given ''"),
        ("gist:zzzz", "given 'zzzz'"),
        ("gist:abc", "given 'abc'"),
        ("gist:my-model-deadbeef", "given 'my-model-deadbeef'"),
        (f"gist:{ID}0", "20 or 32 hex digits"),
        (f"{WEB}/me", "20 or 32 hex digits"),
        (f"{WEB}/", "20 or 32 hex digits"),
        (f"{WEB}/me/{ID}/revisions", "40 hex digits, given 'revisions'"),
        (f"{WEB}/me/{ID}/{REV}/x", "after the id comes a revision"),
        (f"{RAW}/me/{ID}/raw/{REV}/model.py", "no revision"),
        (f"{BOOK}#gist_id=&name=Net", "20 or 32 hex digits"),
        (f"{BOOK}#gist_id=../../x", "20 or 32 hex digits"),
        (f"{BOOK}#gist_id={ID}&name=my model", "a class is a Python name"),
        (f"gist:{ID}::my-net", "a class is a Python name"),
        (f"gist:{ID}:net.txt", "a file is called like net.py"),
        (f"gist:{ID}:../net.py", "a file is called like net.py"),
        (f"gist:{ID}:a/b.py", "a file is called like net.py"),
    ],
)
def test_c13_what_is_no_gist_gets_the_forms(tmp_path, spec, words):
    """C13: U4, and no request: nothing here can make one."""
    with pytest.raises(SpecError, match=words) as caught:
        parse(spec, rootdir=tmp_path, cwd=tmp_path)
    text = str(caught.value)
    assert "gist:ID@REVISION" in text
    assert len(text.splitlines()) <= 12


@pytest.mark.parametrize(
    "revision", ["57a7f021a713", "main", "../..", REV + "0", "", "HEAD", "5" * 39, "@"]
)
def test_c15_a_revision_is_whole(tmp_path, revision):
    """C15: 40 hex digits; how to see the newest one."""
    with pytest.raises(SpecError, match="40 hex digits") as caught:
        parse(f"gist:{ID}@{revision}", rootdir=tmp_path, cwd=tmp_path)
    assert "the newest is taken and printed" in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        f"https://gist.github.com.evil.example/me/{ID}",
        f"https://evil.example/gist.github.com/{ID}",
        f"https://gist.example.com/me/{ID}",
        f"https://gist.github.com@evil.example/{ID}",
        f"https://evil.example@gist.github.com/{ID}",
        f"https://gitlab.com/me/{ID}",
    ],
)
def test_c13_another_host_is_no_gist(tmp_path, spec):
    with pytest.raises(SpecError, match="unknown scheme 'https'"):
        parse(spec, rootdir=tmp_path, cwd=tmp_path)


def test_ids_hold_twelve_digits_of_the_revision():
    api = Api()
    assert GistSource.parse(f"gist:{ID}", api).id == f"gist:{ID}"
    assert GistSource.parse(f"gist:{ID}@{REV}", api).id == f"gist:{ID}@57a7f021a713"
    source = GistSource.parse(f"gist:{ID}@{REV}:net.py::Net", api)
    assert source.id == f"gist:{ID}@57a7f021a713:net.py::Net"
    assert source.fetched


@pytest.mark.parametrize("spec", [f"gist:{ID}", f"{WEB}/me/{ID}", f"{WEB}/{ID}#file-model-py"])
def test_parse_gives_the_source(tmp_path, spec):
    source = parse(spec, rootdir=tmp_path, cwd=tmp_path)
    assert isinstance(source, GistSource)
    assert (source.spec, source.name, source.revision) == (spec, f"gist:{ID}", None)


@pytest.mark.parametrize(
    ("url", "spec"),
    [
        ("https://github.example.com/api/v3", f"https://gist.github.example.com/me/{ID}"),
        ("https://github.example.com/api/v3/", f"https://github.example.com/gist/me/{ID}"),
        ("https://api.octocorp.ghe.com", f"https://gist.octocorp.ghe.com/{ID}/{REV}"),
        ("https://github.example.com:8443/api/v3", f"https://github.example.com:8443/gist/{ID}"),
    ],
)
def test_an_enterprise_server_is_one_of_the_hosts(tmp_path, url, spec):
    source = parse(spec, rootdir=tmp_path, cwd=tmp_path, api_url=url)
    assert isinstance(source, GistSource)
    assert source.gist.id == ID
    with pytest.raises(SpecError):
        parse(spec, rootdir=tmp_path, cwd=tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://github.example.com/api/v3",
        "ftp://127.0.0.1/",
        "github.example.com",
        "https://",
        "https://me:secret@github.example.com/",
        "https://github.example.com/?q=1",
        "https://github.example.com:port/",
    ],
)
def test_an_api_is_a_plain_url_over_https(url):
    with pytest.raises(SpecError, match="tb_api_url must be") as caught:
        Api.of(url)
    assert "secret" not in str(caught.value)


def test_the_api_of_the_environment_is_the_default(monkeypatch):
    monkeypatch.delenv("GITHUB_API_URL", raising=False)
    assert Api.of().url == "https://api.github.com"
    monkeypatch.setenv("GITHUB_API_URL", "https://github.example.com/api/v3/")
    assert Api.of().url == "https://github.example.com/api/v3"
    assert Api.of("https://api.github.com").url == "https://api.github.com"
    assert Api.of().page(ID) == f"https://github.example.com/gist/{ID}"


def test_a_broken_api_of_the_environment_does_not_trouble_local_models(
    tmp_path, write, monkeypatch
):
    monkeypatch.setenv("GITHUB_API_URL", "nonsense")
    write("model.py", "")
    assert parse("model.py", rootdir=tmp_path, cwd=tmp_path).id == "model.py"
    with pytest.raises(SpecError, match="GITHUB_API_URL must be"):
        parse(f"gist:{ID}", rootdir=tmp_path, cwd=tmp_path)
