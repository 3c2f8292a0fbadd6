"""Mistakes in how layers are put together."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_layer = partial(Mutant, check="layer_structure")


def _tie_wrong_layers(model: torch.nn.Module) -> None:
    """The third block's first projection becomes the first block's."""
    blocks = cast("Any", model).blocks
    blocks[2].mlp[0].weight = blocks[0].mlp[0].weight


NORM = """class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean({axes}, keepdim=True)
        spread = centred.pow(2).mean({axes}, keepdim=True) + 1e-5
        return self.weight * centred * spread.rsqrt() + self.bias


"""


class _SequenceNorm(torch.nn.Module):
    """Normalises over the positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()


def _norms_of_the_encoder(model: torch.nn.Module) -> None:
    for module in list(model.get_submodule("encoder_layers").modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, torch.nn.LayerNorm):
                setattr(module, name, _SequenceNorm(part.normalized_shape[0]))


MUTANTS = (
    _layer(
        name="one_block_named_n_times",
        family="layers_shared",
        parent="sdpa_gpt",
        where=("blocks",),
        why="[Block()] * n repeats the reference",
        edits=(
            (
                "nn.ModuleList([Block(n_embd, n_head, dropout) for _ in range(n_layer)])",
                "nn.ModuleList([Block(n_embd, n_head, dropout)] * n_layer)",
            ),
        ),
    ),
    _layer(
        name="one_encoder_layer_for_all",
        family="layers_shared",
        parent="bert",
        where=("encoder",),
        why="the layer is built before the loop",
        edits=(
            (
                """                BertLayer(hidden_size, num_attention_heads, intermediate_size)
                for _ in range(num_hidden_layers)
""",
                """                layer
                for layer in [BertLayer(hidden_size, num_attention_heads, intermediate_size)]
                for _ in range(num_hidden_layers)
""",
            ),
        ),
    ),
    _layer(
        name="one_block_in_sequential",
        family="layers_shared",
        parent="alibi",
        where=("blocks",),
        why="[Block()] * n repeats the reference",
        edits=(
            (
                "*[AlibiBlock(dim, heads, dropout) for _ in range(depth)]",
                "*[AlibiBlock(dim, heads, dropout)] * depth",
            ),
        ),
    ),
    _layer(
        name="weight_tied_to_another_layer",
        family="layers_shared",
        parent="alibi",
        where=("blocks.2",),
        why="weights are tied by index, and the index is off",
        operate=_tie_wrong_layers,
    ),
    _layer(
        name="residual_of_the_feed_forward_missing",
        family="residual_missing",
        parent="text_classifier",
        where=("blocks.*",),
        why="the class of all layers returns its second branch only",
        edits=(
            (
                "        return x + self.dropout(self.fc2(h))",
                "        return self.dropout(self.fc2(h))",
            ),
        ),
    ),
    _layer(
        name="residual_of_the_attention_missing",
        family="residual_missing",
        parent="alibi",
        where=("blocks.*",),
        why="x = f(x) for x = x + f(x), in the class of all layers",
        edits=(
            (
                "        x = x + self.attention(self.norm_attention(x))\n",
                "        x = self.attention(self.norm_attention(x))\n",
            ),
        ),
    ),
    _layer(
        name="residual_missing_before_the_last_norm",
        family="residual_missing",
        parent="bert",
        where=("encoder.*",),
        why="the second norm is given the branch alone",
        edits=(("self.output_norm(hidden + self.dropout(inner))", "self.output_norm(inner)"),),
    ),
    _layer(
        name="residual_missing_in_last_layer",
        family="residual_missing",
        parent="text_classifier",
        where=("blocks.1",),
        why="the last layer returns its branch only",
        edits=(
            (
                "        return x + self.dropout(self.fc2(h))",
                "        h = self.dropout(self.fc2(h))\n"
                "        return h if self.number == 1 else x + h",
            ),
            (
                "        self.pool = MaskedMeanPool()\n",
                "        for number, block in enumerate(self.blocks):\n"
                "            block.number = number\n"
                "        self.pool = MaskedMeanPool()\n",
            ),
        ),
    ),
    _layer(
        name="attention_residual_missing_in_first_layer",
        family="residual_missing",
        parent="bert",
        where=("encoder.0",),
        why="the first layer is written by hand, without the sum",
        edits=(
            (
                "        for layer in self.encoder:\n            hidden = layer(hidden, mask)\n",
                "        for number, layer in enumerate(self.encoder):\n"
                "            layer.number = number\n"
                "            hidden = layer(hidden, mask)\n",
            ),
            (
                "hidden = self.attention_norm(hidden + self.dropout(attended))",
                "kept = hidden if self.number else 0\n"
                "        hidden = self.attention_norm(kept + self.dropout(attended))",
            ),
        ),
    ),
    _layer(
        name="residual_overwritten_in_middle_layer",
        family="residual_missing",
        parent="alibi",
        where=("blocks.1",),
        why="x = f(x) for x = x + f(x)",
        edits=(
            (
                "        x = x + self.attention(self.norm_attention(x))\n",
                "        attended = self.attention(self.norm_attention(x))\n"
                "        x = attended if self.number == 1 else x + attended\n",
            ),
            (
                "        self.final_norm = nn.LayerNorm(dim)\n",
                "        for number, block in enumerate(self.blocks):\n"
                "            block.number = number\n"
                "        self.final_norm = nn.LayerNorm(dim)\n",
            ),
        ),
    ),
    _layer(
        name="residual_of_the_layers_input_twice",
        family="residual_of_the_wrong_sum",
        parent="llama",
        where=("layers.*",),
        why="attention's sum is kept for the norm only",
        edits=(
            (
                "x = x + attended\n        x = x + self.mlp(self.post_attention_layernorm(x))",
                "y = x + attended\n        x = x + self.mlp(self.post_attention_layernorm(y))",
            ),
        ),
    ),
    _layer(
        name="residual_not_set_anew",
        family="residual_of_the_wrong_sum",
        parent="bert",
        where=("encoder.*",),
        why="residual = hidden is forgotten between attention and feed-forward",
        edits=(
            (
                "        hidden = self.attention_norm(hidden + self.dropout(attended))\n",
                "        residual = hidden\n"
                "        hidden = self.attention_norm(residual + self.dropout(attended))\n",
            ),
            (
                "return self.output_norm(hidden + self.dropout(inner))",
                "return self.output_norm(residual + self.dropout(inner))",
            ),
        ),
    ),
    _layer(
        name="residual_added_twice",
        family="residual_of_the_wrong_sum",
        parent="sdpa_gpt",
        where=("blocks.*",),
        why="the part adds its input itself, and the layer does so again",
        edits=(
            (
                "        return x + self.mlp(self.ln_2(x))",
                "        return x + (x + self.mlp(self.ln_2(x)))",
            ),
        ),
    ),
    _layer(
        name="residual_missing_around_attention_in_pairs",
        family="residual_missing",
        parent="paired_layers",
        where=("layers.*.0",),
        why="the sum is forgotten where it stands outside of the modules",
        edits=(("x = attn(x) + x", "x = attn(x)"),),
    ),
    _layer(
        name="residual_missing_around_feed_forward_in_pairs",
        family="residual_missing",
        parent="paired_layers",
        where=("layers.*.1",),
        why="x = ff(x) for x = ff(x) + x",
        edits=(("x = ff(x) + x", "x = ff(x)"),),
    ),
    Mutant(
        name="norm_over_the_sequence",
        family="norm_over_a_wrong_axis",
        parent="bert",
        check="layer_structure",
        where=("encoder.*.output_norm",),
        why="a hand-written norm with dim=1, as for images",
        edits=(
            ("class BertLayer(nn.Module):", f"{NORM.format(axes='1')}class BertLayer(nn.Module):"),
            (
                "self.output_norm = nn.LayerNorm(hidden_size)",
                "self.output_norm = Norm(hidden_size)",
            ),
        ),
    ),
    Mutant(
        name="norm_over_the_whole_text",
        family="norm_over_a_wrong_axis",
        parent="pad_classifier",
        check="layer_structure",
        where=("norm",),
        why="mean and variance over all axes but the batch",
        edits=(
            (
                "class LastToken(nn.Module):",
                f"{NORM.format(axes='(1, 2)')}class LastToken(nn.Module):",
            ),
            ("self.norm = nn.LayerNorm(width)", "self.norm = Norm(width)"),
        ),
    ),
    Mutant(
        name="encoder_norm_over_the_sequence",
        family="norm_over_a_wrong_axis",
        parent="seq2seq",
        check="layer_structure",
        where=("encoder_layers.*.norm*",),
        why="a norm ported from (T, B, D) to (B, T, D) with its axis left alone",
        operate=_norms_of_the_encoder,
    ),
    _layer(
        name="norm_divides_by_the_reciprocal",
        family="norm_keeps_the_size",
        parent="llama",
        where=("layers.*.input_layernorm",),
        why="sqrt is exchanged for rsqrt and the division stays",
        edits=(("x * torch.rsqrt(x.pow(2)", "x / torch.rsqrt(x.pow(2)"),),
    ),
    _layer(
        name="norm_without_the_root",
        family="norm_keeps_the_size",
        parent="complex_rotary",
        where=("layers.*.attention_norm",),
        why="the mean square is divided by, not its root",
        edits=(("x * torch.rsqrt(x.pow(2)", "x * torch.reciprocal(x.pow(2)"),),
    ),
    _layer(
        name="norm_multiplies_by_the_root",
        family="norm_keeps_the_size",
        parent="rotary_tied",
        where=("blocks.*.attention_norm",),
        why="the reciprocal is forgotten",
        edits=(("wide * torch.rsqrt(wide.pow(2)", "wide * torch.sqrt(wide.pow(2)"),),
    ),
    _layer(
        name="feed_forward_without_activation",
        family="activation_left_out",
        parent="sdpa_gpt",
        where=("blocks.0.mlp",),
        why="the activation is forgotten",
        edits=(("self.proj(F.gelu(self.fc(x)))", "self.proj(self.fc(x))"),),
    ),
    _layer(
        name="dropout_for_the_activation",
        family="activation_left_out",
        parent="alibi",
        where=("blocks.0.mlp",),
        why="dropout stands where the activation should",
        edits=(("nn.GELU()", "nn.Dropout(dropout)"),),
    ),
    _layer(
        name="activation_whose_result_is_dropped",
        family="activation_left_out",
        parent="mha_decoder",
        where=("layers.0.ffn",),
        why="torch.relu is no operation in place",
        edits=(
            (
                "return self.down(self.dropout(torch.relu(self.up(x))))",
                "x = self.up(x)\n        torch.relu(x)\n        return self.down(self.dropout(x))",
            ),
        ),
    ),
)
