"""Models that ended a worker: noted where the run is controlled, read by every worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Lost:
    """One small file a model in a folder that the processes of a run share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, index: int, why: str) -> None:
        """The model with this number may not run any more."""
        self._file(index).write_text(why, encoding="utf-8")

    def why(self, index: int) -> str | None:
        """Why the model with this number may not run; ``None`` where it may."""
        try:
            return self._file(index).read_text(encoding="utf-8")
        except OSError:
            return None

    def crash_file(self, worker: str) -> Path:
        """Where Python prints the stack of a worker that crashes."""
        return self.folder / f"{worker}.stack"

    def _file(self, index: int) -> Path:
        return self.folder / f"{index}.lost"
