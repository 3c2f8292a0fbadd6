"""Two processes under torchrun are one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training import TrainingConfig
from pytest_transformer_validate.training.config import ConfigWarning
from pytest_transformer_validate.training.strategy import make_strategy
from tests.training import ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *launch, str(ROOT / "tests" / "training" / "ranks.py"), str(folder)],
            stdout=output,
            stderr=output,
            env=environment,
            cwd=folder,
        )
        try:
            process.wait(120)
        finally:
            process.terminate()  # torchrun ends its ranks
            process.wait()
    assert process.returncode == 0, log.read_text()
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return [*found, {"saved": saved}]


@pytest.mark.parametrize("name", ranks.SCENARIOS)
def test_weights_and_losses_are_those_of_one_process(both, tmp_path, name):
    alone = ranks.trained(tmp_path, name, batch_size=4)
    exact = name != "half_precision"
    for rank in both[:2]:
        for key, value in alone["weights"].items():
            torch.testing.assert_close(
                rank[name]["weights"][key],
                value,
                rtol=1e-5 if exact else 0.05,
                atol=1e-6 if exact else 5e-3,
                msg=lambda text, key=key: f"{key}: {text}",
            )
        for history in ("loss_history", "val_loss_history"):
            expected = alone["result"][history]
            assert rank[name]["result"][history] == pytest.approx(
                expected, rel=1e-5 if exact else 1e-2
            )


def test_ranks_are_equal_to_the_bit(both):
    for name in ranks.SCENARIOS:
        for key, value in both[0][name]["weights"].items():
            assert torch.equal(value, both[1][name]["weights"][key])
        assert both[0][name]["result"] == both[1][name]["result"]


def test_one_rank_saves(both):
    names = {Path(both[1][name]["result"]["checkpoint_path"]).name for name in ranks.SCENARIOS}
    assert names <= set(both[2]["saved"])
    assert not [name for name in both[2]["saved"] if name.endswith(".tmp")]
    pairs = {Path(name).stem for name in both[2]["saved"]}
    assert len(both[2]["saved"]) == 2 * len(pairs)


def test_a_bad_number_on_one_rank_stops_all(both):
    assert "first not finite: the output of mix" in both[1]["stopped"]
    for rank in both[:2]:
        assert "training stopped in optimizer step 1: the loss was nan" in rank["stopped"]
    assert "and in" in both[0]["stopped"]
    assert "and in" not in both[1]["stopped"]


def test_a_loader_that_repeats_itself_is_said(both):
    for rank in both[:2]:
        assert any("DistributedSampler" in line for line in rank["repeats"])
        assert any(
            "devices=3 has no effect: torchrun started 2" in line for line in rank["repeats"]
        )


class TestChoice:
    def test_several_devices_need_several_processes(self) -> None:
        with pytest.raises(ConfigError, match="torchrun --nproc-per-node=4 train.py"):
            make_strategy(TrainingConfig(strategy="ddp", devices=4))

    def test_a_notebook_is_one_process_and_says_so(self, monkeypatch) -> None:
        shell = types.SimpleNamespace(get_ipython=object)
        monkeypatch.setitem(sys.modules, "IPython", shell)
        with pytest.warns(ConfigWarning, match=r"torchrun --nproc-per-node=2 train.py"):
            strategy = make_strategy(TrainingConfig(strategy="ddp", devices=2))
        assert strategy.world == 1

    def test_a_person_may_insist(self, monkeypatch) -> None:
        shell = types.SimpleNamespace(get_ipython=object)
        monkeypatch.setitem(sys.modules, "IPython", shell)
        monkeypatch.setenv("ALLOW_NOTEBOOK_DDP", "1")
        with pytest.raises(ConfigError, match="2 devices are 2 processes"):
            make_strategy(TrainingConfig(strategy="ddp", devices=2))

    def test_one_process_without_torchrun_says_so(self, monkeypatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with pytest.warns(ConfigWarning, match=r"this one process.*torchrun --nproc-per-node=gpu"):
            assert make_strategy(TrainingConfig(strategy="ddp")).world == 1

    def test_fsdp_is_not_there_yet(self) -> None:
        with pytest.raises(ConfigError, match="take 'ddp'"):
            make_strategy(TrainingConfig(strategy="fsdp"))
