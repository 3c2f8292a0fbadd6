"""Runs in this process need what tests/plugin needs for them."""

from __future__ import annotations

from tests.plugin.conftest import own_registry, warm

__all__ = ["own_registry", "warm"]
