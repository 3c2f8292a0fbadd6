"""Limits that the system sets to a model in a worker: memory, and the size of a file."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST_FILE = 8 * 2**30
_GIB = 2**30
_SPARED = 0.1  # of what is free, for everybody else
# What a container may have and has, in groups of the newer and of the older kind.
_GROUP = "/sys/fs/cgroup"
_GROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_NO_MEMORY = re.compile(r"allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)


@dataclass
class Limits:
    """In force between ``set`` and ``lift``: by the name that ``resource`` has for one, how many
    bytes, as they are when it is set, or ``None`` for no limit. A lower one, which the process was
    started with (``ulimit``), stays.
    """

    limits: dict[str, Callable[[], int | None]] = field(default_factory=dict)
    _most: dict[str, int] = field(default_factory=dict)
    _before: dict[str, tuple[int, int]] = field(default_factory=dict)

    def set(self) -> None:
        """From now on no more can be taken."""
        if not self.limits or self._before:
            return
        import resource

        for name, bytes_ in self.limits.items():
            number, most = getattr(resource, name), bytes_()
            soft, hard = before = resource.getrlimit(number)
            if most is not None and (soft == resource.RLIM_INFINITY or soft > most):
                resource.setrlimit(number, (most, hard))
                self._most[name], self._before[name] = most, before

    def lift(self) -> None:
        """There is no limit any more: what is said of a model needs memory, too."""
        if not self._before:
            return
        import resource

        for name, before in self._before.items():
            with contextlib.suppress(OSError, ValueError):  # a model lowered the hard one
                resource.setrlimit(getattr(resource, name), before)
        self._before.clear()

    def explain(self, error: BaseException) -> str | None:
        """The words for an error that a limit is behind. What the model still holds through the
        frames of such an error is let go."""
        chain = list(_chain(error)) if self._most else []
        full = any(each.errno == errno.EFBIG for each in chain if isinstance(each, OSError))
        name = "RLIMIT_FSIZE" if full else "RLIMIT_DATA" if any(map(_wants, chain)) else ""
        if name not in self._most:
            return None
        for each in chain:
            traceback.clear_frames(each.__traceback__)
        size = f"{self._most[name] / _GIB:.3g} GiB"
        if full:
            return f"a file may have {size} in a worker (RLIMIT_FSIZE; ulimit -f allows less)"
        return f"this worker might take {size}, what was free (RLIMIT_DATA; ulimit -d allows less)"


def of_a_worker() -> Limits:
    """Nine tenths of the memory that is free, and files of 8 GiB, where the system knows limits.
    Room that a process only reserves, or shares with others, does not count."""
    try:
        import resource
    except ImportError:
        return Limits()
    known = {"RLIMIT_FSIZE": lambda: LARGEST_FILE, "RLIMIT_DATA": memory}
    return Limits({name: most for name, most in known.items() if hasattr(resource, name)})


def memory() -> int | None:
    """How many bytes this process may hold in all, so that everybody else can go on."""
    free, pages = free_memory(), _text("/proc/self/statm").split()[5:6]
    if free is None or not pages:
        return None
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") + int(free * (1 - _SPARED))


def free_memory() -> int | None:
    """Free bytes of the machine, or of the container where that has less."""
    about = _text("/proc/meminfo")
    kib = _number("MemAvailable:", about)
    found = [] if kib is None else [(kib + (_number("SwapFree:", about) or 0)) * 1024]
    for most, now in _GROUPS:
        text = _text(f"{_GROUP}/{most}").strip()
        if text.isdigit():  # else it says that there is no limit
            folder = Path(most).parent
            kept = _number("inactive_file", _text(f"{_GROUP}/{folder}/memory.stat")) or 0
            found.append(max(int(text) - int(_text(f"{_GROUP}/{now}") or 0) + kept, 0))
    return min(found, default=None)


def _number(name: str, text: str) -> int | None:
    """The number that follows ``name`` at the beginning of a line."""
    _, there, rest = f"\n{text}".partition(f"\n{name}")
    return int(rest.split(None, 1)[0]) if there else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - often read
            return file.read()
    except OSError:
        return ""


def _wants(error: BaseException) -> bool:
    """Whether there was no memory for something."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_NO_MEMORY.search(text_of(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came from."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__
