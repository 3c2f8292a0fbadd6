"""``tb.lock``: which fetched models have been accepted. Made to be read and kept in git."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.sources.fetch.tree import Pin
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.wording import clipped, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCK_FILE = "tb.lock"
VERSION = 1


@dataclass(frozen=True)
class Lock:
    """The pins that have been accepted, by name (``gist:ID``, ``hf:org/name``) or, where the
    revision was typed, by ``name@revision``. Immutable: ``add`` gives another one."""

    path: Path
    pins: Mapping[str, Pin] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The lock in ``path``, an empty one where there is no file. Raises SpecError."""
        if not os.path.lexists(path):
            return cls(path)
        try:
            return cls(path, _pins(read_object(path)))
        except SourceError as error:
            raise SpecError(_unreadable(path, str(error))) from error
        except ValueError as error:
            raise SpecError(_unreadable(path, f"{shown(path)}: {clipped(error)}")) from error

    def find(self, name: str, revision: str | None = None) -> Pin | None:
        """What was accepted for ``name``; for a typed revision, of that revision."""
        pin = self.pins.get(name)
        if revision is None or (pin is not None and pin.revision == revision):
            return pin
        return self.pins.get(f"{name}@{revision}")

    def add(self, name: str, pin: Pin, *, typed: bool = False) -> Self:
        """The lock with ``pin`` accepted; ``typed``: for a revision that the spec names."""
        if typed and self.find(name, pin.revision) == pin:
            return self
        key = f"{name}@{pin.revision}" if typed else name
        return type(self)(self.path, {**self.pins, key: pin})

    def write(self) -> None:
        """Write the file, whole or not at all. Raises SpecError where that does not work."""
        models = {name: pin.to_json() for name, pin in self.pins.items()}
        text = json.dumps({"models": models, "version": VERSION}, indent=2, sort_keys=True) + "\n"
        try:
            _replace(self.path, text)
        except OSError as error:
            raise SpecError(
                f"{shown(self.path)} cannot be written: {error.strerror or error}\n"
                "  what was accepted is recorded there; make the folder writable, or accept by "
                "hash in every run: --tb-trust=SHA256"
            ) from error


def _pins(values: dict[str, Any]) -> dict[str, Pin]:
    if set(values) != {"models", "version"}:
        raise ValueError("must have the keys models, version and no others")
    if type(values["version"]) is not int or values["version"] != VERSION:
        raise ValueError(f"version must be {VERSION}; a newer one needs a newer plugin")
    models = values["models"]
    if not isinstance(models, dict):
        raise ValueError("models must be an object")
    pins = {}
    for name, value in models.items():
        try:
            pins[name] = Pin.from_json(value)
        except ValueError as error:
            raise ValueError(f"models.{name}: {error}") from error
    return pins


def _unreadable(path: Path, text: str) -> str:
    return (
        f"{text}\n"
        f"  {shown(path)} records which fetched models were accepted, and is not edited by hand\n"
        "  take it from git again, or delete it and accept the models anew: --tb-trust=new"
    )


def _replace(path: Path, text: str) -> None:
    """Write beside the file and move into its place; a link stays a link."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
