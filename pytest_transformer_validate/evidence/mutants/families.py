"""Families of mistakes: one kind of mistake each, whatever the model it is made in."""

from __future__ import annotations

FAMILIES: dict[str, str] = {
    # attention_structure
    "softmax_over_a_wrong_axis": "weights that do not sum to one over the keys",
    "heads_mixed_up": "heads, positions and features in one another's place",
    # batch_independence
    "rows_mixed_by_layout": "a view, a reshape or a layer that takes another axis for the batch",
    "computed_over_the_rows": "a sum, a softmax or statistics that run over the batch",
    "another_rows_data": "what belongs to one row is used for others",
    "chosen_among_all_rows": "tokens of all rows compete for a place",
    # batch_size_invariance
    "batch_size_in_the_arithmetic": "a number that is divided by how many rows there are",
    "another_path_for_one_row": "a shortcut for a batch of one that computes something else",
    # bidirectionality
    "encoder_sees_one_side": "a causal mask in an encoder, everywhere or in a part",
    "encoder_sees_itself_only": "an encoder's token that sees no other, everywhere or in a part",
    "outputs_of_other_places": "an encoder's outputs that belong to tokens beside their own",
    # causality
    "no_causal_mask": "the mask is missing, or not handed on",
    "causal_mask_off_by_one": "the diagonal is shifted by one",
    "causal_mask_the_wrong_way": "the other triangle, or both sides",
    "causal_mask_not_everywhere": "one head, layer, mode or length goes without the mask",
    "causal_mask_misapplied": "a mask of a wrong value, or at a wrong place",
    "summary_of_the_whole_text": "a mean, a norm or a gate over all positions",
    "choice_among_all_tokens": "ranks within the text decide what happens to a token",
    "neighbour_from_the_future": "a shift, a convolution or a recurrence from the wrong side",
    # context_use
    "context_cut_short": "tokens farther away than some number are not seen",
    "context_with_holes": "tokens in between are not seen, or not by some head or layer",
    "input_dropped": "a part of the input is not read at all",
    # determinism
    "dropout_in_evaluation": "dropout that does not look at the mode",
    "noise_in_evaluation": "random numbers for training that are drawn in evaluation too",
    "mode_not_passed_on": "a part of the model that eval() does not reach",
    # dropout
    "dropout_without_effect": "dropout that is called and dropped, or never on",
    "dropout_not_in_every_layer": "a layer without the dropout of the others",
    "dropout_of_a_wrong_rate": "a rate or a scale that is not the one that was meant",
    "dropout_on_logits": "dropout behind the head",
    "dropped_alike_every_time": "the same numbers are dropped in every step",
    # encoder_use
    "encoder_ignored": "the decoder, or one layer of it, does not see the source",
    "part_of_the_source_lost": "some positions of the source reach no output",
    "causal_mask_in_the_encoder": "the encoder is masked like the decoder",
    # gradient_flow
    "graph_cut": "detach, no_grad or .data between a weight and the loss",
    "graph_cut_in_part": "a cut that leaves another way, so that gradients are there and wrong",
    "hard_decision": "a step without a gradient where a smooth one was meant",
    "layer_skipped": "a layer is never called",
    "result_lost": "a result that nobody uses",
    "part_never_used": "a module or an expert that no input reaches",
    "effect_vanishes": "a branch that is saturated, cancelled or scaled to nothing",
    "backward_by_hand": "a backward written by hand that is not the derivative",
    "written_over_in_place": "a value that the backward needs is written over",
    "gradient_explodes": "finite outputs with gradients that are not, or nearly not",
    # inference_speed
    "prefixes_again": "every prefix is computed from the start",
    "work_repeated": "the whole is computed for each part",
    # kv_cache
    "cached_step_sees_wrong_tokens": "a mask or a window that is wrong beside a cache",
    "cache_loses_something": "a layer, a head or digits of the cache are lost",
    "cache_mixed_up": "cached keys or values in another order, row or layer",
    "cached_step_in_a_wrong_place": "positions or rotations that do not go on after the cache",
    "cache_of_another_text": "what an earlier text left is used",
    # layer_structure
    "layers_shared": "one layer, or one weight, in place of several",
    "residual_missing": "a sum that is forgotten around one branch",
    "residual_of_the_wrong_sum": "the input is added twice, or again where the sum is meant",
    "norm_over_a_wrong_axis": "a normalisation over positions",
    "norm_keeps_the_size": "a normalisation whose output is as large as its input makes it",
    "activation_left_out": "two linear layers that act as one",
    # length_limit
    "long_text_folded": "positions above the maximum are taken for others",
    "long_text_cut": "tokens above the maximum are not read, and nobody is told",
    # load
    "raises_at_first_use": "a constructor or a forward that cannot run",
    "nothing_to_train": "parameters that are not registered, or not parameters",
    # loss_alignment
    "ignored_labels_counted": "labels that say to ignore a token are not ignored",
    "loss_of_something_else": "a loss of probabilities, of detached logits, of other inputs",
    "loss_of_a_wrong_layout": "logits and labels flattened in different orders",
    "loss_of_a_wrong_mean": "a sum divided by another number than that of its labels",
    "labels_shifted_wrongly": "logits are compared with labels of another position",
    # mask_effect
    "mask_ignored": "a mask that is given hides nothing, everywhere or in a part",
    "mask_inverted": "kept and hidden are exchanged",
    "another_path_with_a_mask": "a mask of ones is not the same as none",
    # memory_footprint
    "graph_kept": "losses or statistics that hold the graph of every step",
    "outputs_collected": "a list or a cache that grows with every call",
    "quadratic_in_the_batch": "a tensor of batch by batch",
    # output_kind
    "predictions_for_logits": "the choice is returned, not what it is made of",
    "logits_squashed": "an activation or a softmax behind the head",
    "output_of_a_wrong_width": "hidden states, or a head that is too wide or too narrow",
    # output_stability
    "output_collapsed": "one output, whatever the input",
    "output_too_large": "numbers that no loss can take",
    "output_not_a_number": "0 / 0, or a softmax over nothing",
    "weights_never_written": "weights that hold whatever the memory held",
    # padding
    "padding_seen_in_one_part": "one layer or one head goes without the padding mask",
    "padding_of_the_source_seen": "the decoder reads padding of the source",
    "padding_mask_misapplied": "a padding mask on a wrong axis or row, or under a condition",
    "padding_mask_too_weak": "a mask that is added and does not outweigh the scores",
    "padding_in_a_summary": "padding is pooled, or counted in a mean",
    "padding_miscounted": "padding that is found by a wrong id, or moves positions",
    # parameter_initialization
    "initial_scale": "a weight that starts far larger or smaller than its like",
    "drawn_once": "layers, heads or experts that start equal",
    "initial_constants": "weights that are no random numbers",
    "norm_drawn_as_a_weight": "the scale of a norm that starts as noise",
    # position_sensitivity
    "positions_coincide": "two places are taken for one",
    "positions_never_added": "positions that are made and not used, or all the same",
    "rotation_mismatched": "queries and keys that are rotated differently",
    # precision
    "rounded_in_half_precision": "arithmetic that half precision rounds away",
    "out_of_the_range_of_half": "numbers that are infinite in half precision",
    "dtype_hard_coded": "tensors that do not follow the model's dtype",
    # prefix_consistency
    "positions_by_the_length": "positions that are counted from the end, or stretched",
    "length_in_the_arithmetic": "a number that is divided by the length of the text",
    "one_token_alone": "a path of its own for a text of one token",
    # registered_tensors
    "tensor_on_the_cpu": "a tensor that is made on the CPU, or brought there",
    "tensor_not_registered": "a tensor that does not move with the model",
    # round_trip
    "state_not_in_the_checkpoint": "random state that is not saved",
    "state_made_late": "state that only a call makes",
    "own_checkpoint_methods": "state_dict and load_state_dict that do not agree",
    # shape_robustness
    "size_hard_coded": "a batch size or a length that is typed into the code",
    "axis_squeezed": "an axis of one that is lost",
    "outputs_of_another_length": "not one output for each input",
    "table_too_short": "less room than the configuration promises",
    # statelessness
    "table_of_another_length": "a table or a mask that was made for another text",
    "state_of_the_last_call": "hidden states, keys or buffers that the next call finds",
    "counts_its_calls": "an output that depends on how often the model was called",
    "writes_its_weights": "weights that a forward changes",
    "writes_its_inputs": "inputs that a forward changes",
    "leaves_global_state": "seeds, gradient mode or mode that a forward leaves behind",
    # vocabulary_bounds
    "ids_folded": "ids outside of the vocabulary that are read as others",
    "vocabulary_of_another_size": "a table or a head that has not one row for each id",
    "token_taken_for_padding": "an id of texts whose row is never learned",
    # weight_tying
    "tied_by_copy": "embedding and head as two tensors",
    "tied_by_memory_only": "one memory, two parameters",
    # backend_equivalence
    "one_way_lacks_something": "attention by hand and fused, or a fast path, that differ",
    # checkpointing_equivalence
    "drawn_anew_for_the_backward": "other random numbers when activations are computed again",
    "checkpoint_loses_an_argument": "a checkpointed block that is called with something else",
    # export_equivalence
    "another_path_when_exported": "code that asks whether a program is made, and errs there",
    # generate_equivalence
    "choice_is_not_the_largest": "another token than that of the largest logit, or too few",
    "generation_reads_another_text": "tokens, positions, a mask or a cache of another text",
    # reference
    "constant_of_another_library": "an epsilon, an activation or a scale that is not the same",
    "layout_of_another_library": "rotary pairs, heads or projections in another order",
    "ties_forgotten": "weights that are one tensor in the reference and two in the port",
    # attention_rows
    "weights_that_do_not_sum_to_one": "attention weights that are changed behind the softmax",
    "softmax_of_a_softmax": "weights that were normalised before are normalised again",
    # attention_mask
    "mask_that_does_not_quite_hide": "a mask of a number that training can outgrow",
    "mask_with_a_wrong_edge": "a causal mask or a window that ends too far away",
    # attention_reach
    "carried_beside_attention": "tokens that reach an output past what attention may see",
    # attention_heads
    "heads_that_look_alike": "heads of one layer with the same weights",
    # attention_scale
    "scores_not_scaled": "queries times keys without 1/sqrt(d)",
    "scores_scaled_twice": "queries times keys divided by d, or by the root of all heads",
    # attribution
    "part_of_the_path_detached": "a gradient that is cut in one of several paths to a weight",
    "backward_of_another_function": "a backward by hand that is not the forward's",
    "hidden_token_gets_an_attribution": "an output that follows what the task hides",
    # embedding_smoothness
    "made_of_the_last_digits": "numbers that any change of an activation makes others",
    # layer_effect
    "layer_of_next_to_no_effect": "a layer that runs, learns and changes next to nothing",
    "norm_hides_an_idle_branch": "a norm behind a sum in which the branch no longer counts",
    # text_invariance
    "writing_that_counts": "case, punctuation or spaces that make other tokens of a text",
    # one_batch_overfit
    "learns_the_wrong_way": "gradients of the wrong sign, or noise larger than what is learned",
    "outputs_that_cannot_grow": "outputs within bounds, so that no choice can become sure",
    # loss_curve
    "loss_far_from_a_guess": "outputs so large that training starts with being wrong for sure",
    "loss_leaps": "something that happens in some steps of a training only",
    # fine_tuning
    "used_in_another_way_than_trained": "evaluation computes something that was not trained",
    # accumulation_equivalence
    "rows_mixed_in_training": "statistics over the rows, in training mode only",
    "rows_mixed_in_backward": "gradients changed by hand, by numbers of the whole batch",
    # seeded_training
    "no_seed_reaches_it": "random numbers or counters that two trainings of one seed do not share",
}
