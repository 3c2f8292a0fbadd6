"""A Hub of the tests' own in a process of its own, and a cache that it is fetched into."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from pytest_transformer_validate.sources.hub.process import answer

STANDIN = Path(__file__).with_name("standin.py")
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 20,
    "n_positions": 16,
}


@dataclass
class Hub:
    """The Hub: ``url`` is where it answers, ``root`` what it serves."""

    url: str
    root: Path
    org: str

    @property
    def name(self) -> str:
        """The repository of this test."""
        return f"{self.org}/model"

    def push(self, files: dict[str, Any] | None = None, name: str = "model", **about: Any) -> str:
        """A new commit of ``org/name`` with these files, which becomes main; its hash."""
        files = {"config.json": CONFIG} if files is None else files
        contents = {path: as_bytes(content) for path, content in files.items()}
        text = "".join(f"{path}{data!r}" for path, data in sorted(contents.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()
        folder = self.root / self.org / name
        for path, data in contents.items():
            place = folder / commit / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        (folder / commit).mkdir(parents=True, exist_ok=True)
        facts = folder / "repo.json"
        known = json.loads(facts.read_text()) if facts.exists() else {"refs": {}}
        known["refs"]["main"] = commit
        facts.write_text(json.dumps({**known, **about}))
        return commit

    def change(self, name: str = "model", **about: Any) -> None:
        """Change what the Hub knows about ``org/name``."""
        facts = self.root / self.org / name / "repo.json"
        facts.write_text(json.dumps({**json.loads(facts.read_text()), **about}))

    def requests(self) -> list[str]:
        """What was asked about this test's repositories, as ``GET path``."""
        log = self.root / "requests.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.replace(f"{self.org}/", "") for line in lines if f"/{self.org}/" in line]

    def files(self) -> list[str]:
        """The files of which a body was asked for."""
        got = [line.split()[1] for line in self.requests() if line.startswith("GET /")]
        return sorted(
            {path.split("/", 4)[-1] for path in got if re.match("/model/resolve/|/cdn/", path)}
        )


def as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    root = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(STANDIN), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", root
        process.kill()


_orgs = itertools.count(1)


@pytest.fixture
def hub(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub that is empty but for other tests; a cache and an environment of this test's own."""
    url, root = server
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "hf" / "hub"
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache.parent),
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache.parent / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", settings["HF_TOKEN_PATH"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return Hub(url, root, f"org{next(_orgs)}")


Ask = Callable[..., Any]


@pytest.fixture
def describe(hub: Hub) -> Ask:
    """Fetch a model of this test's Hub but for its weights, in this process."""

    def ask(revision: str | None = None, *, offline: bool = False, **more: Any) -> Any:
        request = {"repository": hub.name, "revision": revision, "offline": offline, "pins": {}}
        return answer({"what": "describe", **request, **more})

    return ask


@pytest.fixture
def weights(hub: Hub) -> Ask:
    """Fetch the weights of a model, in this process."""

    def ask(revision: str, *, offline: bool = False) -> Any:
        request = {"repository": hub.name, "revision": revision, "offline": offline}
        return answer({"what": "weights", **request})

    return ask
