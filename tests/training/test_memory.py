"""Activation checkpointing and compilation change what a step costs, not what it computes."""

from __future__ import annotations

import shutil
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training import Trainer, TrainingConfig
from pytest_transformer_validate.training.config import COMPILE_MODES
from pytest_transformer_validate.training.recompute import recomputing
from tests.training.models import VOCABULARY, padded, rows, tiny_lm

DATA = [padded(rows(3, seed=seed)) for seed in range(3)]
VAL = [padded(rows(2, seed=9))]


class Blocks(nn.Module):
    """A list of blocks with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.2)) for _ in range(2)
        )
        self.head = nn.Linear(8, VOCABULARY)

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + block(hidden)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = self.run(block, hidden)
        return self.head(hidden)


class Flag(Blocks):
    """The same with a flag of its own."""

    gradient_checkpointing = False

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return hidden + checkpoint(block, hidden, use_reentrant=False)
        return hidden + block(hidden)


class Method(Flag):
    """The same with a method like Hugging Face's."""

    asked: Any = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        self.asked = gradient_checkpointing_kwargs
        self.gradient_checkpointing = True


def trained(model: nn.Module, **given: Any) -> dict[str, Any]:
    settings = {"epochs": 2, "checkpoint_dir": None, "console": False, "precision": "32-true"}
    config = TrainingConfig(**{**settings, "learning_rate": 1e-2, **given})
    return Trainer(model, None, config).train(DATA, VAL)


@pytest.mark.parametrize("kind", [Blocks, Flag, Method])
def test_activation_checkpointing_gives_the_same_losses_and_weights(kind):
    found = []
    for asked in (False, True):
        torch.manual_seed(0)
        model = kind()
        ran: list[int] = []
        model.blocks[0][0].register_forward_hook(lambda *_, ran=ran: ran.append(1))
        result = trained(model, activation_checkpointing=asked)
        found.append((result["loss_history"], result["val_loss_history"], model, len(ran)))
    (losses, val, plain, once), (again, val_again, other, twice) = found
    assert losses == again
    assert val == val_again
    assert all(map(torch.equal, plain.parameters(), other.parameters()))
    assert twice == once + 2 * len(DATA)  # each training step ran the block once more


def test_checkpoints_are_turned_off_again():
    model = Method()
    with recomputing(model):
        assert model.gradient_checkpointing
        assert model.asked == {"use_reentrant": False}
    assert not model.gradient_checkpointing
    blocks = Blocks()
    with recomputing(blocks):
        pass
    assert "forward" not in vars(blocks.blocks[0])


def test_a_model_without_a_way_says_so():
    with pytest.raises(ConfigError, match="activation_checkpointing: the model cannot"):
        trained(tiny_lm(), activation_checkpointing=True)


@pytest.mark.skipif(
    sys.platform == "win32" or not shutil.which("g++"), reason="torch.compile needs a compiler"
)
@pytest.mark.slow
@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_a_compiled_model_gives_the_same_losses_and_checkpoints(mode, tmp_path):
    eager, compiled = tiny_lm(), tiny_lm()
    expected = trained(eager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its compiler
        found = trained(compiled, compile_mode=mode, checkpoint_dir=str(tmp_path))
    for name in ("loss_history", "val_loss_history"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    state = torch.load(found["checkpoint_path"], weights_only=True)
    assert state["model_state_dict"].keys() == eager.state_dict().keys()
