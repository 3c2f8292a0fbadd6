"""From an id to files in the store: one revision, every size checked, nothing run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.fetch.http import MEGABYTE, Client, HostError
from pytest_transformer_validate.sources.fetch.names import require_plain_names
from pytest_transformer_validate.sources.fetch.source import Fetched
from pytest_transformer_validate.sources.fetch.tree import Pin, Tree
from pytest_transformer_validate.sources.gist.answer import (
    GistAnswer,
    GistFile,
    newest_revision,
    read_gist,
)
from pytest_transformer_validate.sources.wording import clipped, listed

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_transformer_validate.sources.fetch.http import Answer
    from pytest_transformer_validate.sources.fetch.store import Store
    from pytest_transformer_validate.sources.gist.api import Api

_ACCEPT = {"Accept": "application/vnd.github+json"}
_NOT_FOUND = (404, 410)


class _Torn(SourceError):
    """Files and description are not of one moment, or were cut on the way."""


@dataclass
class Download:
    """Fetches one Gist; ``file`` is the model file that has to be in it."""

    client: Client
    api: Api
    identity: str
    file: str
    store: Store

    def fetch(self, revision: str | None) -> Fetched:
        """The files of ``revision``, or of the newest one. Raises SourceError."""
        try:
            return self._once(revision)
        except _Torn:
            return self._once(revision)

    def _once(self, revision: str | None) -> Fetched:
        url = self.api.gist(self.identity, revision)
        known = self._seen(url) if revision is None else None
        headers = _ACCEPT | ({} if known is None else {"If-None-Match": known.etag})
        answer = self._ask(url, revision, headers)
        if answer.status == 304 and known is not None:
            return known.fetched
        gist = read_gist(answer, self.identity, revision)
        contents = self._contents(gist)
        fetched = Fetched(
            pin=Pin(gist.revision, gist.owner, Tree.of(contents)),
            folder=self._keep(contents),
            remarks=() if gist.fork_of is None else (gist.fork_of,),
        )
        if revision is None:
            self._note(url, answer, fetched)
        return fetched

    def _ask(self, url: str, revision: str | None, headers: dict[str, str]) -> Answer:
        try:
            return self.client.get(url, most=2 * self.client.limits.total, headers=headers)
        except HostError as error:
            if error.status not in (*_NOT_FOUND, 422):
                raise
            raise SourceError(self._missing(error, revision)) from error

    def _missing(self, error: HostError, revision: str | None) -> str:
        """The Gist is not there, or the revision is not."""
        where = self.api.page(self.identity)
        if revision is not None:
            newest = self._newest()
            if newest is not None:
                return (
                    f"this Gist has no revision {revision}; its newest is {newest}\n"
                    f"  all of them: {where}/revisions"
                )
        if error.status == 422:
            return f"{clipped(error)}\n  is this a Gist? open {where}"
        lines = ["not found: deleted, mistyped, or secret and of somebody else"]
        lines.append(f"  open {where} and copy its URL")
        if not self.client.token.value:
            lines.append("  no token was sent; GITHUB_TOKEN is where one is taken from")
        return "\n".join(lines)

    def _newest(self) -> str | None:
        try:
            url = self.api.gist(self.identity)
            most = 2 * self.client.limits.total
            return newest_revision(self.client.get(url, most=most, headers=_ACCEPT))
        except SourceError:
            return None

    def _contents(self, gist: GistAnswer) -> dict[str, bytes]:
        require_plain_names(gist.files, entry=self.file)
        self._require_file(gist.files)
        self._require_small(gist.files)
        return {name: self._content(name, file) for name, file in gist.files.items()}

    def _require_file(self, files: dict[str, GistFile]) -> None:
        if self.file in files:
            return
        named = sorted(name for name in files if name.endswith(".py"))
        way = "a notebook's model cells have to be exported to a .py file"
        if named:
            way = f"name the file: --tb-model=gist:{self.identity}:{named[0]}"
        raise SourceError(f"it has no {self.file}; files: {listed(sorted(files))}\n  {way}")

    def _require_small(self, files: dict[str, GistFile]) -> None:
        limits = self.client.limits
        clone = f"git clone {self.api.page(self.identity)}.git, and name its folder"
        for name, file in files.items():
            if file.size > limits.file:
                raise SourceError(
                    f"{name} has {file.size} bytes; files of at most {limits.file} are fetched\n"
                    f"  {clone}"
                )
        total = sum(file.size for file in files.values())
        if total > limits.total:
            raise SourceError(
                f"its files have {total} bytes in all; at most {limits.total} are fetched\n"
                f"  {clone}"
            )

    def _content(self, name: str, file: GistFile) -> bytes:
        """The bytes of a file. What the API sends is text: where its size is another, the raw
        file tells."""
        if file.content is not None and len(file.content) == file.size:
            return file.content
        sent = None if file.content is None else len(file.content)
        if file.raw_url is not None:
            raw = self.client.get(file.raw_url, most=self.client.limits.file + MEGABYTE)
            if len(raw.body) == file.size:
                return raw.body
            sent = len(raw.body)
        host = urlsplit(file.raw_url or self.api.url).netloc
        text = "nothing" if sent is None else f"{sent} bytes"
        raise _Torn(
            f"{name} has {file.size} bytes by its description, and {host} sent {text}\n"
            f"  run again; or git clone {self.api.page(self.identity)}.git, and name its folder"
        )

    def _keep(self, contents: dict[str, bytes]) -> Path:
        try:
            return self.store.put(contents)
        except OSError as error:
            raise SourceError(
                f"its files cannot be written to {self.store.root}: {error.strerror or error}"
            ) from error

    def _seen(self, url: str) -> _Seen | None:
        """What was newest when it was asked for last, if its files are still there."""
        noted: Any = self.store.noted(url)
        try:
            etag, pin = noted["etag"], Pin.from_json(noted["pin"])
        except (TypeError, KeyError, ValueError):
            return None
        folder = self.store.get(pin.tree)
        if folder is None or not (isinstance(etag, str) and etag.isascii() and etag.isprintable()):
            return None
        return _Seen(etag, Fetched(pin=pin, folder=folder, cached=True))

    def _note(self, url: str, answer: Answer, fetched: Fetched) -> None:
        etag = answer.headers.get("etag")
        if etag:
            self.store.note(url, {"etag": etag, "pin": fetched.pin.to_json()})


@dataclass(frozen=True)
class _Seen:
    etag: str
    fetched: Fetched
