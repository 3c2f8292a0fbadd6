"""A model in a Python file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.sources.assemble import assemble
from pytest_transformer_validate.sources.at_hand import at_hand
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.code import read_code
from pytest_transformer_validate.sources.entrypoint import find_entry
from pytest_transformer_validate.sources.modulefile import module_name, run_file
from pytest_transformer_validate.sources.scope import ModuleScope
from pytest_transformer_validate.sources.seeding import seeded
from pytest_transformer_validate.sources.settings import Settings, read_settings
from pytest_transformer_validate.sources.wording import shown

if TYPE_CHECKING:
    from pathlib import Path

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class FileSource(Source):
    """``model.py`` or ``model.py::Net``; its config is the config.json beside it."""

    spec: str
    id: str
    path: Path
    name: str | None = None

    def load(self, options: LoadOptions) -> Loaded:
        """Run the file and build its model."""
        return load_file(self.path, self.name, find_settings(self.path.parent, options), options)


def find_settings(folder: Path, options: LoadOptions) -> Settings:
    """What ``--tb-config`` says, else the config.json in ``folder`` if there is one."""
    path = folder / CONFIG_FILE
    if options.config is not None:
        return read_settings(options.config)
    if path.exists():
        return read_settings(path)
    return Settings(place=f"no {CONFIG_FILE} in {shown(folder)}")


def load_file(path: Path, name: str | None, settings: Settings, options: LoadOptions) -> Loaded:
    """Load the model of one file."""
    code = read_code(path)
    module_id, root = module_name(path)
    scope = ModuleScope(root)
    with scope:
        with seeded(options.seed):
            module = run_file(code, module_id)
        entry = find_entry(
            module, code.tree, path, name=name, model_name=settings.config.get("model_name")
        )
        entry, settings = at_hand(entry, settings, module, path, named=name is not None)
        origin = f"file {shown(path)}, {entry.words}"
        return assemble(entry, settings, options, origin=origin, scope=scope)
