"""Tokens that are carried past attention, and attention whose result is lost."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_reach = partial(Mutant, check="attention_reach")

MUTANTS = (
    _reach(
        name="mean_beside_the_window",
        family="carried_beside_attention",
        parent="sliding_window",
        where=("(model)", "layers.*"),
        why="a running mean is added as a memory, and reaches beyond the window",
        edits=(
            (
                "            x = layer(x)\n",
                "            mean = x.cumsum(1) / (steps[None, :, None] + 1)\n"
                "            x = layer(x) + 0.1 * mean\n",
            ),
        ),
    ),
    _reach(
        name="values_summed_in_the_window",
        family="carried_beside_attention",
        parent="window_cache",
        where=("layers.*.attn",),
        why="values are summed up over the text, as linear attention does",
        edits=(
            (
                "        y = scores.softmax(dim=-1) @ v",
                "        y = scores.softmax(dim=-1) @ (v + 0.1 * v.cumsum(dim=2))",
            ),
        ),
    ),
    _reach(
        name="window_with_an_old_token",
        family="carried_beside_attention",
        parent="sliding_window",
        where=("layers.*.attn",),
        why="the first token is added to every position, as a sink that is not in the mask",
        edits=(
            (
                "y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)",
                "y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)\n"
                "        y = y + 0.1 * v[:, :, :1]",
            ),
        ),
    ),
    _reach(
        name="summary_beside_local_attention",
        family="carried_beside_attention",
        parent="local_encoder",
        where=("layers.*",),
        why="the mean over the text is added as a global token",
        edits=(
            (
                "        return x + self.dropout(self.narrow",
                "        x = x + 0.1 * x.mean(1, keepdim=True)\n"
                "        return x + self.dropout(self.narrow",
            ),
        ),
    ),
)
