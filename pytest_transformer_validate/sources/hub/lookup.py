"""What a model of the Hub is made of: its descriptions, its code, and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.automap import references
from pytest_transformer_validate.sources.directory import CONFIG_FILE, tokenizer_references
from pytest_transformer_validate.sources.hub import files
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.wording import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.sources.hub.cache import Cache, Copy


@dataclass(frozen=True)
class Part:
    """Files of one commit of a repository, in ``folder``. Types that travel as JSON."""

    repository: str
    commit: str
    folder: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, copy: Copy, names: list[str]) -> Part:
        return cls(copy.repository, copy.commit, str(copy.folder), tuple(names))


def describe(
    cache: Cache, repository: str, revision: str | None, pins: Mapping[str, str]
) -> list[Part]:
    """Fetch all of a model but its weights: first its descriptions with the code beside them,
    then the code that ``auto_map`` takes from other repositories.

    ``pins`` are the commits of those, where they are known. Raises SourceError.
    """
    copy = cache.look(repository, revision)
    if CONFIG_FILE not in copy.sizes:
        raise SourceError(
            f"no model of transformers: there is no {CONFIG_FILE}; found: "
            f"{listed(sorted(copy.sizes), 5)}"
        )
    names = files.beside(copy.sizes)
    cache.fetch(copy, names)
    others = _repositories(copy)
    if copy.repository in others:
        code = files.code(copy.sizes)
        cache.fetch(copy, code)
        names += code
    parts = [Part.of(copy, names)]
    for other in sorted(others - {copy.repository}):
        there = cache.look(other, pins.get(other))
        code = files.code(there.sizes)
        cache.fetch(there, code)
        parts.append(Part.of(there, code))
    return parts


def _repositories(copy: Copy) -> set[str]:
    """The repositories that the model and its tokenizer take classes from."""
    values: dict[str, Any] = read_object(copy.folder / CONFIG_FILE)
    named = [*references(values, CONFIG_FILE).values(), tokenizer_references(copy.folder)]
    return {reference.repository or copy.repository for found in named for reference in found}


def fetch_weights(cache: Cache, repository: str, commit: str) -> None:
    """Fetch the weights of a commit in their best form, if it has any. Raises SourceError."""
    copy = cache.look(repository, commit)
    index = files.index(copy.sizes)
    if index is None:
        if not copy.whole:
            raise SourceError(
                "the copy in the cache has no weights, and whether the repository has any is not "
                "known\n  run it once with a connection and without --tb-offline"
            )
        return
    if index.endswith(".json"):
        cache.fetch(copy, [index])
    cache.fetch(copy, files.shards(index, copy.sizes, copy.folder))
