"""Weights that no longer sum to one when they meet the values."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_rows = partial(Mutant, check="attention_rows")

MUTANTS = (
    _rows(
        name="weights_divided_after_softmax",
        family="weights_that_do_not_sum_to_one",
        parent="bert",
        where=("encoder.*.attention",),
        why="softmax(scores) / sqrt(d) for softmax(scores / sqrt(d))",
        edits=(
            (
                "torch.softmax(scores, dim=-1)",
                "torch.softmax(scores, dim=-1) / math.sqrt(query.size(-1))",
            ),
        ),
    ),
    _rows(
        name="weights_scaled_after_softmax",
        family="weights_that_do_not_sum_to_one",
        parent="nanogpt",
        where=("transformer.h.*.attn",),
        why="the scale is applied once more, to the weights",
        edits=(
            ("att = F.softmax(att, dim=-1)", "att = F.softmax(att, dim=-1) * k.size(-1) ** -0.5"),
        ),
    ),
    _rows(
        name="weights_doubled_in_place",
        family="weights_that_do_not_sum_to_one",
        parent="llama",
        where=("layers.*.self_attn",),
        why="weights of grouped heads are added up twice",
        edits=((".min).softmax(dim=-1)", ".min).softmax(dim=-1)\n        weights.mul_(groups)"),),
    ),
    _rows(
        name="weights_of_one_head_halved",
        family="weights_that_do_not_sum_to_one",
        parent="masked_gpt",
        where=("blocks.*.attn",),
        why="a head is averaged with one that was pruned",
        edits=(
            (
                "        return self.o((weights @ v)",
                "        weights = weights.clone()\n"
                "        weights[:, 0] *= 0.5\n"
                "        return self.o((weights @ v)",
            ),
        ),
    ),
    _rows(
        name="weights_masked_after_softmax",
        family="weights_that_do_not_sum_to_one",
        parent="bert",
        where=("encoder.*.attention",),
        why="weights below a threshold are set to zero, to save work",
        edits=(
            (
                "        context = probs @ value",
                "        probs = probs.masked_fill(probs < 0.08, 0.0)\n"
                "        context = probs @ value",
            ),
        ),
    ),
    _rows(
        name="weights_over_a_fixed_length",
        family="weights_that_do_not_sum_to_one",
        parent="seq2seq",
        where=("*_layers.*.*_attn",),
        why="a mean over the heads that was meant for the maps that are drawn",
        edits=(
            ("out = scores.softmax(dim=-1) @", "out = scores.softmax(dim=-1) / self.n_heads @"),
        ),
    ),
    _rows(
        name="softmax_of_probabilities",
        family="softmax_of_a_softmax",
        parent="bert",
        where=("encoder.*.attention",),
        why="scores come normalised from a function that was moved, and are normalised again",
        edits=(
            (
                "torch.softmax(scores, dim=-1)",
                "torch.softmax(torch.softmax(scores, dim=-1), dim=-1)",
            ),
        ),
    ),
    _rows(
        name="softmax_of_probabilities_masked_again",
        family="softmax_of_a_softmax",
        parent="masked_gpt",
        where=("blocks.*.attn",),
        why="a second softmax behind a mask that is added once more",
        edits=(
            (
                "weights = (scores + bias).softmax(dim=-1)",
                "weights = (scores + bias).softmax(dim=-1)\n"
                "        weights = (weights + bias).softmax(dim=-1)",
            ),
        ),
    ),
    _rows(
        name="softmax_of_probabilities_in_a_window",
        family="softmax_of_a_softmax",
        parent="llama",
        where=("layers.*.self_attn",),
        why="masked and normalised in two places, each of which was the only one once",
        edits=(
            (
                ".min).softmax(dim=-1)",
                ".min).softmax(dim=-1)\n"
                "        weights = weights.masked_fill(~mask, float('-inf')).softmax(dim=-1)",
            ),
        ),
    ),
)
