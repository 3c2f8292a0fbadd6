"""Speed, the part of a GPU's peak, and what a machine says of itself."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_transformer_validate.subject.subject import Subject
from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.metrics import meter
from pytest_transformer_validate.training.metrics.meter import PEAKS, Machine, Meter
from pytest_transformer_validate.training.steps import Stepper
from pytest_transformer_validate.training.window import StepNumbers
from tests.real import needed
from tests.training.models import TinyLM, padded, rows, tiny_lm

if TYPE_CHECKING:
    from collections.abc import Mapping

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def step(tokens: float) -> StepNumbers:
    return StepNumbers(1, 1.0, tokens, 0.0, 1.0, 1e-3, 0.0)


def matmul_flops(batch: Mapping[str, torch.Tensor], model: TinyLM) -> int:
    """Two operations for every weight of every product that a position goes through."""
    positions = batch["input_ids"].numel()
    return 2 * positions * (model.mix.weight.numel() + model.head.weight.numel())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert meter._peak(GPU) == peak
    assert meter._peak(CPU) is None


def test_mfu_is_the_models_own_arithmetic_of_the_peak(monkeypatch):
    """Counted by hand: a forward, and twice as much for the backward."""
    now = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(now, 2.0))
    monkeypatch.setattr(meter, "_peak", lambda device: 1e6)
    model, batch = tiny_lm(), padded(rows(3))
    stepper = Stepper(Subject(model, None), TaskSpec("causal_lm"))
    measured = Meter(stepper, CPU, half=True)
    measured.restart()
    tokens = stepper.count(batch)
    found = measured.read([step(tokens)], [batch])
    assert found["train/tokens_per_second"] == tokens / 2.0
    assert found["train/mfu"] == pytest.approx(3 * matmul_flops(batch, model) / 2.0 / 1e6)


def test_there_is_no_mfu_where_the_peak_does_not_hold():
    stepper = Stepper(Subject(tiny_lm(), None), TaskSpec("causal_lm"))
    batch = padded(rows(2))
    for half in (True, False):  # a CPU has no peak in the table; float32 not that peak
        found = Meter(stepper, CPU, half=half).read([step(4)], [batch])
        assert "train/mfu" not in found


def test_peaks_are_in_the_order_in_which_names_are_looked_for():
    names = list(PEAKS)
    for at, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:at]), f"{name} is never found"


class TestMachine:
    def test_says_what_it_knows_and_not_too_often(self) -> None:
        machine = Machine(CPU)
        assert machine.read()["system/peak_memory_mb"] > 10
        assert machine.read() == {}

    def test_without_the_package_a_gpu_gives_its_memory_alone(self, monkeypatch) -> None:
        monkeypatch.setattr(meter, "find", lambda name: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 2**20)
        found = Machine(GPU).read()
        assert found["system/gpu_memory_mb"] == 3.0
        assert not {"system/gpu_utilization", "system/gpu_temperature"} & set(found)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a driver")
    def test_without_a_driver_the_package_gives_nothing(self, monkeypatch) -> None:
        needed("pynvml")
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        assert set(Machine(GPU).read()) == {"system/peak_memory_mb", "system/gpu_memory_mb"}

    def test_with_both_load_and_temperature_are_read_of_this_gpu(self, monkeypatch) -> None:
        """The calls and names are those of the package, which an own one stands in for: no
        machine of CI has a GPU."""
        asked: list[str] = []

        class Fault(Exception):
            pass

        def handle(uuid: str) -> str:
            asked.append(uuid)
            return "handle"

        library = types.SimpleNamespace(
            NVMLError=Fault,
            NVML_TEMPERATURE_GPU=0,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=handle,
            nvmlDeviceGetUtilizationRates=lambda h: types.SimpleNamespace(gpu=37),
            nvmlDeviceGetTemperature=lambda h, kind: 61,
        )
        monkeypatch.setattr(meter, "find", lambda name: library)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        about = types.SimpleNamespace(uuid="0-1-2")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
        found = Machine(GPU).read()
        assert (found["system/gpu_utilization"], found["system/gpu_temperature"]) == (37.0, 61.0)
        assert asked == ["GPU-0-1-2"]
        real = needed("pynvml")
        assert all(hasattr(real, name) for name in vars(library))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_real_gpu_says_its_load_and_temperature(self) -> None:
        found = Machine(GPU).read()
        assert 0 <= found["system/gpu_utilization"] <= 100
        assert 10 < found["system/gpu_temperature"] < 110
