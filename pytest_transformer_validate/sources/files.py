"""Reading files that may be anything: a device without end, a pipe, 50 GB."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CODE = 10_000_000


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a file. Raises OSError also for what is no regular file, and for more than
    ``most`` bytes, which are not read."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if about.st_size > most:
        raise OSError(errno.EFBIG, f"it has {about.st_size} bytes; at most {most} are read")
    return path.read_bytes()
