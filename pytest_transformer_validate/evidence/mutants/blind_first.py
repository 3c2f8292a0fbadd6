"""Mistakes written from the names of their families alone, without a look at the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_transformer_validate.evidence.mutants.surgery import ROOT, Mutant

if TYPE_CHECKING:
    import torch


def no_dropout_in_the_first_layer(model: torch.nn.Module) -> None:
    layers: Any = model.layers
    layers[0].dropout = nn.Identity()


MUTANTS = (
    Mutant(
        name="blind_mask_scaled_by_the_slopes",
        family="causal_mask_not_everywhere",
        parent="alibi",
        check="causality",
        where=("blocks.*.attention",),
        why="the penalty for the future goes into the distances, so the flattest head weakens it",
        edits=(
            (
                "        bias = self.slopes * distance\n"
                '        return bias.masked_fill(distance > 0, float("-inf"))\n',
                "        return self.slopes * distance.masked_fill(distance > 0, -1000)\n",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_quantised_with_one_scale_for_all_rows",
        family="computed_over_the_rows",
        parent="sdpa_gpt",
        check="batch_independence",
        where=("blocks.*.mlp",),
        why="the scale of simulated int8 activations is the maximum over the rows too",
        edits=(
            (
                "        return self.dropout(self.proj(F.gelu(self.fc(x))))\n",
                "        h = F.gelu(self.fc(x))\n"
                "        scale = h.detach().abs().amax(dim=(0, 2), keepdim=True).clamp(min=1e-8)\n"
                "        rounded = (h / scale * 127).round() * scale / 127\n"
                "        h = h + (rounded - h).detach()\n"
                "        return self.dropout(self.proj(h))\n",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_scores_divided_by_the_batch_size",
        family="batch_size_in_the_arithmetic",
        parent="seq2seq",
        check="batch_size_invariance",
        where=(
            "encoder_layers.*.self_attn",
            "decoder_layers.*.self_attn",
            "decoder_layers.*.cross_attn",
        ),
        why="len() of the queries is taken for their width",
        edits=(("math.sqrt(q.size(-1))", "math.sqrt(len(q))"),),
        blind=True,
    ),
    Mutant(
        name="blind_bias_table_for_32_tokens",
        family="size_hard_coded",
        parent="alibi",
        check="shape_robustness",
        where=("blocks.*.attention",),
        why="the bias is made once, for the length of the training texts, to save time",
        edits=(
            (
                "alibi_slopes(heads).view(1, heads, 1, 1))\n",
                "alibi_slopes(heads).view(1, heads, 1, 1))\n"
                '        self.register_buffer("table", self.bias(32), persistent=False)\n',
            ),
            (
                "attn_mask=self.bias(x.size(1))",
                "attn_mask=self.table[..., : x.size(1), : x.size(1)]",
            ),
        ),
        raises=True,
        blind=True,
    ),
    Mutant(
        name="blind_padding_mask_as_numbers",
        family="padding_mask_too_weak",
        parent="torch_encoder",
        check="padding",
        where=(ROOT, "encoder.layers.*.self_attn"),
        why="a padding mask of ones and zeros is added to the scores, only a bool one is a mask",
        edits=(
            (
                "else attention_mask == 0",
                "else (attention_mask == 0).to(self.mlm_head.weight.dtype)",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_first_padding_read_as_last_token",
        family="padding_in_a_summary",
        parent="pad_classifier",
        check="padding",
        where=("last",),
        why="the index of the last token is off by one, a clamp hides it where nothing is padded",
        edits=(
            (
                "last = (~padding).sum(dim=1) - 1",
                "last = (~padding).sum(dim=1).clamp(max=x.size(1) - 1)",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_only_bool_masks_heard",
        family="mask_ignored",
        parent="llama",
        check="mask_effect",
        where=(ROOT,),
        why="the type is asked for, and the zeros and ones of a tokenizer are of another",
        edits=(
            (
                "if attention_mask is not None:",
                "if attention_mask is not None and attention_mask.dtype == torch.bool:",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_router_jitter_in_eval",
        family="noise_in_evaluation",
        parent="moe",
        check="determinism",
        where=("layers.*.moe",),
        why="the noise that spreads the load in training is not switched off afterwards",
        edits=(
            (
                "        scores = self.gate(tokens).softmax(dim=-1)\n",
                "        scores = self.gate(tokens)\n"
                "        scores = (scores + 0.01 * torch.randn_like(scores)).softmax(dim=-1)\n",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_images_normalised_in_place",
        family="writes_its_inputs",
        parent="vit",
        check="statelessness",
        where=(ROOT,),
        why="normalising in place saves a copy and writes into the caller's images",
        edits=(
            (
                "self.dropout(self.patches(pixel_values))",
                "self.dropout(self.patches(pixel_values.sub_(0.5).div_(0.5)))",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_first_layer_without_dropout",
        family="dropout_not_in_every_layer",
        parent="recurrent",
        check="dropout",
        where=("layers.0", "layers.0.dropout"),
        why="switched off while looking for something else and never put back",
        operate=no_dropout_in_the_first_layer,
        blind=True,
    ),
    Mutant(
        name="blind_keys_without_gradient",
        family="graph_cut",
        parent="llama_start_pos",
        check="gradient_flow",
        where=("layers.*.attention", "layers.*.attention.wk"),
        why="what may go into the cache is detached on the way for training too",
        edits=(("keys, values = xk, xv", "keys, values = xk.detach(), xv"),),
        blind=True,
    ),
    Mutant(
        name="blind_last_expert_never_chosen",
        family="part_never_used",
        parent="stacked_experts",
        check="gradient_flow",
        where=("layers.*.experts",),
        why="the first column is taken for the shared expert's and the indices are not moved back",
        edits=(("scores.topk(self.chosen, dim=-1)", "scores[..., 1:].topk(self.chosen, dim=-1)"),),
        blind=True,
    ),
    Mutant(
        name="blind_nan_after_left_padding",
        family="output_not_a_number",
        parent="llama",
        check="output_stability",
        where=("layers.*.self_attn",),
        why="a padded row before the text has nothing to attend to and softmax sees only -inf",
        edits=(("torch.finfo(scores.dtype).min", 'float("-inf")'),),
        blind=True,
    ),
    Mutant(
        name="blind_relu_on_the_logits",
        family="logits_squashed",
        parent="simple_classifier",
        check="output_kind",
        where=(ROOT,),
        why="every linear layer gets an activation, the last one as well",
        edits=(("return self.out(x)", "return torch.relu(self.out(x))"),),
        blind=True,
    ),
    Mutant(
        name="blind_seed_set_in_every_block",
        family="drawn_once",
        parent="masked_gpt",
        check="parameter_initialization",
        where=("blocks.*", "blocks.*.attn", "blocks.*.mlp"),
        why="a seed set in the constructor, for runs that repeat, repeats the weights as well",
        edits=(
            (
                "        self.norm1 = nn.LayerNorm(d_model)\n",
                "        torch.manual_seed(1337)\n        self.norm1 = nn.LayerNorm(d_model)\n",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_interleaved_angles_for_split_halves",
        family="rotation_mismatched",
        parent="llama",
        check="position_sensitivity",
        where=("rotary", "layers.*.self_attn"),
        why="the two conventions for rotary pairs are mixed, angles from one, rotation from other",
        edits=(
            (
                "angles = torch.cat([angles, angles], dim=-1)",
                "angles = angles.repeat_interleave(2, dim=-1)",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_scores_sharpened_by_the_text_length",
        family="length_in_the_arithmetic",
        parent="stacked_experts",
        check="prefix_consistency",
        where=("layers.*.attention",),
        why="log-length scaling takes the length of the text, not what each token can see",
        edits=(
            (
                "import torch\nimport torch.nn.functional as F\n",
                "import math\n\nimport torch\nimport torch.nn.functional as F\n",
            ),
            (
                "/ q.size(-1) ** 0.5\n",
                "/ q.size(-1) ** 0.5\n        scores = scores * math.log2(length + 1) / 4\n",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_context_of_sixteen_left_in",
        family="context_cut_short",
        parent="nanogpt",
        check="context_use",
        where=("transformer.h.*.attn",),
        why="a trial with local attention stays in the stored mask",
        edits=(
            (
                "tril = torch.tril(torch.ones(size, size)).view",
                "tril = torch.tril(torch.ones(size, size)).triu(-15).view",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_causal_unless_given_a_mask",
        family="encoder_sees_one_side",
        parent="bert",
        check="bidirectionality",
        where=(ROOT, "encoder.*.attention"),
        why="the default mask comes from a decoder's code, where no mask means a causal one",
        edits=(
            (
                "            attention_mask = torch.ones_like(input_ids)\n",
                "            length = input_ids.size(1)\n"
                "            attention_mask = torch.ones_like(input_ids)[:, None, :]\n"
                "            attention_mask = attention_mask.repeat(1, length, 1).tril()\n"
                "        if attention_mask.dim() == 2:\n"
                "            attention_mask = attention_mask[:, None, :]\n",
            ),
            ("attention_mask[:, None, None, :].to", "attention_mask[:, None].to"),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_second_layer_reads_the_first",
        family="encoder_ignored",
        parent="seq2seq",
        check="encoder_use",
        where=(ROOT, "decoder_layers.1", "decoder_layers.1.cross_attn"),
        why="what a layer returns is handed on as the memory, as it is between encoder layers",
        edits=(
            (
                "            y = layer(y, memory, causal, mask)\n",
                "            y = layer(y, memory, causal, mask)\n"
                "            memory, mask = y, causal\n",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_heads_joined_without_permuting",
        family="heads_mixed_up",
        parent="bert",
        check="attention_structure",
        where=("encoder.*.attention",),
        why="a reshape gives the right shape without swapping heads and positions first",
        edits=(("context.permute(0, 2, 1, 3).flatten(2)", "context.reshape(hidden.shape)"),),
        blind=True,
    ),
    Mutant(
        name="blind_window_cache_one_short",
        family="cached_step_sees_wrong_tokens",
        parent="window_cache",
        check="kv_cache",
        where=("layers.*.attn",),
        why="the new token and the query are both taken off the window",
        edits=(("keep = self.window - 1", "keep = self.window - 2"),),
        blind=True,
    ),
    Mutant(
        name="blind_loss_divided_by_all_labels",
        family="ignored_labels_counted",
        parent="window_cache",
        check="loss_alignment",
        where=(ROOT,),
        why="the sum of the losses is divided by the number of labels, ignored ones included",
        edits=(
            (
                "F.cross_entropy(shift_logits, shift_labels, ignore_index=-100)",
                'F.cross_entropy(shift_logits, shift_labels, reduction="sum")\n'
                '            out["loss"] = out["loss"] / shift_labels.numel()',
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_head_copied_from_the_embedding",
        family="tied_by_copy",
        parent="rotary_tied",
        check="weight_tying",
        where=(ROOT, "head"),
        why="the values are copied once where the parameter should have been shared",
        edits=(
            (
                "self.head.weight = self.embed.weight",
                "self.head.weight.data.copy_(self.embed.weight.data)",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_first_state_not_in_the_checkpoint",
        family="state_not_in_the_checkpoint",
        parent="recurrent",
        check="round_trip",
        where=("mixer",),
        why="a random first state is kept as a buffer that is not saved",
        edits=(
            (
                "        self.out = nn.Linear(width, width)\n",
                "        self.out = nn.Linear(width, width)\n"
                "        state = 0.5 * torch.randn(1, 1, width)\n"
                '        self.register_buffer("state", state, persistent=False)\n',
            ),
            (
                "states, _ = self.gru(x)",
                "states, _ = self.gru(x, self.state.repeat(1, x.size(0), 1))",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_value_cache_left_behind",
        family="tensor_not_registered",
        parent="llama_start_pos",
        check="registered_tensors",
        where=("layers.*.attention",),
        why="only one of the two caches was made a buffer when the model had to move",
        edits=(
            (
                'self.register_buffer("cache_v", torch.zeros(shape), persistent=False)',
                "self.cache_v = torch.zeros(shape)",
            ),
        ),
        blind=True,
    ),
    Mutant(
        name="blind_mask_stays_in_float32",
        family="dtype_hard_coded",
        parent="llama_start_pos",
        check="precision",
        where=(ROOT, "layers.*.attention"),
        why="the mask is never brought to the type of the weights, which shows in half only",
        edits=(("            mask = mask.type_as(h)\n", ""),),
        blind=True,
        undetectable="without the line nothing says that another dtype than float32 was meant; "
        "the record says that bfloat16 does not run",
    ),
    Mutant(
        name="blind_ignored_labels_taken_as_tokens",
        family="ids_folded",
        parent="conv_gpt",
        check="vocabulary_bounds",
        where=(ROOT, "embedding"),
        why="a clamp silences the error of labels with -100 given as input",
        edits=(("x = self.embedding(x)", "x = self.embedding(x.clamp(min=0))"),),
        blind=True,
    ),
    Mutant(
        name="blind_last_position_for_all_that_follow",
        family="long_text_folded",
        parent="masked_gpt",
        check="length_limit",
        where=(ROOT, "positions"),
        why="a clamp keeps generation from stopping at the last learned position",
        edits=((".clamp(min=0)", ".clamp(0, self.positions.num_embeddings - 1)"),),
        blind=True,
    ),
    Mutant(
        name="blind_every_row_by_every_index",
        family="quadratic_in_the_batch",
        parent="pad_classifier",
        check="memory_footprint",
        where=("last",),
        why="an index without the rows gives all pairs, of which the diagonal is the answer",
        edits=(
            (
                "        return x[torch.arange(x.size(0), device=x.device), last]\n",
                "        return x[:, last].diagonal(dim1=0, dim2=1).transpose(0, 1)\n",
            ),
        ),
        blind=True,
    ),
)
