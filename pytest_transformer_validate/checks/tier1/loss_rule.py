"""What a loss must be, and how the check of it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.losses import LossAlignment

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe

RULE = "the loss must be the mean cross entropy of outputs and the labels that belong to them"
WAY_OUT = 'meant so? declare it: "expect_fail" in config.json, or ini tb_expect_fail'


def fail(probe: Probe, what: str, likely: str) -> None:
    """Raise CheckFailed: what is wrong with the loss, where it comes from, the likely cause."""
    where = probe.losses.where()
    raise CheckFailed(
        f"{RULE}\n{what}\nthe loss comes from: {where}\nlikely: {likely}\n{WAY_OUT}",
        LossAlignment(),
        where=where,
    )
