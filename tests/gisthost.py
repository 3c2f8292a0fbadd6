"""A host of Gists over real HTTP, in a process of its own, that answers whatever a test says.

``Host`` is the side of the tests: it says which answers a path gets, one after the other (the
last one stays), and reads which requests came. The program is ``gistserver.py``.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REVISION = "a1" * 20
OLDER = "b2" * 20
JSON = {"Content-Type": "application/json; charset=utf-8"}

MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.head = torch.nn.Linear(8, 32)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
"""


def answer(
    body: bytes | str | Any = b"",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **manners: Any,
) -> dict[str, Any]:
    """One answer. A body that is no text is sent as JSON.

    Manners: ``cut`` sends that many bytes of the body and closes; ``length`` is what
    Content-Length says instead of the truth (``None``: no such header); ``version`` the HTTP
    version; ``chunked``; ``drip`` seconds between single bytes, of the headers too; ``pause``
    seconds before the first.
    """
    if not isinstance(body, bytes | str):
        body, headers = json.dumps(body), JSON | dict(headers or {})
    data = body.encode() if isinstance(body, str) else body
    return {
        "status": status,
        "headers": dict(headers or {}),
        "body": base64.b64encode(data).decode(),
        **manners,
    }


@dataclass
class Host:
    """A handle on the host; ``url`` is what ``tb_api_url`` is set to."""

    url: str
    gist_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def says(self, path: str, *answers: dict[str, Any]) -> None:
        """What ``GET path`` is answered with."""
        self._call("/_says", {"path": path, "answers": list(answers)})

    def gist(self, *answers: dict[str, Any], revision: str | None = None) -> None:
        """What the API answers about the Gist of this test."""
        end = f"/{revision}" if revision else ""
        self.says(f"/gists/{self.gist_id}{end}", *answers)

    def serve(
        self,
        files: Mapping[str, Any] | None = None,
        *,
        revision: str = REVISION,
        etag: str | None = None,
        **facts: Any,
    ) -> None:
        """Serve a Gist, newest and by revision."""
        about = self.about(files, revision=revision, **facts)
        self.gist(answer(about, headers={"ETag": etag} if etag else None))
        self.gist(answer(about), revision=revision)

    def about(
        self,
        files: Mapping[str, Any] | None = None,
        *,
        revision: str = REVISION,
        owner: str | None = "octocat",
        **facts: Any,
    ) -> dict[str, Any]:
        """What the API says about a Gist; a file is its text, or fields of its entry."""
        files = {"model.py": MODEL} if files is None else files
        return {
            "id": self.gist_id,
            "owner": None if owner is None else {"login": owner},
            "history": [{"version": revision}],
            "truncated": False,
            "files": {name: self.entry(name, file) for name, file in files.items()},
            **facts,
        }

    def entry(self, name: str, file: Any) -> Any:
        """A file as the API lists it."""
        if not isinstance(file, str):
            return file
        size = len(file.encode("utf-8", "surrogatepass"))
        return {"filename": name, "size": size, "truncated": False, "content": file}

    def raw(self, name: str, *answers: dict[str, Any]) -> str:
        """The URL of a raw file, which is answered with these."""
        path = f"/raw/{self.gist_id}/{name}"
        self.says(path, *answers)
        return self.url + path

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests about the Gist of this test: ``path`` and ``headers`` (lower case)."""
        found: list[dict[str, Any]] = self._call("/_requests", {"about": self.gist_id})
        return found

    def _call(self, path: str, value: Any) -> Any:
        data = json.dumps(value).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}{path}", data=data, timeout=10) as response:
            return json.loads(response.read())


@pytest.fixture(scope="session")
def gist_server() -> Iterator[str]:
    """The URL of a host in a process of its own."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("gistserver.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def host(
    gist_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Host:
    """A Gist that is nobody else's, a cache that is empty, and an environment without a say."""
    for name in ("CI", "GITHUB_TOKEN", "GH_TOKEN", "GITHUB_API_URL", "GIST_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return Host(gist_server)
