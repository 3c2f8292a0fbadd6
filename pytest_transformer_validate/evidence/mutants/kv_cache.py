"""Mistakes that show only when a text is decoded with a cache."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_cache = partial(Mutant, check="kv_cache")

MUTANTS = (
    _cache(
        name="new_keys_before_the_past",
        family="cache_mixed_up",
        parent="cached_gpt",
        where=("h.0.attn",),
        why="torch.cat with the arguments the wrong way round, for keys and values alike",
        edits=(
            ("torch.cat((past_key, k), dim=-2)", "torch.cat((k, past_key), dim=-2)"),
            ("torch.cat((past_value, v), dim=-2)", "torch.cat((v, past_value), dim=-2)"),
        ),
    ),
    _cache(
        name="new_values_before_the_past",
        family="cache_mixed_up",
        parent="window_cache",
        where=("layers.0.attn",),
        why="keys in order, values not",
        edits=(('torch.cat([cached["v"], v], dim=2)', 'torch.cat([v, cached["v"]], dim=2)'),),
    ),
    _cache(
        name="positions_restart",
        family="cached_step_in_a_wrong_place",
        parent="cached_gpt",
        where=("wpe",),
        why="arange over the new tokens only",
        edits=(
            (
                "torch.arange(past_length, past_length + idx.size(1), device=idx.device)",
                "torch.arange(idx.size(1), device=idx.device)",
            ),
        ),
    ),
    _cache(
        name="default_positions_restart",
        family="cached_step_in_a_wrong_place",
        parent="llama",
        where=("rotary",),
        why="right only where the caller gives position_ids",
        edits=(
            (
                "torch.arange(past, past + length, device=input_ids.device)",
                "torch.arange(length, device=input_ids.device)",
            ),
        ),
    ),
    _cache(
        name="positions_off_by_one",
        family="cached_step_in_a_wrong_place",
        parent="window_cache",
        where=("embed_positions",),
        why="the last cached position is used again",
        edits=(
            (
                "torch.arange(seen, seen + input_ids.size(1), device=input_ids.device)",
                "torch.arange(input_ids.size(1), device=input_ids.device) + max(seen - 1, 0)",
            ),
        ),
    ),
    _cache(
        name="decoder_positions_restart",
        family="cached_step_in_a_wrong_place",
        parent="cached_seq2seq",
        where=("positions",),
        why="the decoder's offset is not handed on",
        edits=(("self.place(decoder_input_ids, past)", "self.place(decoder_input_ids)"),),
    ),
    _cache(
        name="rotary_from_zero",
        family="cached_step_in_a_wrong_place",
        parent="llama_start_pos",
        where=("(model)",),
        why="tables cut to the new tokens from their start",
        edits=(
            ("self.freqs_cos[start_pos : start_pos + seqlen]", "self.freqs_cos[:seqlen]"),
            ("self.freqs_sin[start_pos : start_pos + seqlen]", "self.freqs_sin[:seqlen]"),
        ),
    ),
    _cache(
        name="cached_before_rotation",
        family="cached_step_in_a_wrong_place",
        parent="llama",
        where=("layers.0.self_attn",),
        why="keys are cached as they come and rotated all together with the new positions",
        edits=(
            ("q, k = rotate(q, cos, sin), rotate(k, cos, sin)", "q = rotate(q, cos, sin)"),
            (
                "groups = self.heads // self.kv_heads",
                "present = (k, v)\n"
                "        new = rotate(k[:, :, -length:], cos, sin)\n"
                "        k = torch.cat([k[:, :, :-length], new], dim=2)\n"
                "        groups = self.heads // self.kv_heads",
            ),
            (".reshape(batch, length, -1)), (k, v)", ".reshape(batch, length, -1)), present"),
        ),
    ),
    _cache(
        name="rotated_twice",
        family="cached_step_in_a_wrong_place",
        parent="llama",
        where=("layers.0.self_attn",),
        why="the whole concatenation is rotated, although the past is rotated already",
        edits=(
            (
                "            k = torch.cat([past[0], k], dim=2)",
                "            old = rotate(past[0], cos[:, :, -1:], sin[:, :, -1:])\n"
                "            k = torch.cat([old, k], dim=2)",
            ),
        ),
    ),
    _cache(
        name="values_of_one_layer_not_cached",
        family="cache_loses_something",
        parent="cached_gpt",
        where=("h.1.attn",),
        why="a branch for one layer forgets the past values (repeats the new one)",
        edits=(
            (
                "            x, present = block(x, past[index] if past is not None else None)\n",
                "            layer_past = past[index] if past is not None else None\n"
                "            if index == 1 and layer_past is not None:\n"
                "                layer_past = (layer_past[0], torch.zeros_like(layer_past[1]))\n"
                "            x, present = block(x, layer_past)\n",
            ),
        ),
    ),
    _cache(
        name="layers_share_the_first_cache",
        family="cache_loses_something",
        parent="window_cache",
        where=("layers.1.attn",),
        why="index 0 left over from a model of one layer",
        edits=(('cache["layers"][index]', 'cache["layers"][0]'),),
    ),
    _cache(
        name="one_head_of_the_cache",
        family="cache_loses_something",
        parent="cached_gpt",
        where=("h.0.attn",),
        why="the first head's past keys are taken for the second one",
        edits=(
            (
                "past_key, past_value = layer_past",
                "past_key, past_value = layer_past\n"
                "            past_key = torch.cat((past_key[:, :1], past_key[:, :1], "
                "past_key[:, 2:]), dim=1)",
            ),
        ),
    ),
    _cache(
        name="values_in_half_precision",
        family="cache_loses_something",
        parent="window_cache",
        where=("layers.0.attn",),
        why="the cache is kept in bfloat16 to save memory",
        edits=(
            (
                '"v": v[:, :, -keep:],',
                '"v": v[:, :, -keep:].bfloat16().to(v.dtype),',
            ),
        ),
    ),
    _cache(
        name="window_one_short",
        family="cached_step_sees_wrong_tokens",
        parent="window_cache",
        where=("layers.0.attn",),
        why="the token itself is counted twice",
        edits=(("keep = self.window - 1", "keep = self.window - 2"),),
    ),
    _cache(
        name="window_counts_the_cache",
        family="cached_step_sees_wrong_tokens",
        parent="window_cache",
        where=("layers.0.attn",),
        why="the cache is one longer than the window and its mask is dropped for one token",
        edits=(
            ("keep = self.window - 1", "keep = self.window"),
            (
                "allowed = (key <= query) & (query - key < self.window)",
                "allowed = (key <= query) & ((query - key < self.window) | (length == 1))",
            ),
        ),
    ),
    _cache(
        name="chunk_mask_top_left",
        family="cached_step_sees_wrong_tokens",
        parent="cached_gpt",
        where=("h.0.attn",),
        why="tril of a rectangle without its offset, right for one token by a special case",
        edits=(
            (
                "mask = mask.tril(diagonal=total - length)",
                "mask = mask if length == 1 else mask.tril()",
            ),
        ),
    ),
    _cache(
        name="is_causal_with_a_past",
        family="cached_step_sees_wrong_tokens",
        parent="cached_seq2seq",
        where=("decoder.0",),
        why="is_causal=True aligns at the top left; one token is let through",
        edits=(
            (
                ".tril(total - new)",
                ".tril(total if new == 1 else 0)",
            ),
        ),
    ),
    _cache(
        name="source_mask_dropped_beside_a_cache",
        family="cached_step_sees_wrong_tokens",
        parent="cached_seq2seq",
        where=("decoder.0",),
        why="the mask is made only where the encoder runs",
        edits=(
            (
                "            memory = encoder_outputs[0]\n",
                "            memory, mask = encoder_outputs[0], None\n",
            ),
        ),
    ),
    _cache(
        name="chunk_sees_its_future",
        family="cached_step_sees_wrong_tokens",
        parent="llama_start_pos",
        where=("layers.0.attention",),
        why="with a past every new token is the last one",
        edits=(("if seqlen > 1:", "if seqlen > 1 and start_pos == 0:"),),
    ),
    _cache(
        name="chunk_blind_to_the_past",
        family="cached_step_sees_wrong_tokens",
        parent="llama_start_pos",
        where=("layers.0.attention",),
        why="the columns of cached tokens are masked",
        edits=(
            (
                "torch.zeros(seqlen, start_pos, device=tokens.device)",
                'torch.full((seqlen, start_pos), float("-inf"), device=tokens.device)',
            ),
        ),
    ),
    _cache(
        name="cache_of_the_first_row",
        family="cache_mixed_up",
        parent="cached_gpt",
        where=("h.0.attn",),
        why="expand left over from one prompt for many samples",
        edits=(
            (
                "past_key, past_value = layer_past",
                "past_key, past_value = layer_past\n"
                "            past_key = past_key[:1].expand_as(past_key)",
            ),
        ),
    ),
    _cache(
        name="buffer_of_the_first_row",
        family="cache_mixed_up",
        parent="llama_start_pos",
        where=("layers.0.attention",),
        why="the buffer is written for all rows and read for one",
        edits=(
            (
                "values = self.cache_v[:bsz, : start_pos + seqlen]",
                "values = self.cache_v[:bsz, : start_pos + seqlen]\n"
                "            values = torch.cat(\n"
                "                [values[:1, :start_pos].expand(bsz, -1, -1, -1), "
                "values[:, start_pos:]], dim=1\n"
                "            )",
            ),
        ),
    ),
    _cache(
        name="cross_attention_of_the_last_text",
        family="cache_of_another_text",
        parent="cached_seq2seq",
        where=("decoder.0",),
        why="source keys are kept in the layer and reused while the length is the same",
        edits=(
            (
                "            cross_k, cross_v = past[2], past[3]\n",
                "            cross_k, cross_v = self.kept\n",
            ),
            (
                "            cross_k, cross_v = cross.split(cross.k(memory)), "
                "cross.split(cross.v(memory))\n",
                "            cross_k, cross_v = cross.split(cross.k(memory)), "
                "cross.split(cross.v(memory))\n"
                '            kept = getattr(self, "kept", None)\n'
                "            if kept is None or kept[0].shape != cross_k.shape:\n"
                "                self.kept = (cross_k, cross_v)\n",
            ),
        ),
    ),
    _cache(
        name="cache_kept_between_texts",
        family="cache_of_another_text",
        parent="llama_start_pos",
        where=("layers.0.attention",),
        why="values are added to the buffer, which is not zero for the second text",
        edits=(
            (
                "self.cache_v[:bsz, start_pos : start_pos + seqlen] = xv",
                "self.cache_v[:bsz, start_pos : start_pos + seqlen] += xv",
            ),
        ),
    ),
    _cache(
        name="mask_cut_to_the_new_tokens",
        family="cached_step_sees_wrong_tokens",
        parent="llama",
        where=("(model)", "layers.0.self_attn"),
        why="the columns of the past are taken as kept",
        edits=(
            (
                "mask = mask & attention_mask[:, None, None, :].bool()",
                "kept = attention_mask[:, None, None, past:].bool()\n"
                "            open_past = torch.ones_like(kept[..., :1]).expand(-1, -1, -1, past)\n"
                "            mask = mask & torch.cat([open_past, kept], dim=-1)",
            ),
        ),
    ),
    _cache(
        name="mask_moved_with_the_past",
        family="cached_step_sees_wrong_tokens",
        parent="llama",
        where=("(model)", "layers.0.self_attn"),
        why="the mask is rolled when it is put together with the past",
        edits=(
            (
                "mask = mask & attention_mask[:, None, None, :].bool()",
                "mask = mask & attention_mask.roll(past, 1)[:, None, None, :].bool()",
            ),
        ),
    ),
    _cache(
        name="use_cache_drops_the_mask",
        family="cached_step_sees_wrong_tokens",
        parent="llama",
        where=("(model)",),
        why="whoever asks for a cache is taken to decode one token",
        edits=(
            (
                "        if attention_mask is not None:\n",
                "        if use_cache:\n"
                "            mask = torch.ones_like(mask)\n"
                "        if attention_mask is not None:\n",
            ),
        ),
    ),
    _cache(
        name="source_keys_of_the_first_layer",
        family="cache_loses_something",
        parent="cached_seq2seq",
        where=("decoder.1", "decoder.1.cross_attn"),
        why="the source is thought to be the same for all layers, its keys are not",
        edits=(
            (
                "            presents.append(present)\n",
                "            presents.append((*present[:2], *(presents or [present])[0][2:]))\n",
            ),
        ),
    ),
    _cache(
        name="prompt_found_by_its_length",
        family="cache_of_another_text",
        parent="cached_gpt",
        where=("(model)", "h.0", "h.0.attn"),
        why="a store of prompts already read, whose key is not the prompt",
        edits=(
            (
                "        past_length = past[0][0].size(-2) if past is not None else 0\n",
                "        past_length = past[0][0].size(-2) if past is not None else 0\n"
                "        if past is not None:\n"
                "            self.prompts = getattr(self, 'prompts', {})\n"
                "            past = self.prompts.setdefault((len(idx), past_length), past)\n",
            ),
        ),
    ),
    _cache(
        name="cached_keys_fade",
        family="cache_loses_something",
        parent="cached_seq2seq",
        where=("decoder.*",),
        why="cached keys are scaled at every step, by one in a thousand",
        edits=(
            (
                "k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)",
                "k, v = torch.cat([past[0] * 0.999, k], dim=2), torch.cat([past[1], v], dim=2)",
            ),
        ),
    ),
)
