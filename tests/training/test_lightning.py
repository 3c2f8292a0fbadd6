"""Through PyTorch Lightning the same comes out as through the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_transformer_validate import training
from pytest_transformer_validate.training import (
    CharacterTokenizer,
    Trainer,
    TrainingConfig,
    TrainingCoordinator,
)
from tests.real import needed
from tests.training.models import VOCABULARY, rows, tiny_lm

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER = CharacterTokenizer("ab", VOCABULARY)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec."),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    needed("pytorch_lightning")


def coordinated(folder: Path, model: torch.nn.Module, **given: Any) -> dict[str, Any]:
    settings = {"max_epochs": 3, "batch_size": 3, "learning_rate": 1e-2, "val_split": 0.2}
    coordinator = TrainingCoordinator(folder, use_gpu=False)
    return coordinator.train(
        model, rows(11), tokenizer=TOKENIZER, run_name="test", **{**settings, **given}
    )


def test_it_equals_the_trainer(tmp_path):
    one, other = tiny_lm(), tiny_lm()
    settings = {"epochs": 3, "batch_size": 3, "learning_rate": 1e-2, "validation_split": 0.2}
    settings |= {"precision": "32-true", "console": False, "early_stopping_patience": None}
    config = TrainingConfig(**settings, checkpoint_dir=str(tmp_path / "own"))
    expected = Trainer(one, None, config, None, TOKENIZER).train(rows(11))
    found = coordinated(tmp_path, other)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for history in ("loss_history", "val_loss_history"):
        assert found[history] == pytest.approx(expected[history], rel=1e-5)
    assert set(expected) <= set(found)
    assert found["final_metrics"]["epoch"] == 2
    assert found["best_model_path"] == found["checkpoint_path"]


def test_checkpoints_are_the_trainers_and_a_run_goes_on_from_them(tmp_path):
    whole = tiny_lm()
    everything = coordinated(tmp_path / "whole", whole)
    first = sorted((tmp_path / "whole" / "checkpoints").glob("*epoch0001*.pt"))[0]
    again = tiny_lm(seed=5)
    rest = coordinated(tmp_path / "rest", again, resume_from_checkpoint=first)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    assert rest["loss_history"] == everything["loss_history"]


def test_a_data_module_of_ones_own(tmp_path):
    data = [{"input_ids": text} for text in rows(8)]
    module = training.SimpleDataModule(
        data, data[:2], 4, num_workers=0, tokenizer=TOKENIZER, use_dynamic_collator=True
    )
    coordinator = TrainingCoordinator(tmp_path, use_gpu=False, max_epochs=1, precision_str="32")
    result = coordinator.train(tiny_lm(), datamodule=module, learning_rate=1e-2)
    assert len(result["val_loss_history"]) == 1


def test_one_kind_of_data_is_needed(tmp_path):
    with pytest.raises(ValueError, match="one of the two"):
        TrainingCoordinator(tmp_path, use_gpu=False).train(tiny_lm())
