"""Mistakes that make work grow faster than it has to; the logits are right."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_slow = partial(Mutant, check="inference_speed")

MUTANTS = (
    _slow(
        name="every_prefix_again",
        family="prefixes_again",
        parent="sdpa_gpt",
        where=("(model)",),
        why="the loop of generate() moved into forward: all blocks run for every position",
        edits=(
            (
                "        for block in self.blocks:\n            x = block(x)\n",
                "        ends = []\n"
                "        for stop in range(1, x.size(1) + 1):\n"
                "            y = x[:, :stop]\n"
                "            for block in self.blocks:\n"
                "                y = block(y)\n"
                "            ends.append(y[:, -1])\n"
                "        x = torch.stack(ends, 1)\n",
            ),
        ),
    ),
    _slow(
        name="every_prefix_again_in_attention",
        family="prefixes_again",
        parent="llama",
        where=("layers.*.self_attn",),
        why="attention over a prefix is computed whole to keep its last row",
        edits=(
            (
                "        out = weights @ v.repeat_interleave(groups, 1)\n",
                "        v = v.repeat_interleave(groups, 1)\n"
                "        full = weights\n"
                "        rows = [\n"
                "            (full[:, :, : t + 1, : t + 1] @ v[:, :, : t + 1])[:, :, -1:]\n"
                "            for t in range(length)\n"
                "        ]\n"
                "        out = torch.cat(rows, 2) if past is None else full @ v\n",
            ),
        ),
    ),
    _slow(
        name="every_prefix_again_with_mask",
        family="prefixes_again",
        parent="alibi",
        where=("blocks.*.attention",),
        why="causality by calling the kernel once for each prefix",
        edits=(
            (
                "        y = F.scaled_dot_product_attention"
                "(q, k, v, attn_mask=self.bias(x.size(1)))\n",
                "        y = torch.cat(\n"
                "            [\n"
                "                F.scaled_dot_product_attention(\n"
                "                    *(s[:, :, :t] for s in (q, k, v)), attn_mask=self.bias(t)\n"
                "                )[:, :, -1:]\n"
                "                for t in range(1, x.size(1) + 1)\n"
                "            ],\n"
                "            2,\n"
                "        )\n",
            ),
        ),
    ),
    _slow(
        name="source_encoded_at_every_step",
        family="work_repeated",
        parent="seq2seq",
        where=("(model)",),
        why="encode() stands inside the loop over target positions",
        edits=(
            (
                "        logits = self.decode(decoder_input_ids, memory, mask)\n",
                "        steps = []\n"
                "        for t in range(decoder_input_ids.size(1)):\n"
                "            memory = self.encode(input_ids, mask)\n"
                "            target = decoder_input_ids[:, : t + 1]\n"
                "            steps.append(self.decode(target, memory, mask)[:, -1])\n"
                "        logits = torch.stack(steps, 1)\n",
            ),
        ),
    ),
    _slow(
        name="batch_run_for_every_row",
        family="work_repeated",
        parent="text_classifier",
        where=("(model)",),
        why="a loop over rows that gives the whole batch to the blocks and keeps one row",
        edits=(
            (
                "            x = block(x, mask)\n",
                "            x = torch.stack([block(x, mask)[i] for i in range(x.size(0))])\n",
            ),
        ),
    ),
    _slow(
        name="experts_run_for_every_row",
        family="work_repeated",
        parent="moe",
        where=("layers.*",),
        why="the loop over rows calls the layer with all of them",
        edits=(
            (
                "        return x + self.moe(self.moe_norm(x))\n",
                "        h = self.moe_norm(x)\n"
                "        return x + torch.stack([self.moe(h)[i] for i in range(h.size(0))])\n",
            ),
        ),
    ),
)
