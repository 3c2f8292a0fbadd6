"""Memory and the size of files are limited while a model's code runs, and not a moment longer."""

from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_transformer_validate.containment import limits
from pytest_transformer_validate.containment.limits import Limits
from pytest_transformer_validate.containment.room import House, Room

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEBI = 2**20
SMALL = Limits({"RLIMIT_DATA": lambda: 2**50, "RLIMIT_FSIZE": lambda: 2**50})


@pytest.mark.skipif(limits.memory() is None, reason="the system does not tell what is free")
@pytest.mark.parametrize("take", [bytearray, torch.ByteTensor])
def test_memory(take: Callable[[int], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: 64 * MEBI)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    house = House()
    house.limits = limits.of_a_worker()
    with Room(house), pytest.raises((MemoryError, RuntimeError)) as raised:
        take(256 * MEBI)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    words = house.limits.explain(raised.value)
    assert words is not None
    assert "GiB, what was free (RLIMIT_DATA; ulimit -d" in words
    take(256 * MEBI)
    house.close()


def test_a_file(tmp_path: Path) -> None:
    given = Limits({"RLIMIT_FSIZE": lambda: MEBI})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):
        given.set()
        given.set()
        with (
            (tmp_path / "big").open("wb") as file,
            pytest.raises(OSError, match="too large") as raised,
        ):
            file.truncate(2 * MEBI)
        given.lift()
        wrapped = RuntimeError("not saved")
        wrapped.__cause__ = raised.value
        assert "0.000977 GiB" in str(given.explain(wrapped))
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == before


def test_what_a_model_holds_is_let_go() -> None:
    def fills() -> None:
        much = torch.zeros(1)
        raise MemoryError(much.shape)

    with pytest.raises(MemoryError) as raised:
        fills()
    frame = raised.traceback[-1].frame.raw
    assert "much" in frame.f_locals
    SMALL.set()
    SMALL.lift()
    assert SMALL.explain(raised.value) is not None
    assert "much" not in frame.f_locals


@pytest.mark.parametrize(
    "error", [ValueError("allocate memory"), OSError(errno.ENOSPC, "full"), RuntimeError("else")]
)
def test_other_errors_have_other_reasons(error: BaseException) -> None:
    SMALL.set()
    SMALL.lift()
    assert SMALL.explain(error) is None
    assert Limits().explain(MemoryError()) is None


def test_a_container_has_less_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_GROUP", str(tmp_path))
    machine = limits.free_memory()
    assert machine is not None
    (tmp_path / "memory.current").write_text(f"{5 * MEBI}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {2 * MEBI}\n")
    for most, free in (("max", None), (str(9 * MEBI), 6 * MEBI), (str(MEBI), 0)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert limits.free_memory() == free or free is None
