"""A model of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.directory import Directory
from pytest_transformer_validate.sources.fetch.source import Fetched, FetchedSource
from pytest_transformer_validate.sources.fetch.tree import File, Pin, Tree, is_revision
from pytest_transformer_validate.sources.hub.lookup import Part
from pytest_transformer_validate.sources.hub.name import hub, parse_name, short_id
from pytest_transformer_validate.sources.hub.process import DESCRIBE, WEIGHTS, ask
from pytest_transformer_validate.sources.packaged import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.sources.base import Loaded, LoadOptions
    from pytest_transformer_validate.sources.fetch.source import Resolution
    from pytest_transformer_validate.sources.fetch.store import Store

# How the tree of a model names a file of another repository: org/name@commit/modeling.py.
_FOREIGN = re.compile(r"(?P<repository>[^/]+/[^/@]+)@(?P<commit>[0-9a-f]{40})/(?P<path>.+)")


@dataclass(frozen=True)
class HubSource(FetchedSource):
    """``hf:org/name[@REV]``. Its descriptions and its code are pinned, hashed and kept like a
    Gist's; its weights are data, and stay in the cache of huggingface_hub.

    It runs in a worker also where it has no code of its own: its config decides which code of
    transformers runs, and how much memory that takes.
    """

    always_code: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, str]] = {"huggingface_hub": "hf", "transformers": "hf"}

    spec: str
    id: str
    repository: str
    typed: str | None = None
    resolution: Resolution | None = None

    @classmethod
    def parse(cls, spec: str) -> HubSource:
        """The model that ``spec`` names. Raises SpecError; asks nobody."""
        name = parse_name(spec)
        return cls(spec, short_id(*name), *name)

    @property
    def name(self) -> str:  # type: ignore[override]
        """``hf:org/name``, with a branch or a tag if one was typed."""
        return short_id(self.repository, None if self.revision else self.typed)

    @property
    def revision(self) -> str | None:  # type: ignore[override]
        """The commit that was typed."""
        return self.typed if self.typed is not None and is_revision(self.typed) else None

    def id_at(self, revision: str | None) -> str:
        """See ``FetchedSource.id_at``."""
        return short_id(self.repository, revision or self.typed)

    def spec_at(self, revision: str | None) -> str:
        """See ``FetchedSource.spec_at``."""
        at = revision or self.typed
        return f"hf:{self.repository}" + (f"@{at}" if at else "")

    def page(self, revision: str) -> str:
        """See ``FetchedSource.page``."""
        return f"{hub()}/{self.repository}/tree/{revision}"

    def fetch(self, revision: str | None, store: Store) -> Fetched:
        """See ``FetchedSource.fetch``."""
        return self._describe(revision, store)

    def fetch_again(self, pin: Pin, store: Store) -> Fetched:
        """See ``FetchedSource.fetch_again``: code of other repositories at the same commits."""
        return self._describe(pin.revision, store, pin)

    def find_offline(self, revision: str | None, pin: Pin | None, store: Store) -> Fetched | None:
        """See ``FetchedSource.find_offline``."""
        return self._describe(revision, store, pin, offline=True)

    def complete(self, pin: Pin, *, offline: bool) -> None:
        """Fetch the weights."""
        ask(
            {
                "what": WEIGHTS,
                "repository": self.repository,
                "revision": pin.revision,
                "offline": offline,
            }
        )

    def load_folder(self, folder: Path, options: LoadOptions) -> Loaded:
        """See ``FetchedSource.load_folder``."""
        from pytest_transformer_validate.sources.hub.cache import Cache

        assert self.resolution is not None
        assert self.resolution.pin is not None
        pin = self.resolution.pin
        weights = Cache(offline=True).look(self.repository, pin.revision).folder
        texts = _texts(folder, pin)
        return Directory(
            folder=folder,
            weights=weights,
            words=f"Hugging Face Hub {self.repository}, revision {pin.revision}",
            repository=self.repository,
            texts=texts,
        ).load(options)

    def _describe(
        self,
        revision: str | None,
        store: Store,
        pin: Pin | None = None,
        *,
        offline: bool = False,
    ) -> Fetched:
        found = [_FOREIGN.fullmatch(path) for path in (pin.tree.files if pin else ())]
        reply = ask(
            {
                "what": DESCRIBE,
                "repository": self.repository,
                "revision": revision or self.typed,
                "pins": {match["repository"]: match["commit"] for match in found if match},
                "offline": offline,
            }
        )
        parts = [Part(**part) for part in reply]
        contents = {
            _path(part, parts[0], name): (Path(part.folder) / name).read_bytes()
            for part in parts
            for name in part.names
        }
        owner = self.repository.partition("/")[0]
        pin = Pin(parts[0].commit, owner, Tree.of(contents))
        return Fetched(pin=pin, folder=store.put(contents), cached=offline)


def _path(part: Part, first: Part, name: str) -> str:
    return name if part is first else f"{part.repository}@{part.commit}/{name}"


def _texts(folder: Path, pin: Pin) -> dict[str | None, dict[str, Text]]:
    """The Python files of a pin by the repository that they are from (``None``: its own). What is
    read here is what will run, so it is hashed here too. Raises SourceError."""
    texts: dict[str | None, dict[str, Text]] = {None: {}}
    for path, file in pin.tree.files.items():
        if not path.endswith(".py"):
            continue
        data = (folder / path).read_bytes()
        if File.of(data) != file:
            raise SourceError(f"{folder / path} was changed while it was read; nothing was run")
        found = _FOREIGN.fullmatch(path)
        repository, name = (found["repository"], found["path"]) if found else (None, path)
        texts.setdefault(repository, {})[name] = Text(folder / path, data)
    return texts
