"""Each check has its reason to be there: a mistake that no other check of its tier finds."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence import table
from pytest_transformer_validate.evidence.mutants import MUTANTS

# Checks that report and never judge without something to compare with.
REPORTS = {
    1: {"inference_speed"},
    2: {
        "quantisation_effect",
        "attention_patterns",
        "token_perturbation",
        "adversarial_tokens",
        "logit_lens",
        "compile_equivalence",
        "aot_equivalence",
    },
}
ALONE = {
    "load": "tied_before_it_exists",
    "output_kind": "blind_relu_on_the_logits",
    "parameter_initialization": "blind_seed_set_in_every_block",
    "shape_robustness": "squeeze_drops_length_of_one",
    "output_stability": "blind_nan_after_left_padding",
    "determinism": "layer_left_out_rarely",
    "statelessness": "reported_dynamic_ntk_base_stays_after_long_text",
    "dropout": "blind_first_layer_without_dropout",
    "gradient_flow": "blind_keys_without_gradient",
    "causality": "given_target_mask_read_by_its_last_row",
    "batch_independence": "trace_of_batch_mean",
    "attention_structure": "softmax_over_heads_of_decoder",
    "layer_structure": "reported_no_residual_around_cross_attention",
    "padding": "blind_padding_mask_as_numbers",
    "mask_effect": "blind_only_bool_masks_heard",
    "kv_cache": "blind_window_cache_one_short",
    "loss_alignment": "blind_loss_divided_by_all_labels",
    "memory_footprint": "blind_every_row_by_every_index",
    "context_use": "blind_context_of_sixteen_left_in",
    "bidirectionality": "one_layer_alone",
    "encoder_use": "reported_source_mask_made_like_target_mask",
    "position_sensitivity": "blind_interleaved_angles_for_split_halves",
    "prefix_consistency": "reported_logn_scale_of_whole_text",
    "batch_size_invariance": "image_batch_scaled",
    "weight_tying": "blind_head_copied_from_the_embedding",
    "round_trip": "blind_first_state_not_in_the_checkpoint",
    "registered_tensors": "mask_is_an_attribute",
    "precision": "reported_mask_minimum_of_float32_cast_down",
    "vocabulary_bounds": "blind_ignored_labels_taken_as_tokens",
    "length_limit": "blind_last_position_for_all_that_follow",
    "backend_equivalence": "by_hand_without_the_scale",
    "checkpointing_equivalence": "source_mask_not_checkpointed",
    "generate_equivalence": "cached_steps_at_position_zero",
    "export_equivalence": "activation_approximated_when_compiled",
    "reference": "pairs_from_two_halves",
    "attention_rows": "weights_divided_after_softmax",
    "attention_mask": "causal_mask_of_minus_forty",
    "attention_reach": "mean_beside_the_window",
    "attention_heads": "scores_averaged_over_heads",
    "attention_scale": "scale_forgotten_by_hand",
    "attribution": "residual_detached",
    "embedding_smoothness": "noise_seeded_by_the_row",
    "layer_effect": "average_with_its_weights_exchanged",
    "text_invariance": "words_not_lowered",
}


TIER = {check.name: check.tier for check in all_checks() if check.tier < 3}


def test_every_check_is_listed() -> None:
    assert set(TIER) == {*ALONE, *REPORTS[1], *REPORTS[2]}


@pytest.mark.parametrize("name", ALONE)
def test_only_this_check_finds_it(name: str) -> None:
    mutant = MUTANTS[ALONE[name]]
    records = table.judge(
        mutant.name,
        mutant.build,
        mutant.healthy.config,
        table.of_tier(TIER[name]),
        reference=mutant.healthy if name == "reference" else None,
        tokenizer=mutant.tokenizer,
    )
    assert {r.check for r in records if r.status in {"failed", "broken"}} == {name}
