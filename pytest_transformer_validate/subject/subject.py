"""A loaded model that can be called in one way, whatever its signature."""

from __future__ import annotations

from typing import Any

import torch

from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.task import TaskSpec


class Subject:
    def __init__(
        self,
        model: torch.nn.Module,
        config: Any = None,
        *,
        tokenizer: Any = None,
        task: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.config = ModelConfig(config)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.model = model.to(self.device, dtype)
        self.seed = seed
        self.task = TaskSpec(task or "causal_lm", "declared" if task else "assumed")
        self.dtype = dtype or torch.float32
