"""Which files of a repository a model needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.directory import CONFIG_FILE, TOKENIZER_CONFIG
from pytest_transformer_validate.sources.pretrained import OTHER_WEIGHTS, WEIGHTS, shard_names
from pytest_transformer_validate.sources.tokenizer import FILES as TOKENIZER_FILES
from pytest_transformer_validate.sources.wording import clipped, listed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What is small beside the weights, all at the top of a repository.
_BESIDE = (
    CONFIG_FILE,
    TOKENIZER_CONFIG,
    "generation_config.json",
    "adapter_config.json",
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.(safetensors|bin)")

MEGABYTE = 1_000_000
MAX_BESIDE = 100 * MEGABYTE
MAX_CODE = 25 * MEGABYTE
MAX_CODE_FILES = 300
MAX_WEIGHTS = 20_000 * MEGABYTE


def beside(sizes: Mapping[str, int]) -> list[str]:
    """The files that describe the model, of ``sizes`` (bytes by path)."""
    names = [name for name in dict.fromkeys(_BESIDE) if name in sizes]
    return _bounded(names, sizes, MAX_BESIDE, "descriptions")


def code(sizes: Mapping[str, int]) -> list[str]:
    """The Python files that a module of the repository can import. Raises SourceError."""
    names = sorted(name for name in sizes if is_module(name))
    if len(names) > MAX_CODE_FILES:
        raise SourceError(
            f"the repository has {len(names)} Python files; at most {MAX_CODE_FILES} are fetched"
        )
    return _bounded(names, sizes, MAX_CODE, "Python files")


def is_module(path: str) -> bool:
    """Whether a file of a repository can be imported as a module of it."""
    stem, dot, ending = path.rpartition(".")
    return bool(dot) and ending == "py" and all(part.isidentifier() for part in stem.split("/"))


def index(sizes: Mapping[str, int]) -> str | None:
    """The file that has the weights or says which files have; the best form that there is."""
    for name in WEIGHTS:
        if name in sizes:
            return name
    others = sorted(
        name for name in sizes if "/" not in name and any(_fits(name, f) for f in OTHER_WEIGHTS)
    )
    if others:
        raise SourceError(
            f"the repository holds weights that are not read here: {listed(others)}\n"
            f"  read are {', '.join(WEIGHTS)}"
        )
    return None


def shards(found: str, sizes: Mapping[str, int], folder: Path) -> list[str]:
    """The files with the weights that ``found`` stands for; an index lies in ``folder``.

    Raises SourceError for an index that names no files, or files that are not there.
    """
    if not found.endswith(".index.json"):
        return _bounded([found], sizes, MAX_WEIGHTS, "weights")
    names = shard_names(folder / found)
    odd = [name for name in names if not _SHARD.fullmatch(name)]
    absent = [name for name in names if name not in sizes]
    if odd or absent:
        raise SourceError(
            f"{found} names {len(odd or absent)} files that the repository does not have: "
            f"{clipped(listed(odd or absent, 5))}"
        )
    return _bounded(names, sizes, MAX_WEIGHTS, "weights")


def _fits(name: str, form: str) -> bool:
    return name.endswith(form[1:]) if form.startswith("*") else name == form


def _bounded(names: list[str], sizes: Mapping[str, int], most: int, what: str) -> list[str]:
    total = sum(sizes[name] for name in names)
    if total > most:
        raise SourceError(
            f"its {what} have {_megabytes(total)} MB; at most {_megabytes(most)} MB are fetched\n"
            "  download them with `hf download` and name the folder: --tb-model=FOLDER"
        )
    return names


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:,.0f}"
