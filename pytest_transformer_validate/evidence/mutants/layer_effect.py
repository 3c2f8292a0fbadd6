"""Layers that run, have gradients, and change next to nothing."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_idle = partial(Mutant, check="layer_effect", family="layer_of_next_to_no_effect")

MUTANTS = (
    _idle(
        name="average_with_its_weights_exchanged",
        parent="sdpa_gpt",
        where=("blocks.*",),
        why="lerp with the weight of what is kept in place of what is added",
        edits=(
            (
                "        x = x + self.attn(self.ln_1(x))\n"
                "        return x + self.mlp(self.ln_2(x))\n",
                "        y = x + self.attn(self.ln_1(x))\n"
                "        y = y + self.mlp(self.ln_2(y))\n"
                "        return x.lerp(y, 1e-5)\n",
            ),
        ),
    ),
    _idle(
        name="branches_scaled_by_epsilon",
        parent="llama",
        where=("layers.*",),
        why="a layer scale that is no parameter and stays where it starts",
        edits=(
            ("        x = x + attended\n", "        x = x + 1e-5 * attended\n"),
            (
                "x = x + self.mlp(self.post_attention_layernorm(x))",
                "x = x + 1e-5 * self.mlp(self.post_attention_layernorm(x))",
            ),
        ),
    ),
    _idle(
        name="branch_added_for_its_gradient",
        parent="text_classifier",
        where=("blocks.*",),
        why="a straight-through estimator in which nothing was made hard",
        edits=(
            (
                "        x = x + self.dropout(self.attn(self.norm1(x), mask))\n"
                "        h = F.gelu(self.fc1(self.norm2(x)))\n"
                "        return x + self.dropout(self.fc2(h))\n",
                "        y = x + self.dropout(self.attn(self.norm1(x), mask))\n"
                "        h = F.gelu(self.fc1(self.norm2(y)))\n"
                "        y = y + self.dropout(self.fc2(h))\n"
                "        return x + (y - y.detach())\n",
            ),
        ),
    ),
    _idle(
        name="depth_scale_to_a_power",
        parent="alibi",
        where=("blocks.*",),
        why="a scale by depth that is applied with the width in the exponent",
        edits=(
            (
                "        x = x + self.attention(self.norm_attention(x))\n"
                "        return x + self.mlp(self.norm_mlp(x))\n",
                "        scale = 0.7 ** x.size(-1)\n"
                "        x = x + scale * self.attention(self.norm_attention(x))\n"
                "        return x + scale * self.mlp(self.norm_mlp(x))\n",
            ),
        ),
    ),
)
