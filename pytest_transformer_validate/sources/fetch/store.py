"""Where fetched files lie: a folder of the user's alone, by hash, hashed again before each use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.optional import find, require
from pytest_transformer_validate.sources.fetch.tree import File, Tree
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = "pytest-transformer-validate"
_HALF_WRITTEN = ".new-"
_STALE_SECONDS = 3600.0
_LOCK_SECONDS = 60.0
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class Store:
    """Trees of files below ``root``, each in a folder named by its hash.

    Nothing in it is trusted: ``get`` hashes every file again. Writing is atomic, so that any
    number of processes may use one store; ``locked`` only saves them from fetching the same
    thing at the same time, where ``filelock`` is installed.
    """

    def __init__(self, root: Path) -> None:
        """Make the folder, or refuse one that others can write to. Raises SpecError."""
        self.root = root
        self._trees, self._notes = root / "trees", root / "notes"
        for folder in (root, self._trees, self._notes):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                why = _not_private(folder)
            except OSError as error:
                why = error.strerror or str(error)
            if why:
                raise SpecError(_unusable(folder, why))

    @classmethod
    def of_user(cls) -> Store:
        """The store in the user's cache folder. Raises SpecError and MissingDependency."""
        platformdirs = require("platformdirs", extra="gist")
        return cls(Path(platformdirs.user_cache_dir(NAME, appauthor=False)))

    def get(self, tree: Tree) -> Path | None:
        """The folder with exactly these files, or ``None``; one that was changed is removed."""
        folder = self._folder(tree)
        if not os.path.lexists(folder):
            return None
        if holds(folder, tree):
            return folder
        _remove(folder)
        return None

    def put(self, contents: Mapping[str, bytes]) -> Path:
        """The folder with these files, written now or by somebody else before. Raises OSError."""
        tree = Tree.of(contents)
        there = self.get(tree)
        if there is not None:
            return there
        self._sweep()
        made = Path(tempfile.mkdtemp(prefix=_HALF_WRITTEN, dir=self._trees))
        try:
            for path, data in contents.items():
                _write(made, path, data)
            return self._place(made, tree)
        finally:
            _remove(made)

    def note(self, place: str, value: Any) -> None:
        """Keep a JSON value under ``place``, any text. What cannot be written is not kept."""
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix=_HALF_WRITTEN, dir=self._notes)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(value, file)
            Path(name).replace(self._note(place))

    def noted(self, place: str) -> Any:
        """What was kept under ``place``, else ``None``. Nobody vouches for it."""
        try:
            return read_object(self._note(place))
        except SourceError:
            return None

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock called ``name`` (a plain file name). The system frees that of a process
        that was killed; a lock that stays taken for a minute is not waited for any longer."""
        filelock = find("filelock")
        if filelock is None:
            yield
            return
        lock = filelock.FileLock(self.root / f"{name}.lock", timeout=_LOCK_SECONDS, mode=0o600)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(filelock.Timeout, OSError):
                held.enter_context(lock)
            yield

    def _folder(self, tree: Tree) -> Path:
        return self._trees / tree.sha256

    def _note(self, place: str) -> Path:
        return self._notes / hashlib.sha256(place.encode()).hexdigest()

    def _place(self, made: Path, tree: Tree) -> Path:
        """Move what was written to its place, unless somebody else was faster."""
        folder = self._folder(tree)
        try:
            made.rename(folder)
        except OSError:
            there = self.get(tree)
            if there is not None:
                return there
            made.rename(folder)
        _protect(folder)
        return folder

    def _sweep(self) -> None:
        """Remove what processes that were killed left behind."""
        for left in self.root.glob(f"*/{_HALF_WRITTEN}*"):
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > _STALE_SECONDS:
                    _remove(left)


def holds(folder: Path, tree: Tree) -> bool:
    """Whether ``folder`` holds exactly the files of ``tree``: regular files, nothing beside
    them, every byte as hashed."""
    try:
        if stat.S_ISLNK(folder.lstat().st_mode):
            return False
        there = {path.relative_to(folder).as_posix() for path in _files(folder)}
        if there != set(tree.files):
            return False
        return all(_file(folder / path) == file for path, file in tree.files.items())
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> Iterator[Path]:
    """Everything below ``folder`` but its folders; an empty folder counts as a file."""
    for entry in folder.iterdir():
        inner = list(_files(entry)) if stat.S_ISDIR(entry.lstat().st_mode) else []
        yield from inner or [entry]


def _file(path: Path) -> File:
    handle = os.open(path, os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{path} is no regular file")
        return File.of(file.read())


def _write(folder: Path, path: str, data: bytes) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _protect(folder: Path) -> None:
    """Take the right to write, so that a model does not change its own files by accident."""
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            path.chmod(0o500 if path.is_dir() else 0o400)
        folder.chmod(0o500)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError):
        for folder in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
            folder.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _not_private(folder: Path) -> str:
    """Why others could have written to ``folder``; empty where they could not."""
    facts = folder.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return "it is a link"
    if not stat.S_ISDIR(facts.st_mode):
        return "it is no folder"
    if not hasattr(os, "getuid"):
        return ""
    if facts.st_uid != os.getuid():
        return f"it belongs to another user (id {facts.st_uid})"
    if facts.st_mode & 0o077:
        return f"others may use it (mode {stat.S_IMODE(facts.st_mode):04o}); chmod 700 it"
    return ""


def _unusable(folder: Path, why: str) -> str:
    return (
        f"the cache folder of fetched models cannot be used: {shown(folder)}: {why}\n"
        "  it has to be yours alone; set XDG_CACHE_HOME to a folder of yours, or repair this one"
    )
