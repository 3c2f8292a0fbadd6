"""How fast a run goes, and what the machine says of itself."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.optional import find
from pytest_transformer_validate.subject.guard import guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.training.steps import Stepper
    from pytest_transformer_validate.training.window import StepNumbers

EVERY = 10.0  # seconds between two looks at the machine
MEGABYTE = 2**20
# Dense 16-bit matrix products a second, from NVIDIA's data sheets, by a part of the GPU's name.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
}


class Meter:
    """Numbers about speed for each reading of steps.

    ``train/tokens_per_second`` counts targets; ``train/mfu`` is the part of the GPU's peak that
    the model's own arithmetic takes (three times a forward's, as torch's counter finds it), where
    the peak is known and the run computes in 16 bits.
    """

    def __init__(self, stepper: Stepper, device: torch.device, *, half: bool) -> None:
        self._stepper = stepper
        self._peak = _peak(device) if half else None
        self._machine = Machine(device)
        self._flops_a_token: float | None = None
        self._since = time.perf_counter()

    def restart(self) -> None:
        """What comes next is not compared with what was before: an evaluation, say."""
        self._since = time.perf_counter()

    def read(
        self, numbers: Sequence[StepNumbers], batches: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Of the steps that were read; ``batches`` are some of theirs."""
        now = time.perf_counter()
        speed = sum(n.tokens for n in numbers) / max(now - self._since, 1e-9)
        self._since = now
        found = {"train/tokens_per_second": speed, **self._machine.read()}
        if self._peak is not None:
            if self._flops_a_token is None:
                self._flops_a_token = self._count(batches)
            found["train/mfu"] = speed * self._flops_a_token / self._peak
        return found

    def _count(self, batches: Sequence[Mapping[str, Any]]) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        with self._stepper.plain() as model, guard(model), torch.no_grad(), counter:
            self._stepper(batches[0])
        self.restart()
        return 3 * counter.get_total_flops() / max(self._stepper.count(batches[0]), 1)


class Machine:
    """Memory of this process, and of the GPU its memory, load and temperature, at most every
    ``EVERY`` seconds; nothing of a GPU that cannot be asked."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._due = 0.0
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._connect()

    def read(self) -> dict[str, float]:
        """``system/...``; empty where it was read a moment ago."""
        now = time.monotonic()
        if now < self._due:
            return {}
        self._due = now + EVERY
        return {**_process(), **self._gpu()}

    def _connect(self) -> None:
        nvml = find("pynvml")
        if nvml is None:
            return
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(self._device).uuid
            self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._nvml = nvml

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        found = {"system/gpu_memory_mb": torch.cuda.memory_allocated(self._device) / MEGABYTE}
        nvml = self._nvml
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                load = nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
                found["system/gpu_utilization"] = float(load)
                kind = nvml.NVML_TEMPERATURE_GPU
                heat = nvml.nvmlDeviceGetTemperature(self._handle, kind)
                found["system/gpu_temperature"] = float(heat)
        return found


def _process() -> dict[str, float]:
    """The largest memory that this process has held; nothing on Windows."""
    if sys.platform == "win32":
        return {}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"system/peak_memory_mb": peak / MEGABYTE}


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
