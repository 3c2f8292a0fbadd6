"""What every source of fetched code has in common: resolved once, checked before each use."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.base import Loaded, LoadOptions, Source
from pytest_transformer_validate.sources.fetch.store import holds
from pytest_transformer_validate.sources.fetch.tree import Pin

if TYPE_CHECKING:
    from pytest_transformer_validate.sources.fetch.store import Store

SHORT = 12  # digits of a revision in ids
WHOLE = 40


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a host gave, or the store: ``folder`` holds the files of ``pin``.

    ``remarks`` are one line each about something a person should know.
    """

    pin: Pin
    folder: Path
    cached: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What the controller found out about a model; workers get it as JSON and fetch nothing.

    Without an ``error`` there are a ``pin`` and a ``folder``, and the content was accepted as
    ``accepted`` says. ``error`` is what the check ``load`` fails with.
    """

    pin: Pin | None = None
    folder: str | None = None
    accepted: str = ""
    cached: bool = False
    remarks: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Types that travel between processes."""
        pin = None if self.pin is None else self.pin.to_json()
        return {**vars(self), "pin": pin, "remarks": list(self.remarks)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        pin = None if value["pin"] is None else Pin.from_json(value["pin"])
        return cls(**{**value, "pin": pin, "remarks": tuple(value["remarks"])})


class FetchedSource(Source):
    """A model whose code comes from another machine. Subclasses are frozen dataclasses with the
    fields ``spec``, ``id`` and ``resolution``.

    ``name`` is what tb.lock calls it (``gist:ID``); ``revision`` the one that was typed, 40 hex
    digits, or ``None`` for whatever is accepted or newest; ``always_code`` whether there is code
    to accept in any case, or only where a file of it is Python.
    """

    fetched: ClassVar[bool] = True
    always_code: ClassVar[bool] = True
    name: str
    revision: str | None
    resolution: Resolution | None

    @abstractmethod
    def fetch(self, revision: str | None, store: Store) -> Fetched:
        """The files of a revision (``None``: the newest), put into the store. Runs nothing.
        Raises SourceError where the host does not give them or they may not be written."""

    @abstractmethod
    def load_folder(self, folder: Path, options: LoadOptions) -> Loaded:
        """Load the model from files that have just been checked."""

    @abstractmethod
    def id_at(self, revision: str | None) -> str:
        """The id with the first 12 digits of ``revision``."""

    @abstractmethod
    def spec_at(self, revision: str | None) -> str:
        """The spec of exactly ``revision``, in its plain form."""

    def fetch_again(self, pin: Pin, store: Store) -> Fetched:
        """The files of a revision that is known, see ``fetch``."""
        return self.fetch(pin.revision, store)

    def find_offline(self, revision: str | None, pin: Pin | None, store: Store) -> Fetched | None:
        """What another cache of this machine has of a revision, of which ``pin`` may be known;
        nothing is asked of the host."""
        return None

    def complete(self, pin: Pin, *, offline: bool) -> None:
        """Fetch what is not part of ``pin`` because nothing of it is ever run, once that may
        run. Raises SourceError."""

    def needs_consent(self, pin: Pin) -> bool:
        """Whether there is code to accept."""
        return self.always_code or any(path.endswith(".py") for path in pin.tree.files)

    def page(self, revision: str) -> str:
        """Where people can read the code of a revision; empty where there is no such page."""
        return ""

    def stored(self, pin: Pin, store: Store) -> Path | None:
        """The folder with the files of ``pin`` if the store has them, each hashed again."""
        return store.get(pin.tree)

    def resolved(self, resolution: Resolution) -> Self:
        """This source with what was found out about it, also in its id."""
        pin = resolution.pin
        revision = self.revision if pin is None else pin.revision
        changed: dict[str, Any] = {"resolution": resolution, "id": self.id_at(revision)}
        return replace(self, **changed)  # type: ignore[type-var]

    def load(self, options: LoadOptions) -> Loaded:
        """Check every file again, then load. ``expect_fail`` of a fetched config.json counts for
        nothing: a fetched model may not excuse itself."""
        folder = self._checked_folder()
        loaded = self.load_folder(folder, options)
        return loaded if options.config is not None else replace(loaded, expect_fail={})

    def provenance(self) -> str:
        """See ``Source.provenance``."""
        known = self.resolution
        if known is None or known.pin is None:
            return "" if known is None or known.error else "not fetched, nothing runs"
        owner = f" by {known.pin.owner}" if known.pin.owner else ""
        words = [f"revision {known.pin.revision}{owner}", f"sha256 {known.pin.tree.sha256}"]
        words += [known.accepted] * bool(known.accepted)
        line = ", ".join(words) + (" (cached)" if known.cached else "")
        return "\n".join([line, *(f"note: {remark}" for remark in known.remarks)])

    def _checked_folder(self) -> Path:
        known = self.resolution
        if known is not None and known.error is not None:
            raise SourceError(known.error)
        if known is None or known.pin is None or known.folder is None:
            raise SourceError(f"{self.spec} was not fetched, because nothing was to run")
        folder = Path(known.folder)
        if not holds(folder, known.pin.tree):
            raise SourceError(
                f"the files of {self.spec} were changed after they had been checked: {folder}\n"
                "  nothing of them was run; run again, and they are fetched again"
            )
        return folder
