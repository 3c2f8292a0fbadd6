"""Scores that are scaled by something else than 1/sqrt(d)."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_scale = partial(Mutant, check="attention_scale")

MUTANTS = (
    _scale(
        name="scale_forgotten_by_hand",
        family="scores_not_scaled",
        parent="nanogpt",
        where=("transformer.h.*.attn",),
        why="the factor is lost",
        edits=(
            (
                "(q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))",
                "q @ k.transpose(-2, -1)",
            ),
        ),
    ),
    _scale(
        name="scale_of_one_in_fused_attention",
        family="scores_not_scaled",
        parent="sdpa_gpt",
        where=("blocks.*.attn",),
        why="scale=1.0 is taken for the default",
        edits=(("is_causal=True)", "is_causal=True, scale=1.0)"),),
    ),
    _scale(
        name="scale_forgotten_in_encoder",
        family="scores_not_scaled",
        parent="bert",
        where=("encoder.*.attention",),
        why="the division is lost",
        edits=((" / math.sqrt(query.size(-1))", ""),),
    ),
    _scale(
        name="scale_forgotten_with_cache",
        family="scores_not_scaled",
        parent="llama_start_pos",
        where=("layers.*.attention",),
        why="the division is lost",
        edits=((" / self.head_dim**0.5", ""),),
    ),
    _scale(
        name="scale_forgotten_with_einsum",
        family="scores_not_scaled",
        parent="stacked_experts",
        where=("layers.*.attention",),
        why="the division is lost",
        edits=((" / q.size(-1) ** 0.5", ""),),
    ),
    _scale(
        name="queries_scaled_before_fused_attention",
        family="scores_scaled_twice",
        parent="moe",
        where=("layers.*.attn",),
        why="scaled_dot_product_attention scales too",
        edits=(
            ("        y = F.scaled", "        q = q * q.size(-1) ** -0.5\n        y = F.scaled"),
        ),
    ),
    _scale(
        name="divided_by_d",
        family="scores_scaled_twice",
        parent="llama",
        where=("layers.*.self_attn",),
        why="the root is lost",
        edits=((" / self.head_dim**0.5", " / self.head_dim"),),
    ),
    _scale(
        name="divided_by_both",
        family="scores_scaled_twice",
        parent="given_mask",
        where=("blocks.*.attn",),
        why="queries are scaled, and scores again",
        edits=(
            (
                "scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))",
                "scores = (q * q.size(-1) ** -0.5) @ k.transpose(-2, -1) / math.sqrt(q.size(-1))",
            ),
        ),
    ),
    _scale(
        name="cross_attention_divided_by_d",
        family="scores_scaled_twice",
        parent="annotated",
        where=("*.*.*_attn",),
        why="the root is lost",
        edits=(("math.sqrt(query.size(-1))", "query.size(-1)"),),
    ),
)
