"""What the tests of checks share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def weights():
    torch.manual_seed(0)
