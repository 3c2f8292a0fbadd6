"""A model in a Gist."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.sources.fetch.http import Client, Limits
from pytest_transformer_validate.sources.fetch.rate import Token
from pytest_transformer_validate.sources.fetch.source import (
    SHORT,
    WHOLE,
    Fetched,
    FetchedSource,
    Resolution,
)
from pytest_transformer_validate.sources.file import find_settings, load_file
from pytest_transformer_validate.sources.folder import MODEL_FILE
from pytest_transformer_validate.sources.gist.api import Api
from pytest_transformer_validate.sources.gist.download import Download
from pytest_transformer_validate.sources.gist.name import GistName, parse_gist

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_transformer_validate.sources.base import Loaded, LoadOptions
    from pytest_transformer_validate.sources.fetch.store import Store


@dataclass(frozen=True)
class GistSource(FetchedSource):
    """``gist:ID[@REVISION]``: model.py, or the file that the spec names, and the config.json
    beside it if there is one."""

    spec: str
    id: str
    name: str
    revision: str | None
    gist: GistName
    api: Api = field(default_factory=Api)
    limits: Limits = field(default_factory=Limits)
    resolution: Resolution | None = None

    @classmethod
    def parse(cls, spec: str, api: Api) -> GistSource:
        """The Gist that ``spec`` names. Raises SpecError; asks nobody."""
        gist = parse_gist(spec, api)
        short = gist.short(gist.revision, SHORT)
        return cls(spec, short, f"gist:{gist.id}", gist.revision, gist, api)

    def id_at(self, revision: str | None) -> str:
        """See ``FetchedSource.id_at``."""
        return self.gist.short(revision, SHORT)

    def spec_at(self, revision: str | None) -> str:
        """See ``FetchedSource.spec_at``."""
        return self.gist.short(revision, WHOLE)

    def page(self, revision: str) -> str:
        """See ``FetchedSource.page``."""
        return f"{self.api.page(self.gist.id)}/{revision}"

    def fetch(self, revision: str | None, store: Store) -> Fetched:
        """See ``FetchedSource.fetch``."""
        token = Token.of_environment()
        client = Client(self.api.url, self.api.hosts, token, self.limits)
        file = self.gist.file or MODEL_FILE
        return Download(client, self.api, self.gist.id, file, store).fetch(revision)

    def load_folder(self, folder: Path, options: LoadOptions) -> Loaded:
        """Run the model file and build its model."""
        path = folder / (self.gist.file or MODEL_FILE)
        return load_file(path, self.gist.name, find_settings(folder, options), options)
