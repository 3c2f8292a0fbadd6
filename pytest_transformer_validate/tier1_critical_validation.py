"""The functions of tier 1 under the name of their old module; see ``test_functions``."""

from pytest_transformer_validate.test_functions import (
    run_all_tier1_tests,
    test_gradient_flow,
    test_inference_speed,
    test_memory_footprint,
    test_output_stability,
    test_parameter_initialization,
    test_shape_robustness,
)

__all__ = [
    "run_all_tier1_tests",
    "test_gradient_flow",
    "test_inference_speed",
    "test_memory_footprint",
    "test_output_stability",
    "test_parameter_initialization",
    "test_shape_robustness",
]
