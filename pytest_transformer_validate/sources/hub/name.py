"""``hf:org/name[@REV]``, parsed strictly."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.fetch.tree import is_revision
from pytest_transformer_validate.sources.wording import clipped

SHORT = 12
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_FORMS = """  a model of the Hugging Face Hub is named by hf:org/name, or by hf:org/name@REVISION
  with a commit, a branch or a tag: --tb-model=hf:openai-community/gpt2@main"""


class HubName(NamedTuple):
    """A repository (``org/name``) and the revision that was typed, if one was."""

    repository: str
    revision: str | None


def short_id(repository: str, revision: str | None) -> str:
    """``hf:org/name@REV``; a commit is cut to 12 digits."""
    if revision is None:
        return f"hf:{repository}"
    return f"hf:{repository}@{revision[:SHORT] if is_revision(revision) else revision}"


def parse_name(spec: str) -> HubName:
    """What ``hf:...`` names. Raises SpecError; nothing is asked of the Hub."""
    repository, at, revision = spec.partition(":")[2].partition("@")
    if not is_repository(repository):
        raise SpecError(f"model {clipped(repr(spec), 160)}: no repository of the Hub\n{_FORMS}")
    if at and not _is_revision_name(revision):
        raise SpecError(
            f"model {clipped(repr(spec), 160)}: after @ comes a commit (40 hex digits or their "
            f"beginning), a branch or a tag\n{_FORMS}"
        )
    return HubName(repository, _canonical(revision) if at else None)


def hub() -> str:
    """The host that is asked, as huggingface_hub finds it, without what a URL may hold besides."""
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{parts.hostname or 'huggingface.co'}{port}"


def is_repository(text: str) -> bool:
    """Whether ``text`` can be the id of a repository: ``org/name``."""
    return (
        bool(_REPOSITORY.fullmatch(text))
        and len(text) <= 96
        and not re.search(r"--|\.\.|\.git$", text)
    )


def _is_revision_name(text: str) -> bool:
    return bool(_REVISION.fullmatch(text)) and ".." not in text and not text.endswith("/")


def _canonical(revision: str) -> str:
    return revision.lower() if is_revision(revision.lower()) else revision
