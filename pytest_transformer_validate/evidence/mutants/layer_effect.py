"""Layers that run, have gradients, and change next to nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_idle = partial(Mutant, check="layer_effect")
_FAMILY = "layer_of_next_to_no_effect"


def _fall(model: Any) -> None:
    for number, block in enumerate(model.blocks):
        block.scale = 1e-3**number


MUTANTS = (
    _idle(
        name="average_with_its_weights_exchanged",
        family=_FAMILY,
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
        family=_FAMILY,
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
        family=_FAMILY,
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
        family=_FAMILY,
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
    _idle(
        name="residual_outweighs_behind_a_norm",
        family="norm_hides_an_idle_branch",
        parent="bert",
        where=("encoder.*",),
        why="DeepNorm's factor of the residual, computed as a power of the width",
        edits=(
            (
                "self.attention_norm(hidden + self.dropout(attended))",
                "self.attention_norm(1.3 ** hidden.size(-1) * hidden + self.dropout(attended))",
            ),
            (
                "self.output_norm(hidden + self.dropout(inner))",
                "self.output_norm(1.3 ** hidden.size(-1) * hidden + self.dropout(inner))",
            ),
        ),
    ),
    _idle(
        name="constant_layer_scale_behind_a_norm",
        family="norm_hides_an_idle_branch",
        parent="seq2seq",
        where=("encoder_layers.*",),
        why="a layer scale that is no parameter and stays where it starts",
        edits=(
            (
                "        x = self.norm1(x + self.drop(self.self_attn(x, x, mask)))\n"
                "        return self.norm2(x + self.drop(self.ffn(x)))\n",
                "        x = self.norm1(x + 1e-6 * self.drop(self.self_attn(x, x, mask)))\n"
                "        return self.norm2(x + 1e-6 * self.drop(self.ffn(x)))\n",
            ),
        ),
    ),
    _idle(
        name="last_layer_of_a_schedule_behind_a_norm",
        family="norm_hides_an_idle_branch",
        parent="alibi",
        where=("blocks.*",),
        why="scales that fall tenfold from layer to layer",
        edits=(
            (
                "        x = x + self.attention(self.norm_attention(x))\n"
                "        return x + self.mlp(self.norm_mlp(x))\n",
                "        self.scale = getattr(self, 'scale', 1.0)\n"
                "        x = self.norm_attention(x + self.scale * self.attention(x))\n"
                "        return self.norm_mlp(x + self.scale * self.mlp(x))\n",
            ),
        ),
        operate=_fall,
    ),
)
