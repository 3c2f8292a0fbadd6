"""Where a model's code runs: what it changes outside of itself stays in here."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Self

from pytest_transformer_validate.containment import process
from pytest_transformer_validate.containment.deadline import Deadline
from pytest_transformer_validate.containment.exits import Exits
from pytest_transformer_validate.containment.functions import Change, Functions
from pytest_transformer_validate.containment.limits import Limits
from pytest_transformer_validate.containment.stops import Interrupts
from pytest_transformer_validate.containment.streams import kept_open
from pytest_transformer_validate.containment.torchstate import OwnFlags
from pytest_transformer_validate.containment.torchstate import kept as torch_kept


class House:
    """What the rooms of one run share: one process."""

    def __init__(self) -> None:
        self.exits = Exits()
        self.interrupts = Interrupts()
        self.deadline = Deadline()
        self.limits = Limits()
        self._open = False

    @functools.cached_property
    def functions(self) -> Functions:
        """What functions were before any model ran."""
        return Functions()

    @property
    def entered(self) -> bool:
        """Whether code of a model has run in this process."""
        return self._open

    def open(self) -> None:
        """Take the ways out of the process; done once."""
        if not self._open:
            self._open = True
            self.exits.install()
            self.interrupts.listen()

    def close(self) -> None:
        """Give them back."""
        self.interrupts.stop_listening()
        if self._open:
            self._open = False
            self.exits.uninstall()


class Room:
    """The room of one model: a context manager to be entered, also nested, while its code runs.

    What the model left of its own (variables of the environment, the current folder, flags of
    torch, layers that it replaced) is in force inside and nowhere else. All other changes to the
    process are undone when the room is left.

    ``begins`` and ``ends`` say whether other code runs before it is entered and after it is left.
    Between two checks of one model not all functions are looked at (see ``Functions``): what is
    replaced there is found at the latest when the model's last check ends.
    """

    begins = ends = True

    def __init__(self, house: House) -> None:
        self.house = house
        self._depth = 0
        self._own = process.Own()
        self._flags: OwnFlags | None = None
        self._layers: list[Change] = []
        self._far_layers: list[Change] = []
        self._modules: process.Modules | None = None
        self._held = contextlib.ExitStack()
        self._looked = False
        self._replaced: list[str] = []

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1:
            self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.house.exits.end_if_child()
        self._depth -= 1
        if self._depth == 0:
            self._leave()

    def objections(self) -> list[str]:
        """What was found since the last call that no verdict may rest on, one text each.

        To be asked at the end, right before the room is left.
        """
        self.house.limits.lift()
        if not self._looked:
            self.look_around(failed=False)
            self.rest()
        found = [
            f"the model replaced {name}, which verdicts are made with (put back)"
            for name in self._replaced
        ]
        found += [f"the model {attempt}" for attempt in self.house.exits.attempts]
        found += [late for late in (self.house.deadline.passed(),) if late is not None]
        self._replaced.clear()
        self.house.exits.attempts.clear()
        return found

    def look_around(self, *, failed: bool = True) -> None:
        """Put functions back that verdicts are made with, before one is made, and those of
        Python's library, which make texts: for good."""
        self._put_judges_back(failed=failed)
        for change in self._layers:
            if change.of_library:
                change.put(change.before)
        self._layers = [change for change in self._layers if not change.of_library]
        self._far_layers = [change for change in self._far_layers if not change.of_library]

    def rest(self) -> None:
        """Nothing of the model's runs any more: there is no need to look again."""
        self._looked = True

    def _enter(self) -> None:
        self.house.open()
        self.house.exits.running += 1
        self._looked = False
        if self._modules is None or not self._modules.unwritten():
            self._modules = process.Modules()
        self._modules.enter()
        self._held.enter_context(process.kept())
        self._held.enter_context(kept_open())
        self._own.enter()
        if _torch_is_here():
            self._held.enter_context(torch_kept())
            self._flags = self._flags or OwnFlags()
            self._flags.enter()
            self.house.functions.near.note()
            if self.begins:
                self.house.functions.far.note()
            for change in self._layers:
                change.put(change.after)
        self.house.limits.set()

    def _leave(self) -> None:
        self.house.limits.lift()
        try:
            if not self._looked:
                self._put_judges_back(failed=False)
            for change in self._layers:
                change.put(change.before)
            if self._flags is not None:
                self._flags.leave()
            self._own.leave()
        finally:
            self._held.close()
            if self._modules is not None:
                self._modules.leave()
                if self.ends:  # modules of the model hold what it made
                    self._modules = None
            self.house.exits.running -= 1

    def _put_judges_back(self, *, failed: bool) -> None:
        """Put back what verdicts are made with; note what else is replaced."""
        if self._modules is not None:
            self._modules.give_back()
        if self._flags is None:
            return
        judged, layers = self.house.functions.near.changes()
        if failed or self.begins or self.ends:
            far_judged, self._far_layers = self.house.functions.far.changes()
            judged += far_judged
        self._layers = layers + self._far_layers
        for change in judged:
            change.put(change.before)
            self._replaced.append(str(change))


def _torch_is_here() -> bool:
    try:
        importlib.import_module("torch")
    except ImportError:
        return False
    return True
