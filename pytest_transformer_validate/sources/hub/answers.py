"""What an answer of the Hub, or none, means for who typed the name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.hub.name import hub, short_id
from pytest_transformer_validate.sources.wording import clipped, near, reason

if TYPE_CHECKING:
    from collections.abc import Iterable

TOKEN = "HF_TOKEN"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


def explain(error: BaseException, repository: str, revision: str | None) -> str:
    """What went wrong, and what to do about it. Never holds the token, nor a signed URL."""
    known = require("huggingface_hub.errors", extra="hf")
    error = _first_cause(error, known.LocalEntryNotFoundError)
    if isinstance(error, known.RevisionNotFoundError):
        return (
            f"no revision {revision or 'main'} on {hub()}\n"
            f"  {page(repository)}/commits/main lists its commits"
        )
    if isinstance(error, known.GatedRepoError):
        return (
            f"gated: {hub()} opens it to accepted users ({_status(error)})\n"
            f"  ask for access at {page(repository)}, then {_token_advice()}"
        )
    if isinstance(error, known.RepositoryNotFoundError):
        return (
            f"not found on {hub()}{near(repository, cached_names())}: mistyped, "
            f"deleted, or private ({_status(error)})\n"
            f"  look at {page(repository)}; for a private one {_token_advice()}"
        )
    if isinstance(error, known.EntryNotFoundError):
        return f"the repository lacks a file that it lists: {_plain(error)}"
    if isinstance(error, known.HfHubHTTPError):
        return _refused(error, repository)
    return _not_reached(error)


def _first_cause(error: BaseException, wrapper: type[BaseException]) -> BaseException:
    while isinstance(error, wrapper) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refused(error: Any, repository: str) -> str:
    code = error.response.status_code
    if code in (401, 403):
        return (
            f"{hub()} did not open it ({_status(error)})\n"
            f"  {_token_advice()}, with the right to read {repository}"
        )
    if code == 429:
        wait = error.response.headers.get("retry-after")
        after = f" in {wait} seconds" if wait and wait.isdigit() else ""
        return (
            f"{hub()} takes no more requests from here for now ({_status(error)})\n"
            f"  try again{after}; with a token the limit is higher: {_token_advice()}"
        )
    return f"{hub()} did not answer ({_status(error)}); try again later"


def _not_reached(error: BaseException) -> str:
    known = require("huggingface_hub.errors", extra="hf")
    if isinstance(error, known.FileMetadataError | ValueError):
        return (
            f"what answered at {hub()} is no Hugging Face Hub: {_plain(error)}\n"
            f"  is a login page or a proxy in between, or HF_ENDPOINT wrong?"
        )
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        if error.errno is None:
            return f"{hub()} gave another file than it had said: {_plain(error)}"
        constants = require("huggingface_hub.constants", extra="hf")
        return f"it cannot be written to {constants.HF_HUB_CACHE}: {error.strerror}"
    used = [f"{name} is set" for name in _PROXIES if os.environ.get(name)]
    lines = [f"{hub()} could not be reached: {_plain(error)}"]
    if used:
        lines.append(f"  {', '.join(used)}")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        lines.append("  a certificate authority of your own is named by SSL_CERT_FILE")
    lines.append("  try again; --tb-offline takes a copy that was fetched before")
    return "\n".join(lines)


def _plain(error: BaseException) -> str:
    """The error on a line, without the query of a URL, which may be a signature."""
    return " ".join(word.partition("?")[0] for word in reason(error).split(" "))


def _status(error: Any) -> str:
    words = clipped(error.response.headers.get("X-Error-Message") or "", 100)
    return f"{error.response.status_code}{f': {words}' if words else ''}"


def _token_advice() -> str:
    given = [name for name in (TOKEN, "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    if given:
        return f"check the token in {given[0]}, which was sent"
    constants = require("huggingface_hub.constants", extra="hf")
    if Path(constants.HF_TOKEN_PATH).is_file():
        return f"check the token in {constants.HF_TOKEN_PATH}, which was sent, or set {TOKEN}"
    return f"set {TOKEN} (no token was sent)"


def page(repository: str) -> str:
    """Where people read about a repository."""
    return f"{hub()}/{repository}"


def not_cached(repository: str, revision: str | None, *, asked: bool, why: str = "") -> str:
    """Nothing may be fetched and there is no copy; ``asked``: ``--tb-offline`` was given."""
    constants = require("huggingface_hub.constants", extra="hf")
    flags = ["--tb-offline is given"] * asked
    flags += [f"{name}={os.environ[name]}" for name in OFFLINE if os.environ.get(name)]
    return (
        f"{short_id(repository, revision)} is not in the cache, and nothing may be fetched "
        f"({', '.join(flags)}){near(repository, cached_names())}\n"
        f"  looked in {constants.HF_HUB_CACHE}{f': {why}' if why else ''}\n"
        "  run it once without that, or download it elsewhere and name the folder"
    )


def cached_names() -> Iterable[str]:
    """The repositories of which something is in the cache."""
    folder = Path(require("huggingface_hub.constants", extra="hf").HF_HUB_CACHE)
    try:
        return [
            entry.name.removeprefix("models--").replace("--", "/")
            for entry in folder.iterdir()
            if entry.name.startswith("models--")
        ]
    except OSError:
        return []
