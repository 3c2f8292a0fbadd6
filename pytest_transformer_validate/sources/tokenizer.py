"""Tokenizers, by way of transformers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.optional import require
from pytest_transformer_validate.sources.base import SourceWarning
from pytest_transformer_validate.sources.wording import reason, shown

if TYPE_CHECKING:
    from pathlib import Path

# One of these lies in a folder that holds a tokenizer.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a folder or a tokenizer.json. Raises SourceError.

    Nothing is fetched, and no code that lies in the folder is run.
    """
    if not path.exists():
        raise SourceError(f"no tokenizer at {shown(path)}")
    transformers = require("transformers", extra="hf")
    try:
        if path.is_dir():
            return transformers.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:
        raise SourceError(
            f"{shown(path)} holds no tokenizer that can be loaded: {reason(error)}\n"
            "  give a folder with tokenizer files or a tokenizer.json to --tb-tokenizer"
        ) from error


def find_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in a model's folder, if there is one.

    The model does not need it, so one that cannot be loaded is a warning.
    """
    if not any((folder / name).is_file() for name in FILES):
        return None
    try:
        return load_tokenizer(folder)
    except SourceError as error:
        warnings.warn(f"{error}; the model is used without it", SourceWarning, stacklevel=2)
        return None
