"""Mistakes that mix heads with positions, or weigh something else than the keys."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_mix = partial(Mutant, check="attention_structure")

MUTANTS = (
    _mix(
        name="softmax_over_queries",
        family="softmax_over_a_wrong_axis",
        parent="bert",
        where=("encoder.0.attention",),
        why="dim=-2 for dim=-1",
        edits=(("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"),),
    ),
    _mix(
        name="softmax_over_heads",
        family="softmax_over_a_wrong_axis",
        parent="bert",
        where=("encoder.0.attention",),
        why="dim=1 is right for scores (B, T, T) without heads",
        edits=(("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=1)"),),
    ),
    _mix(
        name="softmax_over_heads_of_decoder",
        family="softmax_over_a_wrong_axis",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="dim=1 is right for scores (B, T, T) without heads",
        edits=(
            (
                "        att = F.softmax(att, dim=-1)\n",
                "        att = F.softmax(att, dim=1).nan_to_num()\n",
            ),
        ),
    ),
    _mix(
        name="values_tiled_for_the_heads",
        family="heads_mixed_up",
        parent="llama",
        where=("layers.*.self_attn",),
        why="repeat for repeat_interleave, for the values only",
        edits=(
            (
                "out = weights @ v.repeat_interleave(groups, 1)",
                "out = weights @ v.repeat(1, groups, 1, 1)",
            ),
        ),
    ),
    _mix(
        name="heads_by_view",
        family="heads_mixed_up",
        parent="bert",
        where=("encoder.0.attention",),
        why="view(B, H, T, D) without a transpose",
        edits=(
            (
                "x.view(batch, length, self.heads, width // self.heads).permute(0, 2, 1, 3)",
                "x.view(batch, self.heads, length, width // self.heads)",
            ),
            (
                "return context.permute(0, 2, 1, 3).flatten(2)",
                "return context.reshape(hidden.shape)",
            ),
        ),
    ),
    _mix(
        name="queries_by_view",
        family="heads_mixed_up",
        parent="text_classifier",
        where=("blocks.0.attn",),
        why="the fused projection is viewed in the order in which it is needed",
        edits=(
            (
                "q, k, v = qkv.permute(2, 0, 3, 1, 4)",
                "q, k, v = qkv.permute(2, 0, 3, 1, 4)\n        q = qkv[:, :, 0].reshape(q.shape)",
            ),
        ),
    ),
    _mix(
        name="values_by_view",
        family="heads_mixed_up",
        parent="text_classifier",
        where=("blocks.0.attn",),
        why="one of three projections is viewed without its transpose",
        edits=(
            (
                "q, k, v = qkv.permute(2, 0, 3, 1, 4)",
                "q, k, v = qkv.permute(2, 0, 3, 1, 4)\n        v = qkv[:, :, 2].reshape(v.shape)",
            ),
        ),
    ),
    _mix(
        name="heads_merged_by_view",
        family="heads_mixed_up",
        parent="text_classifier",
        where=("blocks.0.attn",),
        why="reshape without the transpose back",
        edits=(("y.transpose(1, 2).reshape(batch", "y.reshape(batch"),),
    ),
    _mix(
        name="heads_merged_by_flatten",
        family="heads_mixed_up",
        parent="bert",
        where=("encoder.0.attention",),
        why="reshape without the transpose back",
        edits=(
            (
                "return context.permute(0, 2, 1, 3).flatten(2)",
                "return context.reshape(hidden.shape)",
            ),
        ),
    ),
    _mix(
        name="memory_heads_merged_by_view",
        family="heads_mixed_up",
        parent="seq2seq",
        where=("encoder_layers.0.self_attn",),
        why="reshape without the transpose back",
        edits=(("out.transpose(1, 2).flatten(2)", "out.contiguous().view(query.shape)"),),
    ),
    _mix(
        name="all_heads_see_the_first",
        family="heads_mixed_up",
        parent="sdpa_gpt",
        where=("blocks.0.attn",),
        why="the first head's slice is expanded instead of split",
        edits=(
            (
                "        drop = self.dropout",
                "        q, k, v = (t[:, :1].expand_as(t) for t in (q, k, v))\n"
                "        drop = self.dropout",
            ),
        ),
    ),
    _mix(
        name="softmax_over_queries_in_a_translator",
        family="softmax_over_a_wrong_axis",
        parent="seq2seq",
        where=("encoder_layers.*.self_attn", "decoder_layers.*.*_attn"),
        why="scores were written keys first when the axis was chosen",
        edits=(("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),),
    ),
    _mix(
        name="heads_merged_in_all_attentions",
        family="heads_mixed_up",
        parent="annotated",
        where=("encoder.*.self_attn", "decoder.*.self_attn", "decoder.*.src_attn"),
        why="view right after contiguous(), the transpose lost between them",
        edits=(
            (
                "x = x.transpose(1, 2).contiguous().view(rows, -1, self.h * self.d_k)",
                "x = x.contiguous().view(rows, -1, self.h * self.d_k)",
            ),
        ),
    ),
)
