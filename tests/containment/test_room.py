"""What a model leaves of its own is in force in its room; what else it does is undone, or told."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
import types
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from pytest_transformer_validate.containment.process import Modules
from pytest_transformer_validate.containment.room import House, Room
from pytest_transformer_validate.containment.stops import LeftProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def house() -> Iterator[House]:
    importlib.import_module("pytest_transformer_validate.runner")  # what verdicts are made with
    importlib.import_module("pytest_transformer_validate.probe.probe")
    house = House()
    yield house
    house.close()


def test_its_own_settings_come_back_with_it(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "outside")
    mine, other = Room(house), Room(house)
    with mine:
        os.environ["KEPT"] = "inside"
        os.environ["NEW"] = "1"
        os.chdir(tmp_path)
        torch.set_default_dtype(torch.float64)
        layer = nn.Linear.forward
        nn.Linear.forward = lambda _self, x: x  # type: ignore[assignment]
    for room in (other, None):
        with room or threading.Lock():
            assert os.environ["KEPT"] == "outside"
            assert "NEW" not in os.environ
            assert os.getcwd() != str(tmp_path)  # noqa: PTH109
            assert torch.get_default_dtype() == torch.float32
            assert nn.Linear.forward is layer
    with mine, mine:  # also nested
        assert (os.environ["KEPT"], os.environ["NEW"]) == ("inside", "1")
        assert os.getcwd() == str(tmp_path)  # noqa: PTH109
        assert torch.get_default_dtype() == torch.float64
        assert nn.Linear.forward is not layer
        assert mine.objections() == []
    assert nn.Linear.forward is layer


def test_a_room_that_is_left_keeps_no_module(house: House) -> None:
    room = Room(house)
    with room:
        assert any(isinstance(finder, Modules) for finder in sys.meta_path)
    assert not any(isinstance(value, Modules) for value in [*vars(room).values(), *sys.meta_path])


def test_modules_are_put_back_in_every_check_of_a_model(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(house)
    room.ends = False
    with room:
        assert room.objections() == []
    room.begins = False
    for _ in range(2):
        with room:
            del sys.modules["torch"]
            assert room.objections() == []
        assert sys.modules["torch"] is torch
    other = types.ModuleType("json")
    monkeypatch.setitem(sys.modules, "json", other)
    with room:
        del sys.modules["json"]
        assert room.objections() == []
    assert sys.modules["json"] is other


def test_what_changed_outside_is_not_the_models(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(house)
    with room:
        pass
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    monkeypatch.setenv("LATER", "1")
    with room:
        assert os.environ["LATER"] == "1"
        assert room.objections() == []
    assert torch.equal is not None
    assert torch.equal(1, 2)  # type: ignore[arg-type]


def test_functions_of_verdicts_are_put_back_and_named(house: House) -> None:
    real, code = torch.equal, House.open.__code__
    room = Room(house)
    with room:
        torch.equal = lambda *_: True  # type: ignore[assignment]
        House.open.__code__ = (lambda self: None).__code__
        del sys.modules["torch"]
        import torch as again

        assert again is torch
        found = room.objections()
    assert torch.equal is real
    assert House.open.__code__ is code
    assert sys.modules["torch"] is torch
    assert torch.__spec__ is not None
    assert torch.__spec__.origin is not None
    assert any("replaced torch.equal" in text for text in found)
    assert any("open" in text for text in found)
    with room:
        assert room.objections() == []


@pytest.mark.parametrize(
    "leave",
    [lambda: os._exit(0), lambda: os.execv("/bin/true", ["true"])],
    ids=["exit", "exec"],
)
def test_nobody_leaves(house: House, leave: Callable[[], None]) -> None:
    room = Room(house)
    with room:
        with pytest.raises(LeftProcess, match="to end the process"):
            leave()
        thread = threading.Thread(target=lambda: _quietly(leave))
        thread.start()
        thread.join()
        found = room.objections()
    assert len(found) == 2
    assert "test_room.py" in found[0]


def test_threads_and_handlers_of_atexit_belong_to_the_model(house: House) -> None:
    inside, outside = threading.Event(), threading.Event()
    with Room(house):
        thread = threading.Thread(target=inside.wait)
        thread.start()
        atexit.register(inside.set)
    assert thread.daemon
    atexit.unregister(inside.set)
    other = threading.Thread(target=outside.wait)
    other.start()
    assert not other.daemon
    inside.set()
    outside.set()


def test_only_a_signal_is_an_interruption(house: House) -> None:
    own = KeyboardInterrupt()
    assert house.interrupts.ends_run(own)  # nobody listens: it may be a person's
    house.interrupts.listen()
    assert not house.interrupts.ends_run(own)
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(signal.SIGINT)
    assert house.interrupts.ends_run(caught.value)
    house.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_the_signal_is_ignored_it_is_the_models(house: House) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not house.interrupts.ends_run(KeyboardInterrupt())
        house.interrupts.listen()
        assert not house.interrupts.ends_run(KeyboardInterrupt())
    finally:
        signal.signal(signal.SIGINT, before)


def test_closed_it_leaves_nothing(house: House) -> None:
    before = (os._exit, os.execv, threading.Thread.start, atexit.register)
    with Room(house):
        assert os._exit is not before[0]
    house.close()
    after = (os._exit, os.execv, threading.Thread.start, atexit.register)
    assert after[2:] == before[2:]


def _quietly(leave: Callable[[], None]) -> None:
    with pytest.raises(LeftProcess):
        leave()
