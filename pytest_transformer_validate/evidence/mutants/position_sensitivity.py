"""Mistakes about where a token stands."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_lost = partial(Mutant, check="position_sensitivity")
_ROTATED = "q, k = rotate(q, cos, sin), rotate(k, cos, sin)"


def _flat_slopes(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("slopes"):
            buffer.data = torch.zeros_like(buffer)


MUTANTS = (
    _lost(
        name="positions_not_assigned",
        family="positions_never_added",
        parent="mha_decoder",
        where=("positions",),
        why="the result of the position module is dropped",
        edits=(("        x = self.positions(x)\n", "        self.positions(x)\n"),),
    ),
    _lost(
        name="encoder_table_never_added",
        family="positions_never_added",
        parent="bert",
        where=("embeddings.position_embeddings",),
        why="the line that adds the table is lost in a merge",
        edits=(
            ("x = x + self.position_embeddings(positions)", "self.position_embeddings(positions)"),
        ),
    ),
    _lost(
        name="classifier_table_never_added",
        family="positions_never_added",
        parent="simple_classifier",
        where=("embedding.pos_emb",),
        why="only the token vectors are returned",
        edits=(
            (
                "self.token_emb(x) + self.pos_emb(torch.arange(x.size(-1), device=x.device))",
                "self.token_emb(x)",
            ),
        ),
    ),
    _lost(
        name="source_positions_never_added",
        family="positions_never_added",
        parent="seq2seq",
        where=("encoder_positions",),
        why="added to the decoder, forgotten in the encoder",
        edits=(
            ("self.shared(input_ids) + self.encoder_positions(steps)", "self.shared(input_ids)"),
        ),
    ),
    _lost(
        name="patch_positions_never_added",
        family="positions_never_added",
        parent="vit",
        where=("patches",),
        why="the line that adds the table is lost",
        edits=(("torch.cat([cls, x], dim=1) + self.pos_embed", "torch.cat([cls, x], dim=1)"),),
    ),
    _lost(
        name="rotary_all_at_zero",
        family="positions_never_added",
        parent="llama",
        where=("rotary", "layers.0.self_attn"),
        why="positions start at zero in every step, as in a decoding loop",
        edits=(
            (
                "position_ids = steps.expand(batch, length)",
                "position_ids = steps.expand(batch, length) * 0",
            ),
        ),
    ),
    _lost(
        name="slopes_all_zero",
        family="positions_never_added",
        parent="alibi",
        where=("blocks.0.attention",),
        why="slopes are allocated and never filled",
        operate=_flat_slopes,
    ),
    _lost(
        name="queries_only_rotated",
        family="rotation_mismatched",
        parent="llama",
        where=("layers.0.self_attn", "rotary"),
        why="keys are rotated when they enter a cache that is no longer there",
        edits=((_ROTATED, "q = rotate(q, cos, sin)"),),
    ),
    _lost(
        name="one_key_head_not_rotated",
        family="rotation_mismatched",
        parent="llama",
        where=("layers.0.self_attn",),
        why="a kernel for one head of keys, where there are two",
        edits=((_ROTATED, "q, k[:, :1] = rotate(q, cos, sin), rotate(k[:, :1], cos, sin)"),),
    ),
    _lost(
        name="keys_of_the_last_layer_not_rotated",
        family="rotation_mismatched",
        parent="llama",
        where=("layers.1.self_attn",),
        why="the last layer is given tables that turn nothing for its keys",
        edits=(
            (
                _ROTATED,
                "q = rotate(q, cos, sin)\n        k = k if self.last else rotate(k, cos, sin)",
            ),
            (
                "        self.heads, self.kv_heads = heads, kv_heads\n",
                "        self.heads, self.kv_heads = heads, kv_heads\n        self.last = False\n",
            ),
            (
                "        self.norm = RMSNorm(hidden_size)\n        self.lm_head",
                "        self.layers[-1].self_attn.last = True\n"
                "        self.norm = RMSNorm(hidden_size)\n        self.lm_head",
            ),
        ),
    ),
    _lost(
        name="keys_only_rotated",
        family="rotation_mismatched",
        parent="llama",
        where=("layers.0.self_attn",),
        why="queries were rotated by a kernel that is no longer there",
        edits=((_ROTATED, "k = rotate(k, cos, sin)"),),
    ),
    _lost(
        name="halves_and_pairs_mixed",
        family="rotation_mismatched",
        parent="llama",
        where=("layers.0.self_attn",),
        why="tables for halves, rotation of neighbouring pairs",
        edits=(
            (
                "first, second = x.chunk(2, dim=-1)\n"
                "    return x * cos + torch.cat([-second, first], dim=-1) * sin",
                "turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)\n"
                "    return x * cos + turned * sin",
            ),
        ),
    ),
    _lost(
        name="keys_in_other_positions",
        family="rotation_mismatched",
        parent="llama",
        where=("layers.0.self_attn",),
        why="keys are rotated by positions that are counted backwards",
        edits=((_ROTATED, "q, k = rotate(q, cos, sin), rotate(k, cos.flip(2), sin.flip(2))"),),
    ),
    _lost(
        name="positions_clamped",
        family="positions_coincide",
        parent="sdpa_gpt",
        where=("wpe",),
        why="a clamp that was to keep longer texts inside a smaller table",
        edits=(("self.wpe(positions))", "self.wpe(positions.clamp(max=47)))"),),
    ),
    _lost(
        name="positions_halved",
        family="positions_coincide",
        parent="torch_encoder",
        where=("embedding.position",),
        why="positions of a pooled sequence",
        edits=(("self.position(steps))", "self.position(steps // 2))"),),
    ),
    _lost(
        name="first_two_coincide",
        family="positions_coincide",
        parent="moe",
        where=("pos_embeddings",),
        why="position zero is reserved for padding, the shift is done by a clamp",
        edits=(
            (
                "steps = torch.arange(input_ids.size(1), device=input_ids.device)\n",
                "steps = torch.arange(input_ids.size(1), device=input_ids.device).clamp(min=1)\n",
            ),
        ),
    ),
    _lost(
        name="positions_repeat",
        family="positions_coincide",
        parent="nanogpt",
        where=("transformer.wpe",),
        why="positions modulo the size of a shorter context",
        edits=(('self.transformer["wpe"](pos)', 'self.transformer["wpe"](pos % 32)'),),
    ),
    _lost(
        name="keys_turned_the_other_way",
        family="rotation_mismatched",
        parent="rotary_tied",
        where=("blocks.*.attention", "rotary"),
        why="the inverse rotation for keys: then products follow sums of positions",
        edits=(
            (
                "q, k = rotate(q, cos, sin), rotate(k, cos, sin)",
                "q, k = rotate(q, cos, sin), rotate(k, cos, -sin)",
            ),
        ),
    ),
    _lost(
        name="key_frequencies_reversed",
        family="rotation_mismatched",
        parent="llama_start_pos",
        where=("layers.*.attention",),
        why="weights were permuted for one convention, and the key's frequencies once more",
        edits=(
            (
                "xk = apply_rotary(self.wk(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim), "
                "cos, sin)",
                "xk = self.wk(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)\n"
                "        xk = apply_rotary(xk, cos.flip(-1), sin.flip(-1))",
            ),
        ),
    ),
    _lost(
        name="positions_all_zero_like",
        family="positions_never_added",
        parent="pad_translator",
        where=("src_positions", "(model)"),
        why="positions of type long, all zero, from zeros_like",
        edits=(
            (
                "tokens(ids) + positions(torch.arange(ids.size(1), device=ids.device))",
                "tokens(ids) + positions(torch.zeros_like(ids))",
            ),
        ),
    ),
)
