"""From specs to accepted files: once, in the process that controls the run."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.sources.fetch.consent import Terms, decide, require_any
from pytest_transformer_validate.sources.fetch.lock import LOCK_FILE, Lock
from pytest_transformer_validate.sources.fetch.source import Fetched, Resolution
from pytest_transformer_validate.sources.fetch.store import Store
from pytest_transformer_validate.sources.fetch.tree import Pin
from pytest_transformer_validate.sources.file import CONFIG_FILE
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_transformer_validate.sources.fetch.source import FetchedSource


def resolve_all(
    sources: Sequence[FetchedSource], terms: Terms, lock_path: Path, store: Store | None = None
) -> list[FetchedSource]:
    """The sources with what was found out about each; the lock is written if it has to be.

    Raises SpecError for a model whose content nobody accepted: then nothing may run. What a host
    does not give is an error of that model alone. ``terms.lists``: nothing is fetched or written.
    """
    lock = Lock.read(lock_path) if terms.recorded else Lock(lock_path)
    if terms.lists:
        return [_listed(source, terms, lock) for source in sources]
    store = store or Store.of_user()
    resolver = _Resolver(terms, lock, store)
    done = [source.resolved(resolver.resolve(source)) for source in sources]
    _require_met(done, terms)
    resolver.record()
    return done


def fetch(source: FetchedSource, store: Store | None = None) -> Fetched:
    """The files that ``source`` names, of its newest revision where it names none: to be read.
    Nothing of them is accepted or run. Raises SourceError where the host does not give them."""
    store = store or Store.of_user()
    return _Resolver(Terms(), Lock(Path(LOCK_FILE)), store).fetch(source, source.revision)


def _listed(source: FetchedSource, terms: Terms, lock: Lock) -> FetchedSource:
    entry = lock.find(source.name, source.revision)
    if source.always_code:
        require_any(source.spec, entry, terms)
    pin = None if terms.new and source.revision is None else entry
    return source.resolved(Resolution(pin=pin))


@dataclass
class _Resolver:
    terms: Terms
    lock: Lock
    store: Store

    def __post_init__(self) -> None:
        self._additions: list[tuple[str, Pin, bool]] = []

    def resolve(self, source: FetchedSource) -> Resolution:
        """Decide about one model. Raises SpecError where nobody accepted its content."""
        entry = self.lock.find(source.name, source.revision)
        try:
            got = self._get(source, entry)
        except SourceError as error:
            return Resolution(pin=entry, error=_no_files(error, source))
        known = entry or self.lock.find(source.name)
        accepted = self._accept(source, got.pin, known)
        try:
            source.complete(got.pin, offline=self.terms.offline)
        except SourceError as error:
            return Resolution(pin=got.pin, error=_no_files(error, source))
        return Resolution(
            pin=got.pin,
            folder=str(got.folder),
            accepted=accepted,
            cached=got.cached,
            remarks=tuple(_remarks(got, known)),
        )

    def _accept(self, source: FetchedSource, pin: Pin, known: Pin | None) -> str:
        """How it comes that ``pin`` may run. Raises SpecError where it may not."""
        if not source.needs_consent(pin):
            return "data without code"
        if decide(source.spec, pin, known, self.terms, page=source.page(pin.revision)):
            self._additions.append((source.name, pin, source.revision is not None))
        return self._how(known is not None and known.tree == pin.tree)

    def record(self) -> None:
        """Write what was accepted into the lock, beside what others wrote since it was read."""
        if not self._additions:
            return
        with self.store.locked(f"lock-{_digest(str(self.lock.path.resolve()))}"):
            lock = Lock.read(self.lock.path)
            for name, pin, typed in self._additions:
                lock = lock.add(name, pin, typed=typed)
            lock.write()

    def _how(self, same: bool) -> str:
        if same:
            return f"accepted in {LOCK_FILE}"
        place = f"written to {LOCK_FILE}" if self.terms.records else "not recorded"
        return f"accepted by --tb-trust, {place}" if self.terms.recorded else "accepted by hash"

    def _get(self, source: FetchedSource, entry: Pin | None) -> Fetched:
        """The content to decide about: without network wherever it is known which one is meant.

        The newest one is asked for where nothing else is known, and where it was asked for: by
        ``new``, or by a hash that neither the lock nor the store knows.
        """
        if source.revision is None and not self.terms.new:
            for known in self._typed(source):
                folder = source.stored(known, self.store)
                if folder is not None:
                    return Fetched(pin=known, folder=folder, cached=True)
        if source.revision is None and self._wants_newest():
            newest = self.fetch(source, None)
            if entry is None or self.terms.new or newest.pin.tree.sha256 in self.terms.hashes:
                return newest
        pinned = source.revision or (None if entry is None else entry.revision)
        pin = entry or (None if pinned is None else _recall(self.store, _place(source, pinned)))
        folder = None if pin is None else source.stored(pin, self.store)
        if pin is not None and folder is not None:
            return Fetched(pin=pin, folder=folder, cached=True)
        if self.terms.offline:
            if source.always_code:
                require_any(source.spec, entry, self.terms)
            found = source.find_offline(pinned, pin, self.store)
            if found is not None:
                return found
            raise SourceError(
                f"not in the cache ({shown(self.store.root)}), and --tb-offline forbids to fetch "
                "it; run once without --tb-offline"
            )
        return self.fetch(source, pinned, pin)

    def _typed(self, source: FetchedSource) -> Iterator[Pin]:
        """Revisions of this model whose hash was typed and that were fetched before."""
        for sha256 in sorted(self.terms.hashes):
            pin = _recall(self.store, _place(source, sha256))
            if pin is not None and pin.tree.sha256 == sha256:
                yield pin

    def _wants_newest(self) -> bool:
        recorded = {pin.tree.sha256 for pin in self.lock.pins.values()}
        return not self.terms.offline and (self.terms.new or bool(self.terms.hashes - recorded))

    def fetch(
        self, source: FetchedSource, revision: str | None, pin: Pin | None = None
    ) -> Fetched:
        with self.store.locked(f"fetch-{_digest(source.name)}"):
            if pin is None:
                got = source.fetch(revision, self.store)
            else:
                got = source.fetch_again(pin, self.store)
        for word in (got.pin.revision, got.pin.tree.sha256):
            self.store.note(_place(source, word), got.pin.to_json())
        return got


def _place(source: FetchedSource, word: str) -> str:
    """What the store notes a revision, or a hash, of a model under."""
    return f"{source.page(word)} {source.name} {word}"


def _recall(store: Store, place: str) -> Pin | None:
    """What was noted when it was fetched. It says where to look: the content is hashed again and
    has to be accepted all the same."""
    try:
        return Pin.from_json(store.noted(place))
    except ValueError:
        return None


def _no_files(error: SourceError, source: FetchedSource) -> str:
    first, *rest = str(error).splitlines()
    return "\n".join([f"{source.spec}: {first}", *rest])


def _remarks(got: Fetched, known: Pin | None) -> Iterator[str]:
    yield from got.remarks
    if known is not None and known.owner != got.pin.owner:
        yield (
            f"it belongs to {got.pin.owner or 'nobody'} now, and belonged to "
            f"{known.owner or 'nobody'} when it was accepted"
        )
    with suppress(SourceError):
        if read_object(got.folder / CONFIG_FILE).get("expect_fail"):
            yield (
                f"expect_fail in its {CONFIG_FILE} is ignored: a fetched model may not excuse "
                "itself; declare it in the ini key tb_expect_fail"
            )


def _require_met(sources: Sequence[FetchedSource], terms: Terms) -> None:
    """A hash that was typed and that no model has is a mistake, and not a run without it."""
    pins = {source.spec: source.resolution.pin for source in sources if source.resolution}
    found = {pin.tree.sha256: spec for spec, pin in pins.items() if pin is not None}
    failed = any(source.resolution and source.resolution.error for source in sources)
    missing = sorted(terms.hashes - set(found))
    if missing and terms.typed and not failed:
        lines = [f"  {spec}: sha256 {sha256}" for sha256, spec in list(found.items())[:6]]
        raise SpecError(
            "\n".join([f"--tb-trust={missing[0]}: no fetched model of this run has it", *lines])
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
