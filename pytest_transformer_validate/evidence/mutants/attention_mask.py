"""Masks that leave a weight where there must be none."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_mask = partial(Mutant, check="attention_mask")

MUTANTS = (
    _mask(
        name="causal_mask_of_minus_forty",
        family="mask_that_does_not_quite_hide",
        parent="nanogpt",
        where=("transformer.h.*.attn",),
        why="a number that is large enough at the start of training",
        edits=(
            (
                'att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))',
                "att.masked_fill(self.bias[:, :, :T, :T] == 0, -40.0)",
            ),
        ),
    ),
    _mask(
        name="padding_mask_of_minus_fifty",
        family="mask_that_does_not_quite_hide",
        parent="bert",
        where=("encoder.*.attention",),
        why="-1e9 gives NaN in half precision, -50 does not",
        edits=(("* -1e9", "* -50.0"),),
    ),
    _mask(
        name="causal_mask_added_as_a_penalty",
        family="mask_that_does_not_quite_hide",
        parent="rotary_tied",
        where=("blocks.*.attention",),
        why="scores are lowered by a fixed number",
        edits=(
            (
                'scores = scores.masked_fill(future, float("-inf"))',
                "scores = scores - 35.0 * future",
            ),
        ),
    ),
    _mask(
        name="source_mask_of_minus_thirty",
        family="mask_that_does_not_quite_hide",
        parent="annotated",
        where=("*.*.*_attn",),
        why="a softer mask for half precision",
        edits=(("-1e9", "-30.0"),),
    ),
    _mask(
        name="causal_bias_of_minus_sixty",
        family="mask_that_does_not_quite_hide",
        parent="masked_gpt",
        where=("blocks.*.attn",),
        why="torch.finfo(dtype).min is infinite in half precision once it is scaled",
        edits=(
            (
                "bias.masked_fill(~allowed, torch.finfo(dtype).min)",
                "bias.masked_fill(~allowed, -60.0)",
            ),
        ),
    ),
    _mask(
        name="window_mask_of_minus_forty",
        family="mask_that_does_not_quite_hide",
        parent="window_cache",
        where=("layers.*.attn",),
        why="a number that is large enough at the start of training",
        edits=(
            (
                'scores = scores.masked_fill(~allowed, float("-inf"))',
                'scores = scores.masked_fill(key > query, float("-inf"))\n'
                "        scores = scores.masked_fill(~allowed, -40.0)",
            ),
        ),
    ),
    _mask(
        name="edge_of_the_window_in_front",
        family="mask_with_a_wrong_edge",
        parent="sliding_window",
        where=("layers.*.attn",),
        why="the token behind is let in with the window's own edge",
        edits=(("(back >= 0) & (back", "(back >= -1) & (back"),),
    ),
    _mask(
        name="edge_by_distance",
        family="mask_with_a_wrong_edge",
        parent="alibi",
        where=("blocks.*.attention",),
        why="a distance of one is taken for the token itself",
        edits=(("bias.masked_fill(distance > 0,", "bias.masked_fill(distance > 1,"),),
    ),
)
