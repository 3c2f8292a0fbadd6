"""Mistakes remembered from public reports, written without a look at the checks."""

from __future__ import annotations

from pytest_transformer_validate.evidence.mutants.surgery import ROOT, Mutant

MUTANTS = (
    Mutant(
        name="reported_causal_mask_after_softmax",
        family="causal_mask_misapplied",
        parent="stacked_experts",
        check="causality",
        where=("layers.*.attention",),
        why="forum threads: weights are multiplied by the mask, later keys stay in the sum below",
        blind=True,
        edits=(
            (
                'weights = scores.masked_fill(~causal, float("-inf")).softmax(dim=-1)',
                "weights = scores.softmax(dim=-1) * causal",
            ),
        ),
    ),
    Mutant(
        name="reported_three_dimensional_mask_repeated_in_wrong_order",
        family="another_rows_data",
        parent="pad_classifier",
        check="batch_independence",
        where=("layers.*", "layers.*.attention"),
        why="PyTorch issues: a mask per head is (rows * heads), and repeat() puts heads first",
        blind=True,
        edits=(
            (
                "        x = x + self.attention(h, h, h, key_padding_mask=padding,"
                " need_weights=False)[0]\n",
                "        heads = self.attention.num_heads\n"
                "        mask = padding[:, None, :].repeat(heads, x.size(1), 1)\n"
                "        x = x + self.attention(h, h, h, attn_mask=mask,"
                " need_weights=False)[0]\n",
            ),
        ),
    ),
    Mutant(
        name="reported_mask_buffer_smaller_than_position_table",
        family="size_hard_coded",
        parent="masked_gpt",
        check="shape_robustness",
        where=(ROOT,),
        why="minGPT-like issues: the table of positions was enlarged and the mask was forgotten",
        blind=True,
        raises=True,
        edits=(
            (
                "        self.norm = nn.LayerNorm(d_model)\n",
                "        self.norm = nn.LayerNorm(d_model)\n"
                "        causal = torch.ones(32, 32, dtype=torch.bool).tril()\n"
                '        self.register_buffer("causal", causal, persistent=False)\n',
            ),
            (
                "        causal = torch.ones(length, length, dtype=torch.bool,"
                " device=attention_mask.device).tril()\n",
                "        causal = self.causal[:length, :length]\n",
            ),
        ),
    ),
    Mutant(
        name="reported_padding_id_assumed_zero",
        family="padding_miscounted",
        parent="pad_translator",
        check="padding",
        where=(ROOT,),
        why="fairseq and RoBERTa ports: code from a vocabulary with padding 0 meets one with 1",
        blind=True,
        edits=(("src_padding = src == self.src_pad_idx", "src_padding = src == 0"),),
    ),
    Mutant(
        name="reported_mean_pool_divides_by_padded_length",
        family="padding_in_a_summary",
        parent="text_classifier",
        check="padding",
        where=("pool",),
        why="sentence embedding issues: padding is left out of the sum but counted below it",
        blind=True,
        edits=(("weights.sum(dim=1).clamp(min=1.0)", "x.size(1)"),),
    ),
    Mutant(
        name="reported_memory_key_padding_mask_not_passed",
        family="mask_ignored",
        parent="torch_translation",
        check="mask_effect",
        where=(ROOT, "transformer"),
        why="PyTorch forum: nobody knows what the third padding mask is for, so None goes in",
        blind=True,
        edits=(
            (
                "            tgt_padding_mask,\n            memory_key_padding_mask,\n",
                "            tgt_padding_mask,\n            None,\n",
            ),
        ),
    ),
    Mutant(
        name="reported_router_jitter_in_eval",
        family="noise_in_evaluation",
        parent="stacked_experts",
        check="determinism",
        where=("layers.*.experts",),
        why="Switch ports: the multiplicative jitter of the router lacks `if self.training`",
        blind=True,
        edits=(
            (
                "scores = self.router(x).softmax(dim=-1)",
                "scores = self.router(x * torch.empty_like(x).uniform_(0.99, 1.01))"
                ".softmax(dim=-1)",
            ),
        ),
    ),
    Mutant(
        name="reported_dynamic_ntk_base_stays_after_long_text",
        family="table_of_another_length",
        parent="rotary_tied",
        check="statelessness",
        where=("rotary",),
        why="transformers issue on dynamic NTK: the base grown for a long text is never reset",
        blind=True,
        edits=(
            (
                "        steps = torch.arange(x.size(1), device=x.device, dtype=torch.float32)\n",
                "        if x.size(1) > 64:\n"
                "            power = self.head_dim / (self.head_dim - 2)\n"
                "            self.theta = self.theta * (x.size(1) / 64) ** power\n"
                "        steps = torch.arange(x.size(1), device=x.device,"
                " dtype=torch.float32)\n",
            ),
        ),
    ),
    Mutant(
        name="reported_dropout_on_logits",
        family="dropout_on_logits",
        parent="recurrent",
        check="dropout",
        where=(ROOT,),
        why="forum thread on a loss that does not fall: the last dropout went behind the head",
        blind=True,
        edits=(
            (
                "return self.head(hidden), hidden",
                "return nn.functional.dropout(self.head(hidden), 0.1, self.training), hidden",
            ),
        ),
    ),
    Mutant(
        name="reported_cross_keys_detached_for_cache",
        family="graph_cut",
        parent="cached_seq2seq",
        check="gradient_flow",
        where=("decoder.*", "decoder.*.cross_attn", "encoder_norm"),
        why="issues on memory in generation: what the cache keeps is detached, in training too",
        blind=True,
        edits=(
            (
                "cross_k, cross_v = cross.split(cross.k(memory)), cross.split(cross.v(memory))",
                "cross_k = cross.split(cross.k(memory)).detach()\n"
                "            cross_v = cross.split(cross.v(memory)).detach()",
            ),
        ),
    ),
    Mutant(
        name="reported_experts_counted_from_one",
        family="part_never_used",
        parent="moe",
        check="gradient_flow",
        where=("layers.*.moe", "layers.*.moe.experts.3"),
        why="Mixtral ports: the loop numbers the experts from 1 and topk numbers them from 0",
        blind=True,
        edits=(
            (
                "for index, expert in enumerate(self.experts):",
                "for index, expert in enumerate(self.experts, start=1):",
            ),
        ),
    ),
    Mutant(
        name="reported_zero_times_infinity_in_mask",
        family="output_not_a_number",
        parent="torch_encoder",
        check="output_stability",
        where=(ROOT, "encoder"),
        why="PyTorch forum: (1 - mask) * -inf is NaN at every token that is kept",
        blind=True,
        edits=(
            (
                "padding = None if attention_mask is None else attention_mask == 0",
                "padding = attention_mask\n"
                "        if attention_mask is not None:\n"
                '            padding = (1.0 - attention_mask.float()) * float("-inf")',
            ),
        ),
    ),
    Mutant(
        name="reported_relu_after_last_layer",
        family="logits_squashed",
        parent="pad_classifier",
        check="output_kind",
        where=(ROOT,),
        why="forum thread: every layer got its activation, the one that gives logits included",
        blind=True,
        edits=(
            (
                "return self.classifier(self.last(self.norm(x), padding))",
                "return torch.relu(self.classifier(self.last(self.norm(x), padding)))",
            ),
        ),
    ),
    Mutant(
        name="reported_tied_embedding_with_unit_variance",
        family="initial_scale",
        parent="rotary_tied",
        check="parameter_initialization",
        where=("embed", "head"),
        why="minGPT issue on a first loss far above ln(V): the scheme forgot nn.Embedding",
        blind=True,
        edits=(("isinstance(module, nn.Linear | nn.Embedding)", "isinstance(module, nn.Linear)"),),
    ),
    Mutant(
        name="reported_positions_run_over_the_batch",
        family="positions_never_added",
        parent="torch_translation",
        check="position_sensitivity",
        where=("positional_encoding",),
        why="many threads on the tutorial: a batch-first table meets inputs with time first",
        blind=True,
        edits=(
            ("pos_embedding.unsqueeze(-2)", "pos_embedding.unsqueeze(0)"),
            (
                "self.pos_embedding[: token_embedding.size(0), :]",
                "self.pos_embedding[:, : token_embedding.size(1)]",
            ),
        ),
    ),
    Mutant(
        name="reported_logn_scale_of_whole_text",
        family="length_in_the_arithmetic",
        parent="given_mask",
        check="prefix_consistency",
        where=("blocks.*.attn",),
        why="Qwen ports: log-n scaling takes the length of the text, not each query's position",
        blind=True,
        edits=(
            (
                "        scores = scores + mask\n",
                "        scores = scores * max(1.0, math.log(x.size(1), 24)) + mask\n",
            ),
        ),
    ),
    Mutant(
        name="reported_local_window_in_every_layer",
        family="context_cut_short",
        parent="cached_gpt",
        check="context_use",
        where=("h.*.attn",),
        why="GPT-Neo ports: only every second layer is local, and all of them got the window",
        blind=True,
        edits=(
            (
                "mask = mask.tril(diagonal=total - length)",
                "mask = mask.tril(diagonal=total - length).triu(diagonal=total - length - 15)",
            ),
        ),
    ),
    Mutant(
        name="reported_source_mask_made_like_target_mask",
        family="causal_mask_in_the_encoder",
        parent="annotated",
        check="encoder_use",
        where=(ROOT, "encoder.*", "encoder.*.self_attn"),
        why="Annotated Transformer issues: the subsequent mask is made for both sides",
        blind=True,
        edits=(
            (
                "        x = self.src_embed(src)\n",
                "        x = self.src_embed(src)\n"
                "        length = src.size(1)\n"
                "        ones = torch.ones(length, length, device=src.device)\n"
                "        src_mask = (src_mask != 0) & ones.tril().bool()\n",
            ),
        ),
    ),
    Mutant(
        name="reported_memory_cut_to_target_length",
        family="part_of_the_source_lost",
        parent="pad_translator",
        check="encoder_use",
        where=(ROOT,),
        why="forum thread on unequal lengths: source and target are made to fit each other",
        blind=True,
        edits=(
            (
                "        x = self.place(trg, self.trg_tokens, self.trg_positions)\n",
                "        memory, src_padding = memory[:, :length], src_padding[:, :length]\n"
                "        x = self.place(trg, self.trg_tokens, self.trg_positions)\n",
            ),
        ),
    ),
    Mutant(
        name="reported_heads_merged_without_transpose",
        family="heads_mixed_up",
        parent="text_classifier",
        check="attention_structure",
        where=("blocks.*.attn",),
        why="timm-like attention: the reshape runs without complaint when transpose is lost",
        blind=True,
        edits=(
            (
                "y.transpose(1, 2).reshape(batch, length, dim)",
                "y.reshape(batch, length, dim)",
            ),
        ),
    ),
    Mutant(
        name="reported_no_residual_around_cross_attention",
        family="residual_missing",
        parent="annotated",
        check="layer_structure",
        where=("decoder.*",),
        why="seq2seq issues: the sum is forgotten where query and memory differ",
        blind=True,
        edits=(("x = x + self.src_attn(", "x = self.src_attn("),),
    ),
    Mutant(
        name="reported_is_causal_with_cached_keys",
        family="cached_step_sees_wrong_tokens",
        parent="cached_gpt",
        check="kv_cache",
        where=("h.*.attn",),
        why="PyTorch issue: is_causal aligns its triangle top left when there are more keys",
        blind=True,
        edits=(
            (
                "        total = k.size(-2)\n"
                "        mask = torch.ones(length, total, dtype=torch.bool, device=x.device)\n"
                "        mask = mask.tril(diagonal=total - length)\n"
                "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)\n",
                "        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n",
            ),
        ),
    ),
    Mutant(
        name="reported_loss_averaged_over_ignored_labels",
        family="ignored_labels_counted",
        parent="window_cache",
        check="loss_alignment",
        where=(ROOT,),
        why="transformers issue on gradient accumulation: the sum is divided by all positions",
        blind=True,
        edits=(
            (
                'out["loss"] = F.cross_entropy(shift_logits, shift_labels, ignore_index=-100)',
                "total = F.cross_entropy(\n"
                '                shift_logits, shift_labels, ignore_index=-100, reduction="sum"\n'
                "            )\n"
                '            out["loss"] = total / shift_labels.numel()',
            ),
        ),
    ),
    Mutant(
        name="reported_tied_by_data_only",
        family="tied_by_memory_only",
        parent="rotary_tied",
        check="weight_tying",
        where=("embed", "head"),
        why="forum thread: .data shares the memory, two parameters with two gradients remain",
        blind=True,
        edits=(
            (
                "self.head.weight = self.embed.weight",
                "self.head.weight.data = self.embed.weight.data",
            ),
        ),
    ),
    Mutant(
        name="reported_random_table_not_in_checkpoint",
        family="state_not_in_the_checkpoint",
        parent="given_mask",
        check="round_trip",
        where=(ROOT,),
        why="Performer issues: a random fixed table has to be saved, persistent=False drops it",
        blind=True,
        edits=(
            (
                "        self.position = nn.Embedding(context, dim)\n",
                "        table = torch.randn(context, dim)\n"
                '        self.register_buffer("position", table, persistent=False)\n',
            ),
            ("self.position(steps)", "self.position[steps]"),
        ),
    ),
    Mutant(
        name="reported_mask_kept_from_first_call",
        family="tensor_not_registered",
        parent="recurrent",
        check="registered_tensors",
        where=("layers.*",),
        why="PyTorch tutorial's src_mask: kept in an attribute, made anew for another size only",
        blind=True,
        undetectable="works for whoever moves the model before the first call, and PyTorch's own "
        "language model example does it",
        edits=(
            (
                "        self.norm = nn.LayerNorm(width)\n        self.attn",
                "        self.future = None\n"
                "        self.norm = nn.LayerNorm(width)\n        self.attn",
            ),
            (
                '        future = torch.full((length, length), float("-inf"),'
                " device=x.device).triu(1)\n",
                "        if self.future is None or self.future.size(0) != length:\n"
                '            future = torch.full((length, length), float("-inf"))\n'
                "            self.future = future.triu(1).to(x.device)\n",
            ),
            ("attn_mask=future", "attn_mask=self.future"),
        ),
    ),
    Mutant(
        name="reported_mask_minimum_of_float32_cast_down",
        family="out_of_the_range_of_half",
        parent="masked_gpt",
        check="precision",
        where=(ROOT, "blocks.*.attn"),
        why="transformers issues on left padding: float32's minimum is -inf in bfloat16, then NaN",
        blind=True,
        edits=(
            (
                "        bias = torch.zeros(allowed.shape, dtype=dtype,"
                " device=attention_mask.device)\n"
                "        return bias.masked_fill(~allowed, torch.finfo(dtype).min)\n",
                "        bias = torch.zeros(allowed.shape, device=attention_mask.device)\n"
                "        bias = bias.masked_fill(~allowed, torch.finfo(torch.float32).min)\n"
                "        return bias.to(dtype)\n",
            ),
        ),
    ),
    Mutant(
        name="reported_embedding_read_by_index",
        family="ids_folded",
        parent="llama_start_pos",
        check="vocabulary_bounds",
        where=(ROOT, "tok_embeddings"),
        why="TransformerLens-like W_E[tokens]: a label of -100 reads a row from the end",
        blind=True,
        undetectable="TransformerLens itself embeds like this: noted in the record",
        edits=(("h = self.tok_embeddings(tokens)", "h = self.tok_embeddings.weight[tokens]"),),
    ),
    Mutant(
        name="reported_positions_wrap_like_the_ring_buffer",
        family="long_text_folded",
        parent="window_cache",
        check="length_limit",
        where=(ROOT,),
        why="issues on rolling caches: positions go modulo the table as slots do in the cache",
        blind=True,
        edits=(
            (
                "self.embed_positions(steps)",
                "self.embed_positions(steps % self.embed_positions.num_embeddings)",
            ),
        ),
    ),
    Mutant(
        name="reported_router_scores_collected_for_ever",
        family="outputs_collected",
        parent="moe",
        check="memory_footprint",
        where=("layers.*.moe",),
        why="mixture issues: scores wait in a list for a balancing loss and nobody clears it",
        blind=True,
        edits=(
            (
                "        self.top_k = top_k\n",
                "        self.top_k = top_k\n        self.router_scores = []\n",
            ),
            (
                "        scores = self.gate(tokens).softmax(dim=-1)\n",
                "        scores = self.gate(tokens).softmax(dim=-1)\n"
                "        self.router_scores.append(scores)\n",
            ),
        ),
    ),
)
