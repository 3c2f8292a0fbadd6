"""A model that is larger than memory is refused before it is built."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from pytest_transformer_validate import validate
from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources import size

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024
BUILT: list[torch.device] = []


def build(rows: int) -> nn.Module:
    model = nn.Sequential(nn.Embedding(rows, KIB), nn.Linear(KIB, rows, bias=False))
    model[1].weight = model[0].weight
    BUILT.append(model[0].weight.device)
    return model


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    BUILT.clear()
    monkeypatch.setattr(size, "free_memory", lambda: 64 * KIB * KIB)


def test_it_is_named_with_what_it_takes() -> None:
    config = {"vocab_size": 20 * KIB, "width": KIB, "inner": {"layers": 3}, "ok": True}
    with pytest.raises(SourceError) as raised:
        size.refuse_too_large(lambda: build(20 * KIB), config, "model.py", "config.json")
    assert str(raised.value) == (
        "model.py: its parameters and buffers take 0.0781 GiB, and 0.0625 GiB of memory are free\n"
        "  the largest numbers in config.json: vocab_size 20480, width 1024, inner.layers 3"
    )
    assert [device.type for device in BUILT] == ["meta"]


@pytest.mark.parametrize("rows", [15 * KIB, 16 * KIB, 17 * KIB])
def test_only_what_might_be_too_large_is_looked_at(rows: int) -> None:
    config = {"vocab_size": rows}
    if rows == 17 * KIB:
        with pytest.raises(SourceError):
            size.refuse_too_large(lambda: build(rows), config, "", "")
    else:
        size.refuse_too_large(lambda: build(rows), config, "", "")
        assert BUILT == []


@pytest.mark.parametrize("config", [{"seed": 10**4000}, {"created": 1_700_000_000, "n": 8}, {}])
def test_numbers_that_are_no_sizes_do_no_harm(config: dict[str, int]) -> None:
    size.refuse_too_large(lambda: build(8), config, "", "")


def test_code_that_does_not_bear_it_is_left_to_be_built() -> None:
    def reads() -> nn.Module:
        torch.zeros(1).item()
        raise AssertionError

    size.refuse_too_large(reads, {"n": 10**9}, "", "")


def test_a_model_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (record,) = validate(tmp_path, checks="load")
    assert "class GPT2LMHeadModel: its parameters and buffers take 3." in record.message
    assert "vocab_size 1000000" in record.message
