"""The files of a fetched model, and the one hash that stands for all of them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_MARKS = re.compile(r"[\0\r\n\\]")


@dataclass(frozen=True)
class File:
    """Size in bytes and sha256 (64 lower-case hex digits) of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Tree:
    """The files of one revision by their path, ``/`` between folders; never empty.

    ``sha256`` is over ``path NUL size NUL sha256 LF`` of each file in the order of their paths,
    so it stands for names and contents alike. Raises ValueError for a path that leaves the
    folder, is not in its plain form or holds a mark that the hash is built with.
    """

    files: Mapping[str, File]
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no file")
        digest = hashlib.sha256()
        for path, file in sorted(self.files.items()):
            _require_plain(path)
            digest.update(f"{path}\0{file.size}\0{file.sha256}\n".encode())
        object.__setattr__(self, "sha256", digest.hexdigest())

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> Self:
        """The tree of files given by their contents."""
        return cls({path: File.of(data) for path, data in contents.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def difference(self, new: Tree) -> list[str]:
        """One ``path (changed | added | removed)`` for each file that is another in ``new``."""
        lines = []
        for path in sorted({*self.files, *new.files}):
            old_file, new_file = self.files.get(path), new.files.get(path)
            if old_file != new_file:
                word = "added" if old_file is None else "removed" if new_file is None else ""
                lines.append(f"{path} ({word or 'changed'})")
        return lines


@dataclass(frozen=True)
class Pin:
    """One revision of a fetched model: what consent is given to, and what tb.lock records.

    ``revision`` has 40 lower-case hex digits; ``owner`` is who publishes it, ``None`` where
    nobody is named.
    """

    revision: str
    owner: str | None
    tree: Tree

    def to_json(self) -> dict[str, Any]:
        """As in tb.lock."""
        return {
            "files": {
                path: {"sha256": file.sha256, "size": file.size}
                for path, file in sorted(self.tree.files.items())
            },
            "owner": self.owner,
            "revision": self.revision,
            "sha256": self.tree.sha256,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of ``to_json``. Raises ValueError naming the first wrong key."""
        entry = _object(value, "", {"files", "owner", "revision", "sha256"})
        files = {}
        for path, facts in _object(entry["files"], "files").items():
            where = f"files.{path}"
            one = _object(facts, where, {"sha256", "size"})
            if type(one["size"]) is not int or one["size"] < 0:
                raise ValueError(f"{where}.size must be a number of bytes")
            files[path] = File(one["size"], _hex(one["sha256"], f"{where}.sha256", _SHA256))
        if not isinstance(entry["owner"], str | None):
            raise ValueError("owner must be a name or null")
        tree = Tree(files)
        if entry["sha256"] != tree.sha256:
            raise ValueError(f"sha256 does not fit the files, whose hash is {tree.sha256}")
        return cls(_hex(entry["revision"], "revision", _REVISION), entry["owner"], tree)


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a sha256 as it is written here."""
    return bool(_SHA256.fullmatch(text))


def is_revision(text: str) -> bool:
    """Whether ``text`` is a whole revision: 40 lower-case hex digits."""
    return bool(_REVISION.fullmatch(text))


def listed_files(paths: Iterable[str], most: int = 6) -> str:
    """The first ``most`` paths and how many more there are."""
    names = sorted(paths)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _require_plain(path: str) -> None:
    parts = path.split("/")
    if _MARKS.search(path) or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{path!r} is no plain path of a file")
    path.encode()  # half of a surrogate pair is a ValueError too


def _object(value: Any, where: str, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} must be an object")
    if keys is not None and set(value) != keys:
        raise ValueError(f"{where or 'it'} must have the keys {', '.join(sorted(keys))}")
    return value


def _hex(value: Any, where: str, form: re.Pattern[str]) -> str:
    if not (isinstance(value, str) and form.fullmatch(value)):
        digits = 64 if form is _SHA256 else 40
        raise ValueError(f"{where} must be {digits} lower-case hex digits")
    return value
