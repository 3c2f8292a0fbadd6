"""Mistakes for the checks of tier 2, written from the names of these checks alone."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_blind = partial(Mutant, blind=True)

MUTANTS = (
    _blind(
        name="zeroed_behind_the_softmax",
        check="attention_rows",
        family="weights_that_do_not_sum_to_one",
        parent="llama",
        where=("layers.0.self_attn",),
        why="the mask is multiplied onto the weights and they are not normalised again",
        edits=(
            (
                "weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)"
                ".softmax(dim=-1)",
                "weights = scores.softmax(dim=-1) * mask",
            ),
        ),
    ),
    _blind(
        name="softmax_without_a_dimension",
        check="attention_rows",
        family="weights_that_do_not_sum_to_one",
        parent="bert",
        where=("encoder.0.attention",),
        why="F.softmax of four dimensions without dim normalises over the heads",
        edits=(("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=1)"),),
    ),
    _blind(
        name="softmax_over_the_queries",
        check="attention_rows",
        family="weights_that_do_not_sum_to_one",
        parent="stacked_experts",
        where=("layers.0.attention",),
        why="dim=-2: each column sums to one",
        edits=(
            (
                'float("-inf")).softmax(dim=-1)',
                'float("-inf")).softmax(dim=-2)',
            ),
        ),
    ),
    _blind(
        name="scaled_behind_the_softmax",
        check="attention_rows",
        family="weights_that_do_not_sum_to_one",
        parent="given_mask",
        where=("blocks.0.attn",),
        why="the division by sqrt(d) has slipped behind the softmax",
        edits=(
            (
                "scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))",
                "scores = q @ k.transpose(-2, -1)",
            ),
            (
                "out = scores.softmax(dim=-1) @ v",
                "out = (scores.softmax(dim=-1) / math.sqrt(q.size(-1))) @ v",
            ),
        ),
    ),
    _blind(
        name="padding_at_minus_ten",
        check="attention_mask",
        family="mask_that_does_not_quite_hide",
        parent="bert",
        where=("encoder.0.attention",),
        why="a small number in place of -1e9 so that half precision does not overflow",
        edits=(("* -1e9", "* -10.0"),),
    ),
    _blind(
        name="one_billionth",
        check="attention_mask",
        family="mask_that_does_not_quite_hide",
        parent="annotated",
        where=("encoder.0.self_attn", "decoder.0.self_attn", "decoder.0.src_attn"),
        why="1e-9 for -1e9",
        edits=(("masked_fill(mask == 0, -1e9)", "masked_fill(mask == 0, 1e-9)"),),
    ),
    _blind(
        name="next_token_allowed_beside_a_past",
        check="attention_mask",
        family="mask_with_a_wrong_edge",
        parent="served_decoder",
        where=("layers.0.attention",),
        why="diagonal=past + 1, as if the past counted the new token",
        edits=(("causal.tril(diagonal=past)", "causal.tril(diagonal=past + 1)"),),
    ),
    _blind(
        name="window_not_halved",
        check="attention_mask",
        family="mask_with_a_wrong_edge",
        parent="local_encoder",
        where=("layers.0.attention",),
        why="local_attention is the whole width; it was taken for one side",
        undetectable="one number is the whole width to some and one side to others",
        edits=(("<= self.window // 2", "<= self.window"),),
    ),
    _blind(
        name="queries_repeated_like_keys",
        check="attention_heads",
        family="heads_that_look_alike",
        parent="served_decoder",
        where=("layers.0.attention",),
        why="queries are cut to the number of key heads and repeated like these",
        edits=(
            (
                "q, k = rotate(q, angles), rotate(k, angles)",
                "q = q[:, : self.kv_heads].repeat_interleave(self.heads // self.kv_heads, dim=1)\n"
                "        q, k = rotate(q, angles), rotate(k, angles)",
            ),
        ),
    ),
    _blind(
        name="scale_of_one",
        check="attention_scale",
        family="scores_not_scaled",
        parent="moe",
        where=("layers.0.attn",),
        why="scale=1.0, copied from a model that scales its queries itself",
        edits=(("is_causal=True)", "is_causal=True, scale=1.0)"),),
    ),
    _blind(
        name="queries_scaled_before_the_fused_call",
        check="attention_scale",
        family="scores_scaled_twice",
        parent="alibi",
        where=("blocks.0.attention",),
        why="scaled_dot_product_attention scales once more",
        edits=(
            (
                "y = F.scaled_dot_product_attention(",
                "q = q * q.size(-1) ** -0.5\n        y = F.scaled_dot_product_attention(",
            ),
        ),
    ),
    _blind(
        name="scaled_by_the_width_of_the_model",
        check="attention_scale",
        family="scores_scaled_twice",
        parent="summarizer",
        where=("encoder.0.attention",),
        why="1/sqrt(model width) for 1/sqrt(head width)",
        edits=(("self.scale = (dim // heads) ** -0.5", "self.scale = dim**-0.5"),),
    ),
    _blind(
        name="attention_reads_a_detached_input",
        check="attribution",
        family="part_of_the_path_detached",
        parent="nanogpt",
        where=("transformer.h.0",),
        why="a detach to save memory, in the branch of attention only",
        edits=(("x = x + self.attn(self.ln_1(x))", "x = x + self.attn(self.ln_1(x.detach()))"),),
    ),
    _blind(
        name="activation_straight_through",
        check="attribution",
        family="backward_of_another_function",
        parent="bert",
        where=("encoder.0",),
        why="a straight-through estimator around a function that has a gradient",
        edits=(
            (
                "inner = self.output(F.gelu(self.intermediate(hidden)))",
                "inner = self.intermediate(hidden)\n"
                "        inner = inner + (F.gelu(inner) - inner).detach()\n"
                "        inner = self.output(inner)",
            ),
        ),
    ),
    _blind(
        name="mask_from_the_second_diagonal",
        check="attribution",
        family="hidden_token_gets_an_attribution",
        parent="mha_decoder",
        where=("layers.0.attn",),
        why="triu(diagonal=2): the next token may be seen",
        edits=(("torch.triu(ones, diagonal=1)", "torch.triu(ones, diagonal=2)"),),
    ),
    _blind(
        name="frequencies_far_too_high",
        check="embedding_smoothness",
        family="made_of_the_last_digits",
        parent="simple_classifier",
        where=("embedding",),
        why="Fourier features with 2**20 where the twentieth power was not meant",
        edits=(
            (
                "return self.token_emb(x) + self.pos_emb(",
                "return torch.sin(self.token_emb(x) * 2.0**20) + self.pos_emb(",
            ),
        ),
    ),
    _blind(
        name="quantised_with_a_step_of_one",
        check="embedding_smoothness",
        family="made_of_the_last_digits",
        parent="torch_encoder",
        where=("embedding",),
        why="fake quantisation without its scale: activations are whole numbers",
        undetectable="whoever rounds means to, and how coarse a step may be nobody says",
        edits=(
            (
                "return self.norm(self.token(input_ids) + self.position(steps))",
                "x = self.norm(self.token(input_ids) + self.position(steps))\n"
                "        return x + (x.round() - x).detach()",
            ),
        ),
    ),
    _blind(
        name="kept_as_often_as_dropped",
        check="layer_effect",
        family="layer_of_next_to_no_effect",
        parent="text_classifier",
        where=("blocks.0",),
        why="stochastic depth scales by the rate of dropping, which is 0 for the first block",
        edits=(
            (
                "        self.pool = MaskedMeanPool()\n",
                "        for index, block in enumerate(self.blocks):\n"
                "            block.rate = 0.1 * index / num_layers\n"
                "        self.pool = MaskedMeanPool()\n",
            ),
            (
                "x = x + self.dropout(self.attn(self.norm1(x), mask))",
                "x = x + self.rate * self.dropout(self.attn(self.norm1(x), mask))",
            ),
            (
                "return x + self.dropout(self.fc2(h))",
                "return x + self.rate * self.dropout(self.fc2(h))",
            ),
        ),
    ),
    _blind(
        name="by_hand_without_the_scale",
        check="backend_equivalence",
        family="one_way_lacks_something",
        parent="trained_gpt",
        where=("blocks.0.attn",),
        why="the scale is inside of the fused call and was forgotten beside it",
        edits=(
            (
                "scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))",
                "scores = q @ k.transpose(-2, -1)",
            ),
        ),
    ),
    _blind(
        name="key_heads_tiled_by_hand",
        check="backend_equivalence",
        family="one_way_lacks_something",
        parent="served_decoder",
        where=("layers.0.attention",),
        why="repeat for repeat_interleave in one of two ways",
        edits=(
            (
                "scores = q @ k.transpose(-2, -1) * self.width**-0.5",
                "k = present[0].repeat(1, self.heads // self.kv_heads, 1, 1)\n"
                "            scores = q @ k.transpose(-2, -1) * self.width**-0.5",
            ),
        ),
    ),
    _blind(
        name="fused_scales_again",
        check="backend_equivalence",
        family="one_way_lacks_something",
        parent="summarizer",
        where=("encoder.0.attention",),
        why="queries are scaled, and the fused call scales by itself",
        edits=(
            (
                "F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=self.scale)",
                "F.scaled_dot_product_attention(q * self.scale, k, v, attn_mask=keep)",
            ),
        ),
    ),
    _blind(
        name="source_mask_not_checkpointed",
        check="checkpointing_equivalence",
        family="checkpoint_loses_an_argument",
        parent="summarizer",
        where=("decoder.*.cross",),
        why="the last argument of four is not passed on",
        edits=(
            (
                "checkpoint(layer, x, keep, source, source_keep, use_reentrant=False)",
                "checkpoint(layer, x, keep, source, None, use_reentrant=False)",
            ),
        ),
    ),
    _blind(
        name="random_state_not_kept",
        check="checkpointing_equivalence",
        family="drawn_anew_for_the_backward",
        parent="trained_gpt",
        where=("blocks.*",),
        why="preserve_rng_state=False is faster",
        edits=(
            (
                "checkpoint(block, x, scale, use_reentrant=False)",
                "checkpoint(\n                    block, x, scale, use_reentrant=False, "
                "preserve_rng_state=False\n                )",
            ),
        ),
    ),
    _blind(
        name="cached_steps_at_position_zero",
        check="generate_equivalence",
        family="generation_reads_another_text",
        parent="served_decoder",
        where=("(model)",),
        why="positions of the new tokens alone",
        edits=(
            (
                "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new.size(1) :]",
                "positions = torch.arange(new.size(1), device=new.device).expand_as(new)",
            ),
        ),
    ),
    _blind(
        name="place_among_the_kept_for_a_token",
        check="generate_equivalence",
        family="choice_is_not_the_largest",
        parent="trained_gpt",
        where=("(model)",),
        why="a token is drawn among the top k and its place there is returned",
        edits=(
            (
                'logits = logits.masked_fill(logits < kept[:, [-1]], float("-inf"))',
                "logits = kept",
            ),
        ),
    ),
    _blind(
        name="source_without_the_last_norm",
        check="generate_equivalence",
        family="generation_reads_another_text",
        parent="summarizer",
        where=("(model)",),
        why="the encoder is run by hand and its last norm forgotten",
        edits=(
            (
                "source = self.encode(input_ids, None)",
                "source = self.embed(input_ids)\n"
                "        for layer in self.encoder:\n"
                "            source = layer(source, None, None, None)",
            ),
        ),
    ),
    _blind(
        name="activation_approximated_when_compiled",
        check="export_equivalence",
        family="another_path_when_exported",
        parent="bert",
        where=("encoder.0",),
        why="the faster activation in programs that are compiled",
        edits=(
            (
                "inner = self.output(F.gelu(self.intermediate(hidden)))",
                'kind = "tanh" if torch.compiler.is_compiling() else "none"\n'
                "        inner = self.output("
                "F.gelu(self.intermediate(hidden), approximate=kind))",
            ),
        ),
    ),
    _blind(
        name="all_experts_when_exported",
        check="export_equivalence",
        family="another_path_when_exported",
        parent="stacked_experts",
        where=("layers.0.experts",),
        why="top-k is replaced by all experts for a runtime that has none",
        edits=(
            (
                "gates = torch.zeros_like(scores).scatter(-1, chosen, values)",
                "gates = torch.zeros_like(scores).scatter(-1, chosen, values)\n"
                "        if torch.compiler.is_exporting():\n"
                "            gates = scores",
            ),
        ),
    ),
    _blind(
        name="pairs_from_two_halves",
        check="reference",
        family="layout_of_another_library",
        parent="rotary_tied",
        where=("blocks.0.attention",),
        why="rotary pairs are neighbours in one library and halves in another",
        edits=(
            ("even, odd = x[..., 0::2], x[..., 1::2]", "even, odd = x.chunk(2, dim=-1)"),
            (
                "return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)"
                ".flatten(-2)",
                "return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)",
            ),
        ),
    ),
    _blind(
        name="tanh_approximation_in_the_port",
        check="reference",
        family="constant_of_another_library",
        parent="cached_gpt",
        where=("h.0",),
        why="gelu_new for gelu",
        edits=(
            ("F.gelu(self.fc(self.ln_2(x)))", 'F.gelu(self.fc(self.ln_2(x)), approximate="tanh")'),
        ),
    ),
    _blind(
        name="sum_with_the_normalised_input",
        check="reference",
        family="layout_of_another_library",
        parent="vit",
        where=("blocks.0",),
        why="the residual is taken behind the norm, as an option of another library does",
        edits=(("x = x + self.attn(h, h, h", "x = h + self.attn(h, h, h"),),
    ),
)
