"""A stand-in for the Hugging Face Hub: what huggingface_hub asks of its HTTP interface.

``python standin.py FOLDER`` serves ``FOLDER/org/name/COMMIT/...`` as repositories and prints its
port. ``FOLDER/org/name/repo.json`` says about one what the Hub would know:

    refs      branch or tag -> commit
    private   nobody without the token may know that it is there
    gated     everybody may see that it is there, and only the token opens the files
    token     the token that is accepted; any other one is answered with 401
    faults    a list of [regular expression over "METHOD path", what happens], the first that fits:
              a status (503), "drop" (the connection ends in the middle of the body), "drip" (the
              body comes a byte at a time and never ends), "html" (a portal answers instead)

It reads the folder at every request, so that a test changes a repository by writing files. Every
request is a line of ``FOLDER/requests.log``: method, path, and ``+token`` where one was sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BIG = (".safetensors", ".bin", ".h5", ".model")  # what the Hub keeps elsewhere, by hash
HTML = b"<html><body>Please log in to the network</body></html>"


class Refusal(Exception):
    """An answer that is no content: a status, the Hub's code for it, and its words."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class Repository:
    """One repository on disk."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.folder = root / name
        try:
            self.about: dict[str, Any] = json.loads((self.folder / "repo.json").read_text())
        except OSError:
            self.about = {"absent": True}

    def admit(self, token: str | None, *, files: bool) -> None:
        """Raise for who may not see the repository, or not open its files."""
        absent = bool(self.about.get("absent"))
        if not absent and token not in (None, self.about.get("token")):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if absent or (self.about.get("private") and token is None):
            raise Refusal(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if files and self.about.get("gated") and token is None:
            raise Refusal(401, "GatedRepo", f"Access to model {self.name} is restricted")
        if files and self.about.get("refused"):
            raise Refusal(403, "GatedRepo", f"You are not on the list of {self.name}")

    def commit(self, revision: str) -> str:
        known = {**self.about["refs"]}
        for entry in self.folder.iterdir():
            if entry.is_dir() and len(revision) >= 7 and entry.name.startswith(revision):
                known[revision] = entry.name
        if revision not in known:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return str(known[revision])

    def files(self, commit: str) -> list[Path]:
        return sorted(path for path in (self.folder / commit).rglob("*") if path.is_file())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    @cached_property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").partition(" ")[2] or None

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        vars(self).pop("token", None)
        path = unquote(urlsplit(self.path).path)
        with (self.root / "requests.log").open("a") as log:
            log.write(f"{self.command} {path}{' +token' if self.token else ''}\n")
        try:
            self.route(path)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send(json.dumps({"error": refusal.message}).encode(), refusal.status, headers)

    def route(self, path: str) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            repo = self.repository(found[1], path)
            repo.admit(self.token, files=False)
            commit = repo.commit(found[3] or "main")
            self.send_json(self.tree(repo, commit) if found[2] == "tree" else info(repo, commit))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self.repository(found[1], path)
            repo.admit(self.token, files=True)
            self.send_file(repo, repo.commit(found[2]), found[3])
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self.repository(found[1], path)
            self.send((self.root / found[1] / found[2] / found[3]).read_bytes())
        else:
            raise Refusal(404)

    def repository(self, name: str, path: str) -> Repository:
        repo = Repository(self.root, name)
        for pattern, what in repo.about.get("faults", []):
            if re.search(pattern, f"{self.command} {path}"):
                self.misbehave(what)
        return repo

    def misbehave(self, what: str | int) -> None:
        if isinstance(what, int):
            raise Refusal(what, "", "Internal Error")
        if what == "html":
            self.send(HTML, kind="text/html")
        elif what == "drop":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half of it")
        else:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)
        self.close_connection = True
        self.wfile.flush()
        raise ConnectionAbortedError

    def tree(self, repo: Repository, commit: str) -> list[dict[str, Any]]:
        entries = []
        for path in repo.files(commit):
            data = path.read_bytes()
            entry: dict[str, Any] = {
                "type": "file",
                "oid": git_id(data),
                "size": len(data),
                "path": path.relative_to(repo.folder / commit).as_posix(),
            }
            if path.suffix in BIG:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            entry |= repo.about.get("tree", {}).get(entry["path"], {})
            entries.append(entry)
        return entries

    def send_file(self, repo: Repository, commit: str, name: str) -> None:
        path = repo.folder / commit / name
        if not path.is_file():
            raise Refusal(404, "EntryNotFound", "Entry not found")
        data = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_id(data)}"'}
        if path.suffix not in BIG:
            self.send(data, headers=headers)
            return
        # Another host: the token has to stay behind.
        port = self.server.server_address[1]
        headers["Location"] = f"http://localhost:{port}/cdn/{repo.name}/{commit}/{name}"
        headers["X-Linked-ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(data))
        self.send(b"", 302, headers)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), kind="application/json")

    def send(
        self,
        data: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        kind: str = "application/octet-stream",
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing: requests.log has it."""


def info(repo: Repository, commit: str) -> dict[str, Any]:
    return {
        "id": repo.name,
        "sha": commit,
        "private": bool(repo.about.get("private")),
        "gated": "auto" if repo.about.get("gated") else False,
        "tags": [],
        "siblings": [],
    }


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def main() -> None:
    Handler.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
