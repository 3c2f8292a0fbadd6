"""A vision model: the task stands in config.json, the batch of images comes from its sizes."""

import pytest


@pytest.fixture
def images(tb_batch):
    """Images of the run, for tests of your own: (B, channels, height, width)."""
    return tb_batch["pixel_values"]
