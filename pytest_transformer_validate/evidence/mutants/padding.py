"""Mistakes that let padding change the outputs of real tokens."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import ROOT, Mutant

_pad = partial(Mutant, check="padding")

MUTANTS = (
    _pad(
        name="padding_seen_in_last_layer",
        family="padding_seen_in_one_part",
        parent="bert",
        where=("encoder.1.attention",),
        why="the mask is handed to the first layer only",
        edits=(
            (
                "        for layer in self.encoder:\n            hidden = layer(hidden, mask)\n",
                "        for layer in self.encoder:\n            hidden = layer(hidden, mask)\n"
                "            mask = torch.zeros_like(mask)\n",
            ),
        ),
    ),
    _pad(
        name="padding_seen_by_translator_layer",
        family="padding_seen_in_one_part",
        parent="pad_translator",
        where=("encoder.1.self_attn",),
        why="layers called by hand; the second call was written without its mask",
        edits=(
            (
                "            memory = layer(memory, src_key_padding_mask=src_padding)\n",
                "            first = layer is self.encoder[0]\n"
                "            memory = layer(memory, "
                "src_key_padding_mask=src_padding if first else None)\n",
            ),
        ),
    ),
    _pad(
        name="padding_seen_in_long_texts",
        family="padding_seen_in_one_part",
        parent="local_encoder",
        where=("(model)", "layers.*.attention"),
        why="a way for long texts takes no mask, and relative positions hide on which side it is",
        edits=(
            (
                "keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask",
                "plain = attention_mask is None or input_ids.size(1) > 24\n"
                "        keep = torch.ones_like(input_ids) if plain else attention_mask",
            ),
        ),
    ),
    _pad(
        name="padding_seen_by_one_head",
        family="padding_seen_in_one_part",
        parent="text_classifier",
        where=("blocks.*.attn",),
        why="a global head is left unmasked",
        edits=(
            (
                "y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])",
                "seen = mask[:, None, None, :].repeat(1, self.num_heads, 1, 1)\n"
                "        seen[:, -1] = True\n"
                "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)",
            ),
        ),
    ),
    _pad(
        name="cross_attention_without_mask",
        family="padding_of_the_source_seen",
        parent="seq2seq",
        where=("decoder_layers.0.cross_attn",),
        why="the source's mask is not handed to cross attention",
        edits=(("self.cross_attn(y, memory, memory_mask)", "self.cross_attn(y, memory, None)"),),
    ),
    _pad(
        name="memory_padding_forgotten",
        family="padding_of_the_source_seen",
        parent="pad_translator",
        where=("decoder.0.multihead_attn",),
        why="memory_key_padding_mask is the mask that people forget",
        edits=(("                memory_key_padding_mask=src_padding,\n", ""),),
    ),
    _pad(
        name="cross_mask_in_first_layer_only",
        family="padding_of_the_source_seen",
        parent="cached_seq2seq",
        where=("decoder.1.cross_attn", "decoder.1"),
        why="the mask is dropped after its first use",
        edits=(
            (
                "            y, present = layer(y, memory, mask, layer_past)\n",
                "            y, present = layer(y, memory, mask, layer_past)\n"
                "            mask = None\n",
            ),
        ),
    ),
    _pad(
        name="mask_of_next_row",
        family="padding_mask_misapplied",
        parent="seq2seq",
        where=("encoder_layers.0.self_attn",),
        why="the batch was sorted by length and the mask was not",
        edits=(
            (
                "attention_mask[:, None, None, :]\n        memory",
                "attention_mask.roll(1, 0)[:, None, None, :]\n        memory",
            ),
        ),
    ),
    _pad(
        name="mask_adds_minus_ten",
        family="padding_mask_too_weak",
        parent="bert",
        where=("encoder.0.attention",),
        why="a mask that is added has to be larger than any score",
        edits=(("* -1e9", "* -10.0"),),
    ),
    _pad(
        name="mask_of_floats_is_added",
        family="padding_mask_too_weak",
        parent="torch_encoder",
        where=("encoder.layers.0.self_attn",),
        why="a float key_padding_mask is added to the scores, not read as true and false",
        edits=(("attention_mask == 0", "-1.0 * (attention_mask == 0)"),),
    ),
    _pad(
        name="mask_for_queries",
        family="padding_mask_misapplied",
        parent="text_classifier",
        where=("blocks.0.attn",),
        why="rows of padding are masked, columns are not",
        edits=(("attn_mask=mask[:, None, None, :]", "attn_mask=mask[:, None, :, None]"),),
    ),
    _pad(
        name="mask_or_causal",
        family="padding_mask_misapplied",
        parent="masked_gpt",
        where=("blocks.0.attn",),
        why="padding or later, written for masks that hide, kept for masks that allow",
        edits=(("causal[None, None] & attention_mask", "causal[None, None] | attention_mask"),),
    ),
    _pad(
        name="mask_dropped_for_equal_lengths",
        family="padding_mask_misapplied",
        parent="text_classifier",
        where=("blocks.0.attn",),
        why="a batch of equally long texts is taken for one without padding",
        edits=(
            (
                "mask = attention_mask.bool()\n",
                "mask = attention_mask.bool()\n"
                "        if mask.sum(dim=1).unique().numel() == 1:\n"
                "            mask = torch.ones_like(mask)\n",
            ),
        ),
    ),
    _pad(
        name="mask_dropped_for_full_first_row",
        family="padding_mask_misapplied",
        parent="seq2seq",
        where=("encoder_layers.0.self_attn",),
        why="all() over the first row where any() over the batch was meant",
        edits=(
            (
                "mask = None if attention_mask is None else",
                "mask = None if attention_mask is None or attention_mask[0].all() else",
            ),
        ),
    ),
    _pad(
        name="mean_over_padding",
        family="padding_in_a_summary",
        parent="text_classifier",
        where=("pool",),
        why="mean over the padded length",
        edits=(
            (
                "return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)",
                "return x.mean(dim=1) * weights.amax(dim=1)",
            ),
        ),
    ),
    _pad(
        name="sum_over_padded_length",
        family="padding_in_a_summary",
        parent="text_classifier",
        where=("pool",),
        why="the sum leaves padding out, the divisor does not",
        edits=(("weights.sum(dim=1).clamp(min=1.0)", "weights.size(1)"),),
    ),
    _pad(
        name="maximum_over_padding",
        family="padding_in_a_summary",
        parent="text_classifier",
        where=("pool",),
        why="zeros of padding take part in the maximum",
        edits=(
            (
                "return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)",
                "return (x * weights).max(dim=1).values",
            ),
        ),
    ),
    _pad(
        name="last_column_pooled",
        family="padding_in_a_summary",
        parent="pad_classifier",
        where=("last",),
        why="x[:, -1] is padding in all rows but the longest",
        edits=(("return x[torch.arange(x.size(0), device=x.device), last]", "return x[:, -1]"),),
    ),
    _pad(
        name="pooled_one_behind",
        family="padding_in_a_summary",
        parent="pad_classifier",
        where=("last",),
        why="a length is taken for an index, and clamped because long texts raised",
        edits=(
            (
                "last = (~padding).sum(dim=1) - 1",
                "last = (~padding).sum(dim=1).clamp(max=x.size(1) - 1)",
            ),
        ),
    ),
    _pad(
        name="positions_by_column",
        family="padding_miscounted",
        parent="masked_gpt",
        where=("positions",),
        why="positions are counted from the first column although they are given",
        edits=(
            (
                "x = self.embed(input_ids) + self.positions(position_ids)",
                "steps = torch.arange(input_ids.size(1), device=input_ids.device)\n"
                "        position_ids = steps.expand_as(input_ids)\n"
                "        x = self.embed(input_ids) + self.positions(position_ids)",
            ),
        ),
    ),
    _pad(
        name="positions_from_the_padded_end",
        family="padding_miscounted",
        parent="pad_classifier",
        where=("positions",),
        why="positions are counted from the padded end",
        edits=(
            (
                "self.positions(torch.arange(tokens.size(1), device=tokens.device))",
                "self.positions(torch.arange(tokens.size(1), device=tokens.device).flip(0))",
            ),
        ),
    ),
    _pad(
        name="centred_over_padding",
        family="padding_in_a_summary",
        parent="torch_encoder",
        where=("embedding",),
        why="the mean over the text is taken out, padding included",
        edits=(
            (
                "return self.norm(self.token(input_ids) + self.position(steps))",
                "x = self.token(input_ids) + self.position(steps)\n"
                "        return self.norm(x - x.mean(dim=1, keepdim=True))",
            ),
        ),
    ),
    _pad(
        name="summary_of_padding",
        family="padding_in_a_summary",
        parent="pad_classifier",
        where=("layers.0",),
        why="a summary of the whole row is added to every token",
        edits=(
            (
                "        return x + self.narrow(torch.relu(self.wide(self.norm2(x))))",
                "        x = x + 0.01 * x.mean(dim=1, keepdim=True)\n"
                "        return x + self.narrow(torch.relu(self.wide(self.norm2(x))))",
            ),
        ),
    ),
    _pad(
        name="mask_added_to_rows",
        family="padding_mask_misapplied",
        parent="bert",
        where=("encoder.0.attention",),
        why="a constant is added to whole rows of scores; softmax takes it out again",
        edits=(("attention_mask[:, None, None, :]", "attention_mask[:, None, :, None]"),),
    ),
    _pad(
        name="padding_mask_of_first_token",
        family="padding_miscounted",
        parent="pad_classifier",
        where=("layers.0.attention", "layers.0"),
        why="the mask is shifted with the tokens by a token put in front and taken away",
        edits=(
            (
                "            x = layer(x, padding)\n",
                "            x = layer(x, padding.roll(1, 1))\n",
            ),
        ),
    ),
    _pad(
        name="padding_id_of_another_tokenizer",
        family="padding_miscounted",
        parent="pad_classifier",
        where=(ROOT,),
        why="the id that the last tokenizer had, while the embedding knows the new one",
        edits=(("padding = tokens == self.pad_id", "padding = ~tokens.ne(1)"),),
    ),
    _pad(
        name="distance_bias_outweighs_the_mask",
        family="padding_mask_too_weak",
        parent="relative_encoder",
        where=("layers.*.attention",),
        why="the smallest number of a table of biases, taken for a mask",
        edits=(("bias.masked_fill(hidden, torch.finfo(x.dtype).min)", "bias - 8.0 * hidden"),),
    ),
    _pad(
        name="kept_tokens_favoured",
        family="padding_mask_too_weak",
        parent="text_classifier",
        where=("blocks.*.attn",),
        why="scaled_dot_product_attention adds a mask of floats, it hides by one of bools only",
        edits=(
            (
                "attn_mask=mask[:, None, None, :]",
                "attn_mask=mask[:, None, None, :].to(x.dtype)",
            ),
        ),
    ),
    _pad(
        name="small_share_of_the_padded_mean",
        family="padding_in_a_summary",
        parent="relative_encoder",
        where=("(model)", "norm"),
        why="states are centred over all positions, with a small weight",
        edits=(
            (
                "return self.head(self.norm(x))",
                "return self.head(self.norm(x - 1e-3 * x.mean(1, keepdim=True)))",
            ),
        ),
    ),
    _pad(
        name="source_mask_in_the_first_layer_only",
        family="padding_seen_in_one_part",
        parent="annotated",
        where=("encoder.*", "encoder.1.self_attn"),
        why="the source's mask is given to the first layer, the others get an open one",
        edits=(
            (
                "            x = layer(x, src_mask)\n",
                "            x = layer(x, src_mask if layer is self.encoder[0] else "
                "torch.ones_like(src_mask))\n",
            ),
        ),
    ),
    _pad(
        name="lengths_of_rows_not_of_heads",
        family="padding_mask_misapplied",
        parent="length_tagger",
        where=("blks.*.attention",),
        why="repeat puts the lengths of other rows where repeat_interleave puts a row's own",
        edits=(
            (
                "torch.repeat_interleave(valid_lens, self.num_heads, dim=0)",
                "valid_lens.repeat(self.num_heads)",
            ),
        ),
    ),
    _pad(
        name="token_behind_the_length_is_seen",
        family="padding_mask_misapplied",
        parent="length_tagger",
        where=("blks.*.attention",),
        why="> where >= is meant: one token of padding stays in",
        edits=((">= valid_lens[:, None]", "> valid_lens[:, None]"),),
    ),
    _pad(
        name="lengths_of_the_longest_text",
        family="padding_mask_misapplied",
        parent="length_classifier",
        where=("layers.0.self_attn", "pool"),
        why="all texts get the mask of the longest",
        edits=(
            (
                "padding = padding_of(lengths, tokens.size(1))",
                "padding = padding_of(lengths.amax().expand_as(lengths), tokens.size(1))",
            ),
        ),
    ),
    _pad(
        name="mean_over_the_padded_length",
        family="padding_in_a_summary",
        parent="length_classifier",
        where=("pool",),
        why="the sum of the real tokens is divided by how long all texts were made",
        edits=(("total / lengths.clamp(min=1).unsqueeze(-1)", "total / x.size(1)"),),
    ),
    _pad(
        name="lengths_used_in_pooling_alone",
        family="padding_seen_in_one_part",
        parent="length_classifier",
        where=("layers.0.self_attn",),
        why="the layers are not told which tokens are padding",
        edits=(("src_key_padding_mask=padding)", "src_key_padding_mask=None)"),),
    ),
)
