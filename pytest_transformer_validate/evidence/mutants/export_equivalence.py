"""Code that does something else while torch makes a program of it."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_path = partial(Mutant, check="export_equivalence", family="another_path_when_exported")

MUTANTS = (
    _path(
        name="export_without_causal_mask",
        parent="trained_gpt",
        where=("blocks.*.attn",),
        why="the fused way is avoided while exporting, by one that forgot the mask",
        edits=(
            (
                "y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)",
                "causal = not torch.compiler.is_compiling()\n"
                "            y = F.scaled_dot_product_attention(\n"
                "                q, k, v, dropout_p=drop, is_causal=causal\n"
                "            )",
            ),
        ),
    ),
    _path(
        name="export_without_padding_mask",
        parent="bert",
        where=("encoder.*.attention",),
        why="a mask that stood in the way of an exporter is skipped there",
        edits=(
            (
                "scores = scores + mask",
                "scores = scores if torch.compiler.is_compiling() else scores + mask",
            ),
        ),
    ),
    _path(
        name="export_with_positions_of_the_example",
        parent="summarizer",
        where=("(model)", "positions"),
        why="positions were clamped to keep an exporter content",
        edits=(
            (
                "self.positions(torch.arange(ids.size(1), device=ids.device))",
                "self.positions(\n"
                "            torch.arange(ids.size(1), device=ids.device).clamp(\n"
                "                max=8 if torch.compiler.is_compiling() else None\n"
                "            )\n"
                "            if torch.compiler.is_compiling()\n"
                "            else torch.arange(ids.size(1), device=ids.device)\n"
                "        )",
            ),
        ),
    ),
    _path(
        name="export_that_leaves_a_layer_out",
        parent="llama",
        where=("layers.*.mlp",),
        why="a fused kernel that cannot be exported, replaced by half of it",
        edits=(
            (
                "self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))",
                "self.down_proj(\n"
                "            F.silu(self.gate_proj(x))\n"
                "            if torch.compiler.is_exporting()\n"
                "            else F.silu(self.gate_proj(x)) * self.up_proj(x)\n"
                "        )",
            ),
        ),
    ),
)
