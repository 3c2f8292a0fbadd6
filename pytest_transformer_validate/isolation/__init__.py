"""Fetched models in workers of pytest-xdist, and what becomes of a worker that a model ends."""
