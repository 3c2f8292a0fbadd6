"""Runs under torchrun: what every rank got is written to the folder that is given."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from pytest_transformer_validate.errors import TrainingError
from pytest_transformer_validate.training import CharacterTokenizer, Trainer, TrainingConfig
from tests.training.models import VOCABULARY, rows, tiny_lm

TOKENIZER = CharacterTokenizer("ab", VOCABULARY)
# Texts: 9 in batches of 4, so that in the last one a rank has none; 7, so that one has fewer.
SCENARIOS: dict[str, dict[str, Any]] = {
    "one_rank_has_none": {"texts": 9},
    "one_rank_has_fewer": {"texts": 7, "gradient_accumulation_steps": 2},
    "half_precision": {"texts": 9, "precision": "bf16-mixed"},
}


def trained(folder: Path, name: str, batch_size: int) -> dict[str, Any]:
    """Weights and losses of a scenario."""
    given = dict(SCENARIOS[name])
    texts = rows(given.pop("texts"))
    settings = {"precision": "32-true", "epochs": 2, "learning_rate": 1e-2, "console": False}
    settings |= {"run_name": name, "checkpoint_dir": str(folder / "checkpoints")}
    settings |= {"gradient_clip_norm": 0.5, "batch_size": batch_size, **given}
    model = tiny_lm()
    trainer = Trainer(model, None, TrainingConfig(**settings), None, TOKENIZER)
    result = trainer.train(texts, rows(5, seed=1))
    del result["metrics_summary"], result["training_time"]
    return {"weights": model.state_dict(), "result": result}


def stopped(folder: Path) -> str:
    """What is said where the loss of one rank is no number."""
    model = tiny_lm()
    bad = os.environ["RANK"] == "1"

    def spoil(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if bad and model.training else output

    model.mix.register_forward_hook(spoil)
    settings = {"precision": "32-true", "console": False, "batch_size": 2, "run_name": "bad"}
    config = TrainingConfig(**settings, checkpoint_dir=str(folder / "checkpoints"))
    try:
        Trainer(model, None, config, None, TOKENIZER).train(rows(8))
    except TrainingError as error:
        return str(error)
    return "went on"


def repeats(folder: Path) -> list[str]:
    """Warnings about a loader that gives every rank the same."""
    loader = torch.utils.data.DataLoader([], batch_size=2)
    config = TrainingConfig(checkpoint_dir=None, console=False, devices=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            Trainer(tiny_lm(), None, config).train(loader)
        except ValueError:
            return [str(w.message) for w in caught]
    return []


def main() -> None:
    folder = Path(sys.argv[1])
    found = {name: trained(folder, name, batch_size=2) for name in SCENARIOS}
    found["stopped"] = stopped(folder)
    found["repeats"] = repeats(folder)
    torch.save(found, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
