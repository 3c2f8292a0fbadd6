"""Tier 2: does it behave? Importing this registers the checks in the order they run in."""
