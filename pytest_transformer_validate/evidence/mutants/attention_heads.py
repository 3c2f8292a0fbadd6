"""Heads that look at the same keys."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_heads = partial(Mutant, check="attention_heads")

MUTANTS = (
    _heads(
        name="one_query_and_key_for_all_heads",
        family="heads_that_look_alike",
        parent="sdpa_gpt",
        where=("blocks.*.attn",),
        why="the first head is expanded; values keep their own slices",
        edits=(
            (
                "        drop = self.dropout",
                "        q, k = (t[:, :1].expand_as(t) for t in (q, k))\n"
                "        drop = self.dropout",
            ),
        ),
    ),
    _heads(
        name="second_head_copies_the_first",
        family="heads_that_look_alike",
        parent="text_classifier",
        where=("blocks.*.attn",),
        why="an index that is not counted up",
        edits=(
            (
                "        y = F.scaled",
                "        q, k = (torch.cat([t[:, :1], t[:, :1], t[:, 2:]], 1) for t in (q, k))\n"
                "        y = F.scaled",
            ),
        ),
    ),
    _heads(
        name="scores_of_the_first_head",
        family="heads_that_look_alike",
        parent="bert",
        where=("encoder.*.attention",),
        why="scores are expanded over the heads",
        edits=(
            (
                "        scores = scores + mask",
                "        scores = scores[:, :1].expand_as(scores) + mask",
            ),
        ),
    ),
    _heads(
        name="first_head_in_cross_attention",
        family="heads_that_look_alike",
        parent="seq2seq",
        where=("*_layers.*.*_attn",),
        why="queries and keys of the first head are broadcast over all",
        edits=(
            (
                "        scores = q @ k.transpose(2, 3)",
                "        q, k = (t[:, :1].expand_as(t) for t in (q, k))\n"
                "        scores = q @ k.transpose(2, 3)",
            ),
        ),
    ),
    _heads(
        name="scores_averaged_over_heads",
        family="heads_that_look_alike",
        parent="bert",
        where=("encoder.*.attention",),
        why="the mean over the heads that maps are drawn of, kept for what is computed",
        edits=(
            (
                "        scores = scores + mask",
                "        scores = scores.mean(1, keepdim=True).expand_as(scores) + mask",
            ),
        ),
    ),
)
