"""The functions of tier 2 under the name of their old module; see ``test_functions``."""

from pytest_transformer_validate.test_functions import (
    test_attention_patterns,
)

__all__ = [
    "test_attention_patterns",
]
