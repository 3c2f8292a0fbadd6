"""Mistakes that keep a token from outputs that should see it."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_short = partial(Mutant, check="context_use")

MUTANTS = (
    _short(
        name="diagonal_only",
        family="context_with_holes",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="eye where tril was meant: every token attends to itself",
        edits=(("tril = torch.tril(torch.ones(size, size))", "tril = torch.eye(size)"),),
    ),
    _short(
        name="last_layer_alone",
        family="context_with_holes",
        parent="mha_decoder",
        where=("layers.1.attn.mha",),
        why="an extra mask for the last layer hides everything but the diagonal",
        edits=(
            (
                "        for layer in self.layers:\n            x = layer(x, mask)",
                "        alone = ~torch.eye(len(mask), dtype=torch.bool, device=mask.device)\n"
                "        for layer in self.layers:\n"
                "            last = layer is self.layers[-1]\n"
                "            x = layer(x, mask | alone if last else mask)",
            ),
        ),
    ),
    _short(
        name="one_head_alone",
        family="context_with_holes",
        parent="sdpa_gpt",
        where=("blocks.0.attn",),
        why="a mask with one entry a head, the last one of which was never filled",
        edits=(
            (
                "y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)",
                "mask = torch.eye(length, dtype=torch.bool).repeat(self.n_head, 1, 1)\n"
                "        mask[:-1] = torch.ones(length, length, dtype=torch.bool).tril()\n"
                "        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=drop)",
            ),
        ),
    ),
    _short(
        name="every_second_key",
        family="context_with_holes",
        parent="llama",
        where=("layers.0.self_attn",),
        why="keys of a block pattern left over from a sparse kernel",
        edits=(
            (
                "return (key <= query)[None, None]",
                "return ((key <= query) & ((key % 2 == 0) | (key == query)))[None, None]",
            ),
        ),
    ),
    _short(
        name="first_token_hidden",
        family="context_with_holes",
        parent="mha_decoder",
        where=("layers.0.attn.mha",),
        why="the first token was a padding token where this mask was written",
        edits=(
            (
                "return torch.triu(ones, diagonal=1)",
                "mask = torch.triu(ones, diagonal=1)\n        mask[1:, 0] = True\n"
                "        return mask",
            ),
        ),
    ),
    _short(
        name="window_shorter_in_one_layer",
        family="context_cut_short",
        parent="sliding_window",
        where=("layers.1.attn",),
        why="a window that is halved from layer to layer by mistake",
        edits=(
            (
                "WindowLayer(hidden_size, num_attention_heads, sliding_window, dropout)\n"
                "                for _ in range(num_hidden_layers)",
                "WindowLayer(hidden_size, num_attention_heads, sliding_window // (1 + i), dropout)"
                "\n                for i in range(num_hidden_layers)",
            ),
        ),
    ),
    _short(
        name="window_one_too_short",
        family="context_cut_short",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="a token counts itself twice",
        edits=(("(back < self.window)", "(back < self.window - 1)"),),
    ),
    _short(
        name="window_too_long",
        family="context_cut_short",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="the window is added on top of a block",
        edits=(("(back < self.window)", "(back < self.window + 4)"),),
    ),
    _short(
        name="last_layer_cut_short",
        family="context_cut_short",
        parent="mha_decoder",
        where=("layers.1.attn", "layers.1.attn.mha"),
        why="an experiment with cheaper upper layers: everything older than 20 tokens is masked",
        edits=(
            (
                "        for layer in self.layers:\n            x = layer(x, mask)",
                "        older = torch.ones_like(mask).tril(diagonal=-21)\n"
                "        for layer in self.layers:\n"
                "            x = layer(x, mask | older if layer is self.layers[-1] else mask)",
            ),
        ),
    ),
    _short(
        name="text_cut_inside",
        family="input_dropped",
        parent="text_classifier",
        where=("(model)",),
        why="a length limit of an older tokenizer inside the model",
        edits=(
            (
                "        if attention_mask is None:\n",
                "        input_ids = input_ids[:, :24]\n"
                "        if attention_mask is not None:\n"
                "            attention_mask = attention_mask[:, :24]\n"
                "        if attention_mask is None:\n",
            ),
        ),
    ),
    _short(
        name="pooled_without_attention",
        family="input_dropped",
        parent="simple_classifier",
        where=("block.att",),
        why="attention over the batch of single tokens, and the first position is read",
        edits=(
            (
                "attended, _ = self.att(inputs, inputs, inputs)",
                "eye = ~torch.eye(inputs.size(1), dtype=torch.bool)\n"
                "        attended, _ = self.att(inputs, inputs, inputs, attn_mask=eye)",
            ),
            ("x.mean(dim=1)", "x[:, 0]"),
        ),
    ),
    _short(
        name="channel_dropped",
        family="input_dropped",
        parent="vit",
        where=("(model)", "patches"),
        why="the last channel is taken for one of transparency",
        edits=(
            (
                "x = self.dropout(self.patches(pixel_values))",
                "pixel_values = torch.cat([pixel_values[:, :2], pixel_values[:, :1]], dim=1)\n"
                "        x = self.dropout(self.patches(pixel_values))",
            ),
        ),
    ),
    _short(
        name="patch_dropped",
        family="input_dropped",
        parent="vit",
        where=("patches",),
        why="the first patch is taken for a class token and cut off",
        edits=(
            (
                "flatten(2).transpose(1, 2)\n",
                "flatten(2).transpose(1, 2)[:, 1:]\n",
            ),
            ("dim=1) + self.pos_embed", "dim=1) + self.pos_embed[:, 1:]"),
        ),
    ),
)
