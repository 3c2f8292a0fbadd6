"""A Hugging Face directory: config.json, maybe weights, a tokenizer, and code of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.directory import Directory
from pytest_transformer_validate.sources.wording import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class HuggingFaceSource(Source):
    """``folder/`` with a config.json that has ``architectures`` or ``model_type``.

    Nothing is fetched. Code that its ``auto_map`` names is run, as a model file's is: the folder
    is the user's own.
    """

    needs: ClassVar[Mapping[str, str]] = {"transformers": "hf"}

    spec: str
    id: str
    path: Path

    def load(self, options: LoadOptions) -> Loaded:
        """Build the class that the config names, with the weights in the folder if any."""
        return Directory(
            folder=self.path,
            weights=self.path,
            words=f"Hugging Face directory {shown(self.path)}",
        ).load(options)
