"""The functions of tier 2 under the name of their old module; see ``test_functions``."""

from pytest_transformer_validate.test_functions import (
    run_all_tier2_tests,
    test_attention_patterns,
    test_attribution_analysis,
    test_robustness,
)

__all__ = [
    "run_all_tier2_tests",
    "test_attention_patterns",
    "test_attribution_analysis",
    "test_robustness",
]
