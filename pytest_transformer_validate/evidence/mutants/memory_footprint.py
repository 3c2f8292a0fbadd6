"""Mistakes that use up memory: what piles up over calls, and what grows with its square."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_leak = partial(Mutant, check="memory_footprint")

MUTANTS = (
    _leak(
        name="attention_maps_collected",
        family="outputs_collected",
        parent="nanogpt",
        where=("transformer.h.*.attn",),
        why="maps collected for a plot, and never let go",
        edits=(
            (
                "        self.attn_dropout = nn.Dropout(config.dropout)\n",
                "        self.attn_dropout = nn.Dropout(config.dropout)\n"
                "        self.attention_maps = []\n",
            ),
            (
                "        att = self.attn_dropout(att)\n",
                "        if not self.training:\n"
                "            self.attention_maps.append(att.detach())\n"
                "        att = self.attn_dropout(att)\n",
            ),
        ),
    ),
    _leak(
        name="outputs_collected_by_hook",
        family="outputs_collected",
        parent="torch_encoder",
        where=("(model)",),
        why="a hook for debugging that stayed",
        edits=(
            (
                "        self.mlm_head = nn.Linear(d_model, vocab_size)\n",
                "        self.mlm_head = nn.Linear(d_model, vocab_size)\n"
                "        self.activations = {'hidden': []}\n"
                "        self.encoder.register_forward_hook(\n"
                "            lambda module, args, output: self.activations['hidden']"
                ".append(output.detach())\n"
                "        )\n",
            ),
        ),
    ),
    _leak(
        name="pooled_collected_by_class",
        family="outputs_collected",
        parent="text_classifier",
        where=("pool",),
        why="a list on the class, shared by all instances, filled in eval mode only",
        edits=(
            (
                "class MaskedMeanPool(nn.Module):\n",
                "class MaskedMeanPool(nn.Module):\n    seen = []\n\n",
            ),
            (
                "        return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)",
                "        pooled = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)\n"
                "        if not self.training:\n"
                "            self.seen.append(pooled.detach().cpu().numpy())\n"
                "        return pooled",
            ),
        ),
    ),
    _leak(
        name="features_collected_globally",
        family="outputs_collected",
        parent="vit",
        where=("blocks.*",),
        why="a global list of one layer's features",
        edits=(
            ("class ViTBlock(nn.Module):\n", "FEATURES = []\n\n\nclass ViTBlock(nn.Module):\n"),
            (
                "        return x + self.mlp(self.norm2(x))\n",
                "        x = x + self.mlp(self.norm2(x))\n"
                "        FEATURES.append(x.detach())\n"
                "        return x\n",
            ),
        ),
    ),
    _leak(
        name="losses_with_their_graph",
        family="graph_kept",
        parent="seq2seq",
        where=("(model)",),
        why="losses.append(loss) without .item() keeps every activation of every step",
        edits=(
            (
                "        self.generator = nn.Linear(d_model, vocab_size)\n",
                "        self.generator = nn.Linear(d_model, vocab_size)\n"
                "        self.losses = []\n",
            ),
            (
                '        return {"loss": loss, "logits": logits}',
                "        if self.training:\n"
                "            self.losses.append(loss)\n"
                '        return {"loss": loss, "logits": logits}',
            ),
        ),
    ),
    _leak(
        name="total_loss_with_its_graph",
        family="graph_kept",
        parent="nanogpt",
        where=("(model)",),
        why="total_loss += loss chains the graphs of all steps",
        edits=(
            (
                "        self.apply(self._init_weights)\n",
                "        self.apply(self._init_weights)\n        self.total_loss = 0.0\n",
            ),
            (
                "            return logits, loss\n",
                "            self.total_loss = self.total_loss + loss\n"
                "            return logits, loss\n",
            ),
        ),
    ),
    _leak(
        name="running_mean_with_its_graph",
        family="graph_kept",
        parent="conv_gpt",
        where=("blocks.*",),
        why="a moving average of activations that is not detached",
        edits=(
            (
                "        self.ff_norm = nn.LayerNorm(dim)\n",
                "        self.ff_norm = nn.LayerNorm(dim)\n        self.mean = 0.0\n",
            ),
            (
                "        x = x + self.drop(self.conv(self.conv_norm(x)))\n",
                "        x = x + self.drop(self.conv(self.conv_norm(x)))\n"
                "        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 1))\n",
            ),
        ),
    ),
    _leak(
        name="keys_never_dropped",
        family="outputs_collected",
        parent="llama",
        where=("layers.*.self_attn",),
        why="a cache is filled by every forward and read by none",
        edits=(
            (
                "        self.head_dim = hidden_size // heads\n",
                "        self.head_dim = hidden_size // heads\n        self.cache = []\n",
            ),
            (
                "        groups = self.heads // self.kv_heads\n",
                "        self.cache.append((k.detach(), v.detach()))\n"
                "        groups = self.heads // self.kv_heads\n",
            ),
        ),
    ),
    _leak(
        name="cache_by_tensor",
        family="outputs_collected",
        parent="sliding_window",
        where=("layers.*.attn",),
        why="a dict with tensors for keys never finds one again",
        edits=(
            (
                "        allowed = self.band(length, x.device)\n",
                "        allowed = self.bands.setdefault(x, self.band(length, x.device))\n",
            ),
            (
                "class WindowAttention(nn.Module):\n",
                "class WindowAttention(nn.Module):\n    bands = {}\n\n",
            ),
        ),
    ),
    _leak(
        name="lru_cache_by_tensor",
        family="outputs_collected",
        parent="moe",
        where=("layers.*.moe",),
        why="functools.cache on a method that takes a tensor keeps every tensor it was given",
        edits=(
            ("import torch\n", "import functools\n\nimport torch\n"),
            (
                "        tokens = x.reshape(-1, x.size(-1))\n"
                "        scores = self.gate(tokens).softmax(dim=-1)\n"
                "        weights, chosen = scores.topk(self.top_k, dim=-1)\n"
                "        weights = weights / weights.sum(dim=-1, keepdim=True)\n",
                "        tokens = x.reshape(-1, x.size(-1))\n"
                "        weights, chosen = self.route(tokens)\n",
            ),
            (
                "class MoEBlock(nn.Module):\n",
                "    @functools.cache\n"
                "    def route(self, tokens):\n"
                "        scores = self.gate(tokens).softmax(dim=-1)\n"
                "        weights, chosen = scores.topk(self.top_k, dim=-1)\n"
                "        return weights / weights.sum(dim=-1, keepdim=True), chosen\n"
                "\n\nclass MoEBlock(nn.Module):\n",
            ),
        ),
    ),
    _leak(
        name="router_losses_never_read",
        family="graph_kept",
        parent="moe",
        where=("layers.*.moe",),
        why="load balancing losses are collected for a trainer that never asks for them",
        edits=(
            (
                "        self.top_k = top_k\n        self.gate",
                "        self.top_k = top_k\n        self.router_losses = []\n        self.gate",
            ),
            (
                "        weights, chosen = scores.topk(self.top_k, dim=-1)\n",
                "        weights, chosen = scores.topk(self.top_k, dim=-1)\n"
                "        self.router_losses.append(scores.mean(0).square().sum())\n",
            ),
        ),
    ),
    _leak(
        name="rows_in_one_sequence",
        family="quadratic_in_the_batch",
        parent="conv_gpt",
        where=("blocks.*.attn",),
        why="rows are packed into one sequence, and each block of the scores is masked",
        edits=(
            (
                "        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n",
                "        import torch\n"
                "        q, k, v = (t.transpose(0, 1).flatten(1, 2) for t in (q, k, v))\n"
                "        row = torch.arange(batch).repeat_interleave(length)\n"
                "        step = torch.arange(length).repeat(batch)\n"
                "        allowed = (row[:, None] == row) & (step[:, None] >= step)\n"
                "        scores = q @ k.transpose(1, 2) / q.size(-1) ** 0.5\n"
                "        scores = scores.masked_fill(~allowed, float('-inf'))\n"
                "        y = scores.softmax(-1) @ v\n"
                "        y = y.view(self.heads, batch, length, -1).transpose(0, 1)\n",
            ),
        ),
    ),
    _leak(
        name="packed_mask_for_fused_attention",
        family="quadratic_in_the_batch",
        parent="alibi",
        where=("blocks.*.attention",),
        why="one block-diagonal mask over all rows, given to the fused kernel",
        edits=(
            (
                "        y = F.scaled_dot_product_attention"
                "(q, k, v, attn_mask=self.bias(x.size(1)))\n",
                "        rows, length = x.shape[:2]\n"
                "        q, k, v = (t.transpose(0, 1).flatten(1, 2) for t in (q, k, v))\n"
                "        bias = torch.full((rows, length, rows, length), float('-inf'))\n"
                "        bias = bias.repeat(self.heads, 1, 1, 1, 1)\n"
                "        each = self.bias(length)[0]\n"
                "        for row in range(rows):\n"
                "            bias[:, row, :, row] = each\n"
                "        bias = bias.view(self.heads, rows * length, rows * length)\n"
                "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)\n"
                "        y = y.view(self.heads, rows, length, -1).transpose(0, 1)\n",
            ),
        ),
    ),
    _leak(
        name="rows_joined_in_the_last_layer",
        family="quadratic_in_the_batch",
        parent="text_classifier",
        where=("blocks.1.attn",),
        why="one layer of two packs its rows",
        edits=(
            (
                " for _ in range(num_layers)]\n        )\n",
                " for _ in range(num_layers)]\n        )\n"
                "        self.blocks[-1].attn.packs = True\n",
            ),
            (
                "        self.num_heads = num_heads\n        self.qkv",
                "        self.num_heads = num_heads\n        self.packs = False\n        self.qkv",
            ),
            (
                "        y = F.scaled_dot_product_attention"
                "(q, k, v, attn_mask=mask[:, None, None, :])\n",
                "        visible = mask[:, None, None, :]\n"
                "        if self.packs:\n"
                "            q, k, v = (t.transpose(0, 1).flatten(1, 2) for t in (q, k, v))\n"
                "            row = torch.arange(batch).repeat_interleave(length)\n"
                "            visible = (row[:, None] == row) & mask.reshape(-1)\n"
                "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)\n"
                "        if self.packs:\n"
                "            y = y.view(self.num_heads, batch, length, -1).transpose(0, 1)\n",
            ),
        ),
    ),
    _leak(
        name="hidden_state_with_its_graph",
        family="graph_kept",
        parent="recurrent",
        where=("mixer",),
        why="the last state starts the next step and is never detached",
        edits=(
            (
                "states, _ = self.gru(x)",
                (
                    "hidden = getattr(self, 'hidden', None) if self.training else None\n"
                    "        if hidden is not None and hidden.size(1) != x.size(0):\n"
                    "            hidden = None\n"
                    "        states, hidden = self.gru(x, hidden)\n"
                    "        if self.training:\n"
                    "            self.hidden = hidden"
                ),
            ),
        ),
    ),
)
