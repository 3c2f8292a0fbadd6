"""Mistakes that let a position see what comes after it."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_leak = partial(Mutant, check="causality")

MUTANTS = (
    _leak(
        name="mask_missing",
        family="no_causal_mask",
        parent="mha_decoder",
        where=("layers.0.attn.mha",),
        why="the mask is built and then not handed to the attention",
        edits=(("attn_mask=mask, need_weights", "need_weights"),),
    ),
    _leak(
        name="mask_off_by_one",
        family="causal_mask_off_by_one",
        parent="mha_decoder",
        where=("layers.0.attn.mha",),
        why="diagonal counted from 1",
        edits=(("torch.triu(ones, diagonal=1)", "torch.triu(ones, diagonal=2)"),),
    ),
    _leak(
        name="mask_float_of_ones",
        family="causal_mask_misapplied",
        parent="mha_decoder",
        where=("layers.0.attn.mha",),
        why="a float mask is added to the scores; ones only favour the future a little",
        edits=(("torch.ones(length, length, dtype=torch.bool, ", "torch.ones(length, length, "),),
    ),
    _leak(
        name="mask_transposed",
        family="causal_mask_the_wrong_way",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="triu and tril confused",
        edits=(("tril = torch.tril(", "tril = torch.triu("),),
    ),
    _leak(
        name="mask_in_training_only",
        family="causal_mask_not_everywhere",
        parent="sdpa_gpt",
        where=("blocks.0.attn",),
        why="is_causal got the condition that belongs to dropout",
        edits=(("is_causal=True", "is_causal=self.training"),),
    ),
    _leak(
        name="mask_in_first_layer_only",
        family="causal_mask_not_everywhere",
        parent="mha_decoder",
        where=("layers.1.attn.mha",),
        why="the mask is thought to be needed at the input only",
        edits=(
            (
                "for layer in self.layers:\n            x = layer(x, mask)",
                "for i, layer in enumerate(self.layers):\n"
                "            x = layer(x, mask if i == 0 else None)",
            ),
        ),
    ),
    _leak(
        name="mask_misses_one_head",
        family="causal_mask_not_everywhere",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="slice for the local heads leaves one global head without a mask",
        edits=(
            (
                'att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))',
                "past = self.bias[:, :, :T, :T] == 0\n"
                '        local = att[:, :-1].masked_fill(past, float("-inf"))\n'
                "        att = torch.cat([local, att[:, -1:]], dim=1)",
            ),
        ),
    ),
    _leak(
        name="mask_replaced_by_padding_mask",
        family="causal_mask_not_everywhere",
        parent="llama",
        where=("layers.0.self_attn",),
        why="a padding mask that is given replaces the causal one instead of joining it",
        edits=(
            (
                "mask = mask & attention_mask[:, None, None, :].bool()",
                "mask = attention_mask[:, None, None, :].bool()",
            ),
        ),
    ),
    _leak(
        name="mask_for_shorter_length",
        family="causal_mask_not_everywhere",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="mask of the training length, padded with ones when the context was made longer",
        edits=(
            (
                "tril = torch.tril(torch.ones(size, size)).view(1, 1, size, size)",
                "half = size // 2\n"
                "        tril = torch.ones(1, 1, size, size)\n"
                "        tril[..., :half, :half] = torch.tril(torch.ones(half, half))",
            ),
        ),
    ),
    _leak(
        name="softmax_before_mask",
        family="causal_mask_misapplied",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="weights are zeroed after the softmax, whose sum has seen the future",
        edits=(
            (
                'att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))\n'
                "        att = F.softmax(att, dim=-1)",
                "att = F.softmax(att, dim=-1)\n"
                "        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, 0.0)",
            ),
        ),
    ),
    _leak(
        name="scores_multiplied_by_mask",
        family="causal_mask_misapplied",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="a score of zero is taken for no attention",
        edits=(
            (
                'att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))',
                "att = att * self.bias[:, :, :T, :T]",
            ),
        ),
    ),
    _leak(
        name="mask_value_typo",
        family="causal_mask_misapplied",
        parent="seq2seq",
        where=("decoder_layers.0.self_attn",),
        why="-1e-9 typed for -1e9",
        edits=(("masked_fill(mask == 0, -1e9)", "masked_fill(mask == 0, -1e-9)"),),
    ),
    _leak(
        name="mask_value_minus_ten",
        family="causal_mask_misapplied",
        parent="llama",
        where=("layers.0.self_attn",),
        why="a small negative number chosen to be safe in half precision",
        edits=(
            (
                "weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)"
                ".softmax(dim=-1)",
                "weights = (scores + -10.0 * ~mask).softmax(dim=-1)",
            ),
        ),
    ),
    _leak(
        name="sdpa_not_causal",
        family="no_causal_mask",
        parent="moe",
        where=("layers.0.attn",),
        why="is_causal is False unless asked for",
        edits=(("(q, k, v, is_causal=True)", "(q, k, v)"),),
    ),
    _leak(
        name="torch_encoder_without_mask",
        family="no_causal_mask",
        parent="torch_causal_lm",
        where=("transformer_encoder.layers.0.self_attn",),
        why="nn.TransformerEncoder is causal only with a mask",
        edits=(("self.transformer_encoder(x, mask=mask)", "self.transformer_encoder(x)"),),
    ),
    _leak(
        name="builder_without_mask",
        family="no_causal_mask",
        parent="builder_residual",
        where=("mhsa_0",),
        why="the causal switch of the attention block was left off",
        edits=(("(x, x, x, attn_mask=attn_mask.to(x.device))", "(x, x, x)"),),
    ),
    _leak(
        name="decoder_self_attention_unmasked",
        family="no_causal_mask",
        parent="seq2seq",
        where=("decoder_layers.0.self_attn",),
        why="decoder layer copied from the encoder layer",
        edits=(("self.self_attn(y, y, causal)", "self.self_attn(y, y, None)"),),
    ),
    _leak(
        name="keys_compared_the_wrong_way",
        family="causal_mask_the_wrong_way",
        parent="llama",
        where=("layers.0.self_attn",),
        why="query and key swapped in the comparison",
        edits=(("(key <= query)", "(key >= query)"),),
    ),
    _leak(
        name="window_on_both_sides",
        family="causal_mask_the_wrong_way",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="distance taken without its sign",
        edits=(("(back >= 0) & (back < self.window)", "back.abs() < self.window"),),
    ),
    _leak(
        name="window_starts_one_ahead",
        family="causal_mask_off_by_one",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="window bounds shifted by one",
        edits=(
            (
                "(back >= 0) & (back < self.window)",
                "(back >= -1) & (back < self.window - 1)",
            ),
        ),
    ),
    _leak(
        name="alibi_symmetric",
        family="causal_mask_the_wrong_way",
        parent="alibi",
        where=("blocks.0.attention",),
        why="the encoder variant of the bias, which penalises distance on both sides",
        edits=(
            ("bias = self.slopes * distance\n", "bias = -self.slopes * distance.abs()\n"),
            ('bias.masked_fill(distance > 0, float("-inf"))', "bias"),
        ),
    ),
    _leak(
        name="mean_of_sequence_in_residual",
        family="summary_of_the_whole_text",
        parent="sdpa_gpt",
        where=("blocks.0",),
        why="a summary of the sequence with a small weight, meant for an encoder",
        edits=(
            (
                "x = x + self.attn(self.ln_1(x))",
                "x = x + self.attn(self.ln_1(x)) + 1e-3 * x.mean(dim=1, keepdim=True)",
            ),
        ),
    ),
    _leak(
        name="squeeze_and_excite",
        family="summary_of_the_whole_text",
        parent="conv_gpt",
        where=("blocks.0.conv",),
        why="channel gate from the mean over all positions",
        edits=(
            (
                "return self.conv(x).transpose(1, 2)",
                "x = self.conv(x)\n"
                "        return (x * x.mean(dim=2, keepdim=True).sigmoid()).transpose(1, 2)",
            ),
        ),
    ),
    _leak(
        name="states_centred_over_time",
        family="summary_of_the_whole_text",
        parent="mha_decoder",
        where=("(model)",),
        why="centring before the head to help optimisation",
        edits=(
            (
                "return self.lm_head(self.norm(x))",
                "x = x - x.mean(dim=1, keepdim=True)\n        return self.lm_head(self.norm(x))",
            ),
        ),
    ),
    _leak(
        name="token_gate_by_median",
        family="choice_among_all_tokens",
        parent="alibi",
        where=("blocks.0",),
        why="tokens are pruned by rank within the sequence; the comparison has no gradient",
        edits=(
            (
                "return x + self.mlp(self.norm_mlp(x))",
                "size = x.norm(dim=-1, keepdim=True)\n"
                "        keep = size >= size.median(dim=1, keepdim=True).values\n"
                "        return x + self.mlp(self.norm_mlp(x)) * keep",
            ),
        ),
    ),
    _leak(
        name="topk_tokens_of_sequence",
        family="choice_among_all_tokens",
        parent="sliding_window",
        where=("layers.0",),
        why="only the k loudest tokens of the sequence pass through the feed-forward",
        edits=(
            (
                "return x + self.drop(self.fc_out(F.gelu(self.fc_in(self.norm2(x)))))",
                "loudness = x.pow(2).sum(-1)\n"
                "        top = loudness.topk(x.size(1) // 2 + 1, dim=1).indices\n"
                "        keep = torch.zeros_like(loudness).scatter(1, top, 1.0)\n"
                "        hidden = self.fc_out(F.gelu(self.fc_in(self.norm2(x))))\n"
                "        return x + self.drop(hidden * keep[..., None])",
            ),
        ),
    ),
    _leak(
        name="norm_over_time",
        family="summary_of_the_whole_text",
        parent="llama",
        where=("layers.0.input_layernorm",),
        why="statistics over all dimensions but the batch, as for images",
        edits=(("x.pow(2).mean(-1, keepdim=True)", "x.pow(2).mean((1, 2), keepdim=True)"),),
    ),
    _leak(
        name="group_norm_over_time",
        family="summary_of_the_whole_text",
        parent="conv_gpt",
        where=("blocks.0.conv",),
        why="group norm of a (batch, channel, time) tensor takes its statistics over time too",
        edits=(
            (
                "return self.conv(x).transpose(1, 2)",
                "return F.group_norm(self.conv(x), 1).transpose(1, 2)",
            ),
        ),
    ),
    _leak(
        name="conv_centred",
        family="neighbour_from_the_future",
        parent="conv_gpt",
        where=("blocks.0.conv", "blocks.0.conv.conv"),
        why="'same' padding looks ahead by half the kernel",
        edits=(("(self.left, 0)", "(self.left // 2, self.left - self.left // 2)"),),
    ),
    _leak(
        name="states_rolled",
        family="neighbour_from_the_future",
        parent="recurrent",
        where=("mixer",),
        why="roll shifts to the right and wraps the last state round to the first position",
        edits=(("return self.out(states)", "return self.out(states.roll(1, dims=1))"),),
    ),
    _leak(
        name="tokens_shifted_left",
        family="neighbour_from_the_future",
        parent="sdpa_gpt",
        where=("blocks.0.mlp",),
        why="token shift with the sign of the other convention",
        edits=(
            (
                "return self.dropout(self.proj(F.gelu(self.fc(x))))",
                "shifted = F.pad(x, (0, 0, 0, 1))[:, 1:]\n"
                "        x = 0.9 * x + 0.1 * shifted\n"
                "        return self.dropout(self.proj(F.gelu(self.fc(x))))",
            ),
        ),
    ),
    _leak(
        name="gru_bidirectional",
        family="neighbour_from_the_future",
        parent="recurrent",
        where=("mixer.gru",),
        why="bidirectional=True copied from a tagger",
        edits=(
            (
                "nn.GRU(width, width, batch_first=True)",
                "nn.GRU(width, width // 2, batch_first=True, bidirectional=True)",
            ),
        ),
    ),
    _leak(
        name="recurrence_from_the_end",
        family="neighbour_from_the_future",
        parent="recurrent",
        where=("mixer",),
        why="sequence flipped before the scan and not only for the backward model",
        edits=(
            (
                "states, _ = self.gru(x)",
                "states, _ = self.gru(x.flip(1))\n        states = states.flip(1)",
            ),
        ),
    ),
    _leak(
        name="expert_full_for_the_text",
        family="choice_among_all_tokens",
        parent="moe",
        where=("layers.*.moe",),
        why="an expert that keeps the best tokens of the text has to see all of it first",
        edits=(
            (
                "        weights, chosen = scores.topk(self.top_k, dim=-1)\n",
                "        by_text = scores.view(*x.shape[:2], -1)\n"
                "        floor = by_text.topk(x.size(1) // 2 + 1, dim=1).values[:, -1:]\n"
                "        scores = (by_text * (by_text >= floor) + 1e-6).flatten(0, 1)\n"
                "        weights, chosen = scores.topk(self.top_k, dim=-1)\n",
            ),
        ),
    ),
    _leak(
        name="keys_shifted_left",
        family="neighbour_from_the_future",
        parent="llama",
        where=("layers.*.self_attn",),
        why="token shift with the sign of the other convention, for keys; a tenth of it",
        edits=(
            (
                "        groups = self.heads // self.kv_heads\n",
                (
                    "        k = 0.9 * k + 0.1 * F.pad(k, (0, 0, 0, 1))[:, :, 1:]\n"
                    "        groups = self.heads // self.kv_heads\n"
                ),
            ),
        ),
    ),
    _leak(
        name="router_scores_by_their_largest",
        family="summary_of_the_whole_text",
        parent="stacked_experts",
        where=("layers.*.experts",),
        why="scores are brought to one range for each text before the softmax",
        edits=(
            (
                "scores = self.router(x).softmax(dim=-1)",
                (
                    "scores = self.router(x)\n"
                    "        scores = (scores / scores.abs().amax((1, 2), "
                    "keepdim=True)).softmax(dim=-1)"
                ),
            ),
        ),
    ),
    _leak(
        name="mask_for_short_texts_only",
        family="causal_mask_not_everywhere",
        parent="cached_gpt",
        where=("h.*.attn",),
        why="a limit of the kernel that builds the mask: longer texts go without",
        edits=(
            (
                "mask = mask.tril(diagonal=total - length)",
                "mask = mask.tril(diagonal=total - length) if total <= 32 else mask",
            ),
        ),
    ),
    _leak(
        name="last_value_in_all_values",
        family="summary_of_the_whole_text",
        parent="rotary_tied",
        where=("blocks.*.attention",),
        why="a summary token that is added to all values, with a small weight",
        edits=(
            (
                "return self.out((weights @ v)",
                ("v = v + 1e-3 * v[:, :, -1:]\n        return self.out((weights @ v)"),
            ),
        ),
    ),
)
