"""A builder export: model.py and config.json in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.file import CONFIG_FILE, find_settings, load_file
from pytest_transformer_validate.sources.wording import listed, shown

if TYPE_CHECKING:
    from pathlib import Path

MODEL_FILE = "model.py"


@dataclass(frozen=True)
class FolderSource(Source):
    """``folder/`` with a builder export; both files are looked at before anything runs."""

    spec: str
    id: str
    path: Path
    name: str | None = None

    def load(self, options: LoadOptions) -> Loaded:
        """Run the folder's model.py and build its model."""
        if options.config is None:
            self._require(CONFIG_FILE, f"or load the file alone: --tb-model={self._file()}")
        settings = find_settings(self.path, options)
        self._require(
            MODEL_FILE,
            "a Hugging Face directory, which needs none, has architectures or model_type in its "
            "config.json",
        )
        return load_file(self.path / MODEL_FILE, self.name, settings, options)

    def _file(self) -> str:
        return shown(self.path / MODEL_FILE)

    def _require(self, name: str, otherwise: str) -> None:
        file = self.path / name
        if file.is_file() and file.stat().st_size:
            return
        what = f"an empty {name}" if file.exists() else f"no {name}"
        try:
            there = sorted(entry.name for entry in self.path.iterdir())
        except OSError as error:
            raise SourceError(f"cannot read the folder {shown(self.path)}: {error}") from error
        raise SourceError(
            f"{shown(self.path)} has {what}; found: {listed(there)}\n"
            f"  a builder export is {MODEL_FILE} and {CONFIG_FILE}; export it again, {otherwise}"
        )
