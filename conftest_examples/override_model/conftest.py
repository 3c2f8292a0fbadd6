"""Validate the model as it is served, not as it is built: here with int8 steps in its weights.

The fixture takes the place of the model for the checks and for every test of your own.
"""

import pytest
import torch


@pytest.fixture
def tb_model(tb_model):
    """The model whose linear weights have gone through 8 bits, a scale for each output."""
    with torch.no_grad():
        for module in tb_model.modules():
            if isinstance(module, torch.nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    return tb_model
