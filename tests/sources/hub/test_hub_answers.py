"""What a person reads when the Hub does not give a model: rows 59, 60 and 88 of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.hub.answers import explain

TOKEN = "hf_" + "x" * 34


def said(ask, *args, **kwargs):
    with pytest.raises(SourceError) as caught:
        ask(*args, **kwargs)
    text = str(caught.value)
    assert TOKEN not in text
    assert len(text.splitlines()) <= 5
    return text


def test_a_name_that_is_not_there(hub, describe):
    hub.push(name="model")
    describe()
    text = said(describe, repository=f"{hub.org}/modle")
    assert f"not found on {hub.url} (did you mean {hub.name}?)" in text
    assert "mistyped, deleted, or private (401: Repository not found)" in text
    assert f"look at {hub.url}/{hub.org}/modle; for a private one set HF_TOKEN" in text


def test_a_revision_that_is_not_there(hub, describe):
    hub.push()
    assert "no revision v9 on http" in said(describe, "v9")
    assert f"no revision {'a' * 40} on http" in said(describe, "a" * 40)


def test_a_private_repository(hub, describe, monkeypatch):
    hub.push(private=True, token=TOKEN)
    assert "set HF_TOKEN (no token was sent)" in said(describe)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert describe()


def test_a_token_that_is_not_known(hub, describe, monkeypatch, tmp_path):
    hub.push(private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "check the token in HF_TOKEN, which was sent" in said(describe)
    monkeypatch.delenv("HF_TOKEN")
    place = tmp_path / "hf/token"
    place.parent.mkdir(exist_ok=True)
    place.write_text(TOKEN)
    assert f"check the token in {place}, which was sent" in said(describe)


@pytest.mark.parametrize(
    ("about", "status"), [({"gated": "auto"}, "401: Access to model"), ({"refused": True}, "403")]
)
def test_a_gated_repository(hub, describe, about, status):
    hub.push(**about)
    text = said(describe)
    assert f"gated: {hub.url} opens it to accepted users ({status}" in text
    assert f"ask for access at {hub.url}/{hub.name}, then set HF_TOKEN" in text


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (503, "did not answer (503: Internal Error); try again later"),
        (403, "did not open it (403: Internal Error)\n  set HF_TOKEN (no token was sent), with"),
        (429, "takes no more requests from here for now (429: Internal Error)\n  try again"),
        ("html", "is no Hugging Face Hub: JSONDecodeError"),
        ("drop", "could not be reached: RemoteProtocolError: peer closed connection"),
    ],
)
def test_a_hub_that_does_not_answer(hub, describe, what, text):
    hub.push(faults=[["api/models", what]])
    assert text in said(describe)


@pytest.mark.parametrize("what", ["html", 404])
def test_a_file_that_is_not_given(hub, describe, what):
    hub.push(faults=[["HEAD .*/config.json", what]])
    text = said(describe)
    if what == 404:
        assert "did not answer (404" in text
    else:
        assert "what answered at http" in text


def test_a_body_of_another_length(hub, describe, monkeypatch):
    hub.push(faults=[["GET .*/resolve/.*/config.json", "html"]])
    text = said(describe)
    assert "gave another file than it had said: OSError: Consistency check failed" in text


def test_nobody_at_the_address(hub, describe, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://user:" + "p" * 12 + "@127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:2")
    text = said(describe)
    assert "http://127.0.0.1:1 could not be reached: ConnectError" in text
    assert "HTTPS_PROXY is set" in text
    assert "p" * 12 not in text


def test_offline_without_a_copy(hub, describe, tmp_path, monkeypatch):
    hub.push(name="modem")
    describe(repository=f"{hub.org}/modem")
    text = said(describe, offline=True)
    assert f"hf:{hub.name} is not in the cache, and nothing may be fetched (--tb-offline" in text
    assert f"(did you mean {hub.org}/modem?)" in text
    assert f"looked in {tmp_path / 'hf/hub'}" in text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nothing may be fetched (HF_HUB_OFFLINE=1)" in said(describe, "a" * 40)
    assert [line for line in hub.requests() if "/model" in line and "modem" not in line] == []


def test_offline_with_half_a_copy(hub, describe, weights):
    commit = hub.push({"config.json": "{}", "model.safetensors": b"w", "vocab.txt": "v"})
    folder = describe()[0]["folder"]
    text = said(weights, commit, offline=True)
    assert "the copy lacks model.safetensors" in text
    Path(folder, "vocab.txt").unlink()
    assert "the copy lacks vocab.txt" in said(describe, commit, offline=True)


def test_a_copy_of_which_nobody_knows_whether_it_has_weights(hub, describe, weights):
    """As another program leaves it that fetched only the config."""
    from huggingface_hub import hf_hub_download

    commit = hub.push()
    hf_hub_download(hub.name, "config.json", revision="main")
    assert describe(offline=True)[0]["commit"] == commit
    assert "whether the repository has any is not known" in said(weights, commit, offline=True)


def test_a_certificate_that_nobody_knows(hub):
    error = ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    text = explain(error, hub.name, None)
    assert "CERTIFICATE_VERIFY_FAILED" in text
    assert "named by SSL_CERT_FILE" in text
