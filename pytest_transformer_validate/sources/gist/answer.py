"""What the API says about a Gist, read strictly: every field that is used is checked first."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.fetch.tree import is_revision
from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from pytest_transformer_validate.sources.fetch.http import Answer


@dataclass(frozen=True)
class GistFile:
    """One file: ``content`` is ``None`` where the answer holds only a part of it, or none."""

    size: int
    content: bytes | None
    raw_url: str | None


@dataclass(frozen=True)
class GistAnswer:
    """A revision of a Gist; ``fork_of`` is one line about what it is a fork of."""

    revision: str
    owner: str | None
    files: dict[str, GistFile]
    fork_of: str | None


def read_gist(answer: Answer, identity: str, revision: str | None) -> GistAnswer:
    """The Gist in an answer. Raises SourceError naming the first field that is wrong."""
    top = _dict(_json(answer), "the answer")
    if str(_text(top.get("id"), "id")).lower() != identity:
        raise SourceError(f"the host answered with another Gist: {clipped(top['id'], 80)}")
    if top.get("truncated"):
        raise SourceError("it has more files than the API lists (300)")
    files = _dict(top.get("files"), "files")
    if not files:
        raise SourceError("it has no files")
    return GistAnswer(
        revision=revision or _newest(top.get("history")),
        owner=_login(top.get("owner"), "owner"),
        files={name: _file(entry, f"files[{name!a}]") for name, entry in files.items()},
        fork_of=_fork(top.get("fork_of")),
    )


def newest_revision(answer: Answer) -> str:
    """The newest revision alone. Raises SourceError."""
    return _newest(_dict(_json(answer), "the answer").get("history"))


def _json(answer: Answer) -> Any:
    host = urlsplit(answer.url).netloc
    kind = answer.headers.get("content-type", "no content type").partition(";")[0].strip()
    if "json" not in kind:
        start = clipped(" ".join(answer.body[:400].decode("utf-8", "replace").split()), 80)
        raise SourceError(
            f"{host} sent {clipped(kind, 60)} where JSON was expected: {start}\n"
            "  a login page or a proxy in between? open the address in a browser: "
            f"{clipped(answer.url, 120)}"
        )
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{host} sent JSON that is cut or broken ({len(answer.body)} bytes): {clipped(error)}"
        ) from error


def _newest(value: Any) -> str:
    history = _list(value, "history")
    entry = _dict(history[0] if history else None, "history[0]")
    version = entry.get("version")
    if not (isinstance(version, str) and is_revision(version)):
        raise _wrong("history[0].version", "40 hex digits", version)
    return version


def _login(value: Any, field: str) -> str | None:
    if value is None:
        return None
    return clipped(_text(_dict(value, field).get("login"), f"{field}.login"), 100)


def _fork(value: Any) -> str | None:
    if value is None:
        return None
    other = _dict(value, "fork_of")
    owner = _login(other.get("owner"), "fork_of.owner")
    identity = clipped(_text(other.get("id"), "fork_of.id"), 80)
    return f"it is a fork of gist:{identity}" + (f" by {owner}" if owner else "")


def _file(value: Any, field: str) -> GistFile:
    entry = _dict(value, field)
    size = entry.get("size")
    if type(size) is not int or size < 0:
        raise _wrong(f"{field}.size", "a number of bytes", size)
    raw = entry.get("raw_url")
    content = entry.get("content")
    if entry.get("truncated") or content is None:
        return GistFile(size, None, None if raw is None else _text(raw, f"{field}.raw_url"))
    text = _text(content, f"{field}.content")
    data = _bytes(text, entry.get("encoding"), f"{field}.content")
    return GistFile(size, data, raw if isinstance(raw, str) else None)


def _bytes(text: str, encoding: Any, field: str) -> bytes:
    try:
        if encoding == "base64":
            return base64.b64decode("".join(text.split()), validate=True)
        return text.encode()
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise _wrong(field, "text or base64", clipped(error)) from error


def _dict(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(field, "an object", value)
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(field, "a list", value)
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong(field, "a text", value)
    return value


def _wrong(field: str, expected: str, value: Any) -> SourceError:
    given = "missing or null" if value is None else clipped(ascii(value)[:200], 60)
    return SourceError(
        f"the host's answer cannot be used: {field} must be {expected}, and is {given}\n"
        "  run again; where that does not help, clone the Gist with git and name its folder"
    )
