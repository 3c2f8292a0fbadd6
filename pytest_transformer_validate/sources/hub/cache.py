"""The cache of huggingface_hub: what of a repository lies in it, and what has to be fetched."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.fetch.tree import is_revision
from pytest_transformer_validate.sources.hub.answers import explain, not_cached
from pytest_transformer_validate.sources.hub.name import hub
from pytest_transformer_validate.sources.wording import clipped, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_BRANCH = "main"
_SHORTEST = 7  # hex digits by which git and the Hub know a commit
_SECONDS = 10.0  # without a byte from the Hub


@dataclass(frozen=True)
class Copy:
    """One commit of a repository in the cache.

    ``sizes`` are the bytes of its files by path: of all files that the repository has where
    ``whole``, else of those that lie in ``folder``.
    """

    repository: str
    commit: str
    folder: Path
    sizes: Mapping[str, int]
    whole: bool

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of the files that are not in the cache."""
        return [name for name in names if not (self.folder / name).is_file()]


class Cache:
    """The user's cache of huggingface_hub. With ``offline``, nothing is asked of the Hub.

    Raises SourceError for whatever the Hub or the network does not give.
    """

    def __init__(self, *, offline: bool = False) -> None:
        self._api = require("huggingface_hub", extra="hf")
        self._constants = require("huggingface_hub.constants", extra="hf")
        self._asked = offline
        self.offline = offline or bool(self._constants.is_offline_mode())

    def look(self, repository: str, revision: str | None) -> Copy:
        """The commit that a revision is (the newest one by default), and its files.

        A commit whose files are known is not asked for again: it never changes.
        """
        commit = self._known_commit(repository, revision)
        if commit is not None and (self.offline or commit == revision):
            copy = self._copy(repository, commit)
            if copy is not None and (copy.whole or self.offline):
                return copy
        if self.offline:
            raise SourceError(not_cached(repository, revision, asked=self._asked))
        with _explained(repository, revision):
            return self._ask(repository, revision)

    def fetch(self, copy: Copy, names: Iterable[str]) -> None:
        """Have these files of a commit in the cache."""
        absent = copy.lacks(names)
        if absent and self.offline:
            why = f"the copy lacks {listed(absent, 3)}"
            raise SourceError(not_cached(copy.repository, copy.commit, asked=self._asked, why=why))
        with _explained(copy.repository, copy.commit):
            for name in absent:
                self._api.hf_hub_download(copy.repository, name, revision=copy.commit)

    def _known_commit(self, repository: str, revision: str | None) -> str | None:
        """The commit that the cache knows for a revision."""
        if revision is not None and is_revision(revision):
            return revision
        place = self._place(repository)
        with contextlib.suppress(OSError):
            text = (place / "refs" / (revision or _BRANCH)).read_text(encoding="ascii").strip()
            return text if is_revision(text) else None
        found = [
            entry.name
            for entry in _entries(place / "snapshots")
            if revision and len(revision) >= _SHORTEST and entry.name.startswith(revision)
        ]
        return found[0] if len(found) == 1 and is_revision(found[0]) else None

    def _place(self, repository: str) -> Path:
        naming = require("huggingface_hub.file_download", extra="hf")
        name = naming.repo_folder_name(repo_id=repository, repo_type="model")
        return Path(self._constants.HF_HUB_CACHE) / str(name)

    def _copy(self, repository: str, commit: str) -> Copy | None:
        folder = self._place(repository) / "snapshots" / commit
        sizes = self._listing(repository, commit)
        if sizes is not None:
            return Copy(repository, commit, folder, sizes, whole=True)
        there = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in there}
        return Copy(repository, commit, folder, sizes, whole=False) if sizes else None

    def _listing(self, repository: str, commit: str) -> dict[str, int] | None:
        errors = require("huggingface_hub.errors", extra="hf")
        try:
            files = self._api.get_cached_repo_tree(repository, revision=commit)
        except errors.CachedRepoTreeNotFoundError:
            return None
        return {file.path: file.size for file in files}

    def _ask(self, repository: str, revision: str | None) -> Copy:
        """Resolve a revision and list its files, which the library remembers."""
        commit = revision or _BRANCH
        if not is_revision(commit):
            commit = self._resolve(repository, commit)
        # Lists the files, fetches none of them, and notes which commit the branch was.
        for name in dict.fromkeys([revision or _BRANCH, commit]):
            self._api.snapshot_download(repository, revision=name, allow_patterns=[])
        copy = self._copy(repository, commit)
        if copy is None or not copy.whole:
            raise SourceError(f"{hub()} did not list the files of hf:{repository}@{commit}")
        return copy

    def _resolve(self, repository: str, revision: str) -> str:
        about: Any = self._api.HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
        commit = str(about.sha or "").lower()
        if not is_revision(commit):
            raise SourceError(
                f"{hub()} gives no commit for hf:{repository}: {clipped(repr(about.sha), 60)}"
            )
        return commit


@contextlib.contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(explain(error, repository, revision)) from error


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
