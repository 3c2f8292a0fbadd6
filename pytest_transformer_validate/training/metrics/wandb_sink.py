"""Runs sent to Weights & Biases, which may be slow, dead or hanging: training goes on.

Everything that talks to W&B happens in a thread of its own; the run only leaves numbers there.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import sys
import threading
import time
import warnings
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.optional import expect, require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_transformer_validate.training.config import TrainingConfig

DEADLINE = 10.0  # seconds for a run to begin, and to end
HOST = "https://api.wandb.ai"
_MODES = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


class TrackingWarning(UserWarning):
    """Somebody is not told the numbers of a run; training goes on."""


def choose_mode(environment: Mapping[str, str] = os.environ) -> str:
    """``online``, ``offline`` or ``disabled``: what WANDB_MODE says, else online with a key
    (WANDB_API_KEY, or that of ``wandb login``), else offline, with a warning."""
    named = environment.get("WANDB_MODE", "").strip().lower()
    if environment.get("WANDB_DISABLED", "").lower() in {"true", "1"}:
        return "disabled"
    if named in _MODES:
        return _MODES[named]
    if environment.get("WANDB_API_KEY") or _logged_in(environment):
        return "online"
    warnings.warn(
        "no key for W&B (WANDB_API_KEY, or wandb login): the run is kept in the folder wandb; "
        "send it later with wandb sync",
        TrackingWarning,
        stacklevel=3,
    )
    return "offline"


class WandbSink:
    """One run of W&B. Raises MissingDependency without wandb; nothing else."""

    def __init__(
        self, config: TrainingConfig, run_name: str, folder: Path, *, deadline: float = DEADLINE
    ) -> None:
        expect("wandb", extra="track")
        self.mode = choose_mode()
        self._deadline = deadline
        self._step = 0
        self._queue: Queue[tuple[dict[str, Any], int] | None] = Queue()
        self._begun = threading.Event()
        self._gone: str | None = None
        self._since = time.monotonic()
        about = {
            "project": config.wandb_project,
            "entity": config.wandb_entity,
            "name": run_name,
            "notes": config.notes or None,
            "config": config.to_dict(),
            "dir": str(folder),
        }
        self._thread = threading.Thread(target=self._work, args=(about,), daemon=True)
        if self.mode != "disabled":
            folder.mkdir(parents=True, exist_ok=True)
            self._thread.start()

    def log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        self._step = max(self._step, step or 0)
        self._put(dict(values))

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        self._put({name: value for name, value in row.items() if value is not None})

    def close(self, status: str) -> None:
        """Wait for what is on its way, for no longer than the deadline."""
        if self.mode == "disabled" or self._gone is not None:
            return
        self._queue.put(None)
        self._thread.join(self._deadline)
        if self._thread.is_alive():
            self._leave(f"did not end within {self._deadline:g} s; what it has is in its folder")
        elif self._gone is not None:
            self._leave(self._gone)

    def _put(self, values: dict[str, Any]) -> None:
        if self.mode == "disabled":
            return
        late = not self._begun.is_set() and time.monotonic() - self._since > self._deadline
        if late and self._gone is None:
            self._gone = f"did not begin within {self._deadline:g} s"
        if self._gone is not None:
            self._leave(self._gone)
        else:
            self._queue.put((values, self._step))

    def _leave(self, why: str) -> None:
        """Give W&B up for the rest of the run."""
        self.mode = "disabled"
        with contextlib.suppress(Empty):
            while True:
                self._queue.get_nowait()
        warnings.warn(f"W&B: the run {why}; training goes on", TrackingWarning, stacklevel=4)

    def _work(self, about: dict[str, Any]) -> None:
        """The thread: begin, log, end."""
        try:
            wandb = require("wandb", extra="track")
            settings = wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self._deadline,
                finish_timeout=self._deadline,
            )
            run = wandb.init(mode=self.mode, settings=settings, **about)
            self._begun.set()
            while (item := self._queue.get()) is not None:
                run.log(item[0], step=item[1])
            run.finish()
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, training goes on
            self._gone = f"is not tracked: {error_line(error)}"


class ActiveRun:
    """The run of W&B that is open in this process, if there is one."""

    def log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        self._log(values, step)

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        self._log({name: value for name, value in row.items() if value is not None}, None)

    def close(self, status: str) -> None:
        """It belongs to whoever opened it."""

    def _log(self, values: Mapping[str, float], step: int | None) -> None:
        wandb = sys.modules.get("wandb")
        if wandb is None or wandb.run is None:
            return
        try:
            wandb.run.log(dict(values), step=step)
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, training goes on
            warnings.warn(f"W&B: {error_line(error)}", TrackingWarning, stacklevel=4)


def _logged_in(environment: Mapping[str, str]) -> bool:
    """Whether ``wandb login`` left a key for the server."""
    host = urlparse(environment.get("WANDB_BASE_URL", HOST)).hostname or ""
    try:
        found = netrc.netrc(environment.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None
