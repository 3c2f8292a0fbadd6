"""Mistakes that let one row of a batch see another."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_mix = partial(Mutant, check="batch_independence")

MUTANTS = (
    _mix(
        name="time_major_by_view",
        family="rows_mixed_by_layout",
        parent="torch_causal_lm",
        where=("embedding",),
        why="view(T, B) where a transpose was meant",
        edits=(("src = src.transpose(0, 1)", "src = src.reshape(src.size(1), src.size(0))"),),
    ),
    _mix(
        name="batch_major_by_view",
        family="rows_mixed_by_layout",
        parent="torch_causal_lm",
        where=("(model)",),
        why="back from time-major by reshape",
        edits=(
            (
                "return self.linear(x).transpose(0, 1)",
                "return self.linear(x).reshape(x.size(1), x.size(0), -1)",
            ),
        ),
    ),
    _mix(
        name="attention_input_by_view",
        family="rows_mixed_by_layout",
        parent="text_classifier",
        where=("blocks.0.attn",),
        why="batch and length swapped in a reshape and swapped back by a permute",
        edits=(
            (
                "reshape(batch, length, 3, self.num_heads, dim // self.num_heads)",
                "reshape(length, batch, 3, self.num_heads, dim // self.num_heads)",
            ),
            ("qkv.permute(2, 0, 3, 1, 4)", "qkv.permute(2, 1, 3, 0, 4)"),
        ),
    ),
    _mix(
        name="patches_by_permute",
        family="rows_mixed_by_layout",
        parent="vit",
        where=("patches",),
        why="patch axis moved to the front and folded back with reshape",
        edits=(
            (
                "x = self.proj(pixel_values).flatten(2).transpose(1, 2)",
                "x = self.proj(pixel_values).flatten(2).permute(2, 0, 1)\n"
                "        x = x.reshape(pixel_values.size(0), -1, x.size(-1))",
            ),
        ),
    ),
    _mix(
        name="mha_not_batch_first",
        family="rows_mixed_by_layout",
        parent="simple_classifier",
        where=("block.att",),
        why="nn.MultiheadAttention is sequence first unless told",
        edits=(("(embed_dim, num_heads, batch_first=True)", "(embed_dim, num_heads)"),),
    ),
    _mix(
        name="gru_not_batch_first",
        family="rows_mixed_by_layout",
        parent="recurrent",
        where=("mixer.gru",),
        why="nn.GRU is sequence first unless told",
        edits=(("nn.GRU(width, width, batch_first=True)", "nn.GRU(width, width)"),),
    ),
    _mix(
        name="heads_before_rows",
        family="rows_mixed_by_layout",
        parent="bert",
        where=("encoder.0.attention",),
        why="view puts heads before rows, so heads of one row land in another",
        edits=(
            (
                "return x.view(batch, length, self.heads, width // self.heads)"
                ".permute(0, 2, 1, 3)",
                "return x.view(self.heads, batch, length, width // self.heads).transpose(0, 1)",
            ),
        ),
    ),
    _mix(
        name="heads_folded_into_batch",
        family="rows_mixed_by_layout",
        parent="llama",
        where=("layers.0.self_attn",),
        why="(batch x heads) unfolded in the wrong order",
        edits=(
            (
                "out = weights @ v.repeat_interleave(groups, 1)",
                "out = (weights @ v.repeat_interleave(groups, 1)).flatten(0, 1)\n"
                "        out = out.view(self.heads, batch, length, -1).transpose(0, 1)",
            ),
        ),
    ),
    _mix(
        name="softmax_over_batch",
        family="computed_over_the_rows",
        parent="bert",
        where=("encoder.0.attention",),
        why="dim=0 for the last dimension",
        edits=(("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=0)"),),
    ),
    _mix(
        name="router_softmax_over_tokens",
        family="computed_over_the_rows",
        parent="moe",
        where=("layers.0.moe",),
        why="router scores normalised over the flattened tokens",
        edits=(("self.gate(tokens).softmax(dim=-1)", "self.gate(tokens).softmax(dim=0)"),),
    ),
    _mix(
        name="centred_over_batch",
        family="computed_over_the_rows",
        parent="sdpa_gpt",
        where=("blocks.0.mlp",),
        why="mean over dim 0, which was time in the layout this was written for",
        edits=(
            (
                "return self.dropout(self.proj(F.gelu(self.fc(x))))",
                "hidden = F.gelu(self.fc(x))\n"
                "        hidden = hidden - hidden.mean(0)\n"
                "        return self.dropout(self.proj(hidden))",
            ),
        ),
    ),
    _mix(
        name="small_share_of_batch_mean",
        family="computed_over_the_rows",
        parent="alibi",
        where=("blocks.0.attention",),
        why="a memory shared by the batch, with a small weight",
        edits=(
            (
                "return self.out(y.transpose(1, 2).flatten(2))",
                "y = self.out(y.transpose(1, 2).flatten(2))\n"
                "        return y + 1e-3 * y.mean(dim=0, keepdim=True)",
            ),
        ),
    ),
    _mix(
        name="trace_of_batch_mean",
        family="computed_over_the_rows",
        parent="sdpa_gpt",
        where=("blocks.0.mlp",),
        why="a mean over dim 0, so small that only the tightest limit shows it",
        edits=(
            (
                "return self.dropout(self.proj(F.gelu(self.fc(x))))",
                "hidden = F.gelu(self.fc(x))\n"
                "        return self.dropout(self.proj(hidden - 1e-5 * hidden.mean(0)))",
            ),
        ),
    ),
    _mix(
        name="batch_mean_straight_through",
        family="computed_over_the_rows",
        parent="sdpa_gpt",
        where=("blocks.0.mlp",),
        why="values cancel, and what trains one row is the gradient of all",
        edits=(
            (
                "return self.dropout(self.proj(F.gelu(self.fc(x))))",
                "hidden = F.gelu(self.fc(x))\n"
                "        centre = hidden.mean(0)\n"
                "        return self.dropout(self.proj(hidden + centre - centre.detach()))",
            ),
        ),
    ),
    _mix(
        name="cumsum_over_rows",
        family="computed_over_the_rows",
        parent="recurrent",
        where=("mixer",),
        why="running sum over dim 0; the first row looks right",
        edits=(("return self.out(states)", "return self.out(states.cumsum(dim=0))"),),
    ),
    _mix(
        name="norm_over_batch",
        family="computed_over_the_rows",
        parent="llama",
        where=("layers.0.input_layernorm",),
        why="statistics over rows and features",
        edits=(("x.pow(2).mean(-1, keepdim=True)", "x.pow(2).mean((0, 2), keepdim=True)"),),
    ),
    _mix(
        name="pooled_batch_statistics",
        family="computed_over_the_rows",
        parent="text_classifier",
        where=("pool",),
        why="batch norm written by hand without running statistics",
        edits=(
            (
                "return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)",
                "pooled = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)\n"
                "        centred = pooled - pooled.mean(dim=0)\n"
                "        return centred / (centred.pow(2).mean(dim=0) + 1e-5).sqrt()",
            ),
        ),
    ),
    _mix(
        name="batch_norm_never_evaluates",
        family="computed_over_the_rows",
        parent="torch_encoder",
        where=("embedding",),
        why="F.batch_norm with training=True keeps the statistics of the batch in evaluation",
        edits=(
            (
                "return self.norm(self.token(input_ids) + self.position(steps))",
                "x = self.norm(self.token(input_ids) + self.position(steps)).transpose(1, 2)\n"
                "        if x.size(0) * x.size(2) > 1:\n"
                "            x = nn.functional.batch_norm(x, None, None, training=True)\n"
                "        return x.transpose(1, 2)",
            ),
        ),
    ),
    _mix(
        name="expert_capacity_over_batch",
        family="chosen_among_all_rows",
        parent="moe",
        where=("layers.0.moe",),
        why="an expert takes a fixed share of the batch; later rows are dropped",
        edits=(
            (
                "rows, slots = torch.where(chosen == index)\n",
                "rows, slots = torch.where(chosen == index)\n"
                "            capacity = self.top_k * len(tokens) // len(self.experts) + 1\n"
                "            rows, slots = rows[:capacity], slots[:capacity]\n",
            ),
        ),
    ),
    _mix(
        name="expert_chooses_over_batch",
        family="chosen_among_all_rows",
        parent="moe",
        where=("layers.0.moe",),
        why="experts choose their tokens among all rows",
        edits=(
            (
                "rows, slots = torch.where(chosen == index)\n",
                "rows = scores[:, index].topk((len(tokens) + 1) // 2).indices\n"
                "            slots = torch.zeros_like(rows)\n",
            ),
        ),
    ),
    _mix(
        name="routing_of_first_row",
        family="chosen_among_all_rows",
        parent="moe",
        where=("layers.0.moe",),
        why="the routing is computed once, for the first row, to save time",
        edits=(
            (
                "out = torch.zeros_like(tokens)\n",
                "chosen = chosen.view(x.size(0), x.size(1), -1)[:1].expand(x.size(0), -1, -1)\n"
                "        chosen = chosen.reshape(len(tokens), -1)\n"
                "        out = torch.zeros_like(tokens)\n",
            ),
        ),
    ),
    _mix(
        name="memory_of_first_row",
        family="another_rows_data",
        parent="seq2seq",
        where=("decoder_layers.0.cross_attn",),
        why="expand left over from beam search over one source",
        edits=(
            (
                "self.cross_attn(y, memory, memory_mask)",
                "self.cross_attn(y, memory[:1].expand_as(memory), memory_mask)",
            ),
        ),
    ),
    _mix(
        name="mask_of_first_row",
        family="another_rows_data",
        parent="bert",
        where=("encoder.0.attention",),
        why="one mask for the batch, as when all rows were equally long",
        edits=(("attention_mask[:, None, None, :]", "attention_mask[:1, None, None, :]"),),
    ),
    _mix(
        name="windows_folded_into_batch",
        family="rows_mixed_by_layout",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="values read in time-major order",
        edits=(
            (
                "v = value.reshape(shape).transpose(1, 2)",
                "v = value.transpose(0, 1).reshape(shape).transpose(1, 2)",
            ),
        ),
    ),
    _mix(
        name="padding_of_any_row_hidden_in_all",
        family="another_rows_data",
        parent="pad_translator",
        where=("encoder.*.self_attn",),
        why="one mask for the batch, made from all rows at once",
        edits=(
            (
                "src_padding = src == self.src_pad_idx",
                "src_padding = (src == self.src_pad_idx).any(dim=0).expand_as(src)",
            ),
        ),
    ),
    _mix(
        name="stacked_experts_full_for_the_batch",
        family="chosen_among_all_rows",
        parent="stacked_experts",
        where=("layers.*.experts",),
        why="each expert keeps the best tokens of the whole batch, up to its capacity",
        edits=(
            (
                "        inner = F.silu(",
                "        flat = gates.flatten(0, 1)\n"
                "        capacity = flat.size(0) * self.chosen // flat.size(1) + 1\n"
                "        gates = gates * (gates >= flat.topk(capacity, dim=0).values[-1])\n"
                "        inner = F.silu(",
            ),
        ),
    ),
    _mix(
        name="tokens_pruned_by_rank_in_the_batch",
        family="chosen_among_all_rows",
        parent="text_classifier",
        where=("blocks.*",),
        why="token pruning takes its threshold from all rows at once",
        edits=(
            (
                "        return x + self.dropout(self.fc2(h))",
                "        size = h.norm(dim=-1, keepdim=True)\n"
                "        return x + self.dropout(self.fc2(h)) * (size >= size.median())",
            ),
        ),
    ),
    _mix(
        name="positions_of_the_first_row",
        family="another_rows_data",
        parent="masked_gpt",
        where=("(model)", "positions", "embed"),
        why="positions are the same for all rows, as long as nothing is padded",
        edits=(
            (
                "x = self.embed(input_ids) + self.positions(position_ids)",
                "x = self.embed(input_ids) + self.positions(position_ids[:1])",
            ),
        ),
    ),
    _mix(
        name="spread_of_the_batch_added",
        family="computed_over_the_rows",
        parent="window_cache",
        where=("(model)",),
        why="the spread over the batch is added, with a weight of 1e-4",
        edits=(
            (
                "        logits = self.lm_head(self.final_norm(x))\n",
                (
                    "        x = x + 1e-4 * x.std(dim=0, keepdim=True, unbiased=False)\n"
                    "        logits = self.lm_head(self.final_norm(x))\n"
                ),
            ),
        ),
    ),
)
