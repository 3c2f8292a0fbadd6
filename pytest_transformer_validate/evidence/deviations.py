"""Architectures of transformers that break what their task promises, and why.

Each was traced to a line of that code; none of it steers a check. A declaration that no longer
fails is stale and fails itself.
"""

DEVIATIONS: dict[str, dict[str, str]] = {}
