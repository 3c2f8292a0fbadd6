"""Mistakes that show at some lengths or batch sizes only."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_shape = partial(Mutant, check="shape_robustness")

MUTANTS = (
    _shape(
        name="squeeze_drops_batch_of_one",
        family="axis_squeezed",
        parent="text_classifier",
        where=("(model)",),
        why="squeeze() without a dimension",
        edits=(
            (
                "return self.classifier(self.pool(self.norm(x), mask))",
                "return self.classifier(self.pool(self.norm(x), mask)).squeeze()",
            ),
        ),
    ),
    _shape(
        name="squeeze_drops_length_of_one",
        family="axis_squeezed",
        parent="mha_decoder",
        where=("(model)",),
        why="squeeze(1) meant for the output of a pooling",
        edits=(
            ("return self.lm_head(self.norm(x))", "return self.lm_head(self.norm(x)).squeeze(1)"),
        ),
    ),
    _shape(
        name="cls_squeezed",
        family="axis_squeezed",
        parent="vit",
        where=("(model)",),
        why="squeeze after taking the CLS token",
        edits=(("return self.head(x[:, 0])", "return self.head(x[:, :1].squeeze())"),),
    ),
    _shape(
        name="single_token_special_case",
        family="outputs_of_another_length",
        parent="llama",
        where=("(model)",),
        why="decoding step returns the logits of its one token without the length axis",
        edits=(
            (
                "logits = self.lm_head(self.norm(x))",
                "logits = self.lm_head(self.norm(x))\n"
                "        if length == 1:\n"
                "            logits = logits[:, -1]",
            ),
        ),
    ),
    _shape(
        name="odd_token_dropped",
        family="outputs_of_another_length",
        parent="conv_gpt",
        where=("(model)",),
        why="tokens handled in pairs, the odd one is left over",
        edits=(
            (
                "return self.unembedding(self.norm(x))",
                "pairs = max(1, x.size(1) // 2)\n"
                "        return self.unembedding(self.norm(x[:, : 2 * pairs]))",
            ),
        ),
    ),
    _shape(
        name="last_token_only",
        family="outputs_of_another_length",
        parent="mha_decoder",
        where=("(model)",),
        why="inference shortcut left in",
        edits=(
            (
                "return self.lm_head(self.norm(x))",
                "return self.lm_head(self.norm(x[:, -1:]))",
            ),
        ),
    ),
    _shape(
        name="output_time_major",
        family="outputs_of_another_length",
        parent="torch_causal_lm",
        where=("(model)",),
        why="not transposed back",
        edits=(("return self.linear(x).transpose(0, 1)", "return self.linear(x)"),),
    ),
    _shape(
        name="position_table_one_short",
        family="table_too_short",
        parent="sdpa_gpt",
        where=("wpe",),
        why="room for one token less than promised",
        edits=(("nn.Embedding(n_positions, n_embd)", "nn.Embedding(n_positions - 1, n_embd)"),),
        raises=True,
    ),
    _shape(
        name="positions_from_one",
        family="table_too_short",
        parent="torch_encoder",
        where=("embedding.position",),
        why="positions counted from one in a table that was not enlarged",
        edits=(
            (
                "torch.arange(input_ids.size(1), device=input_ids.device)",
                "torch.arange(1, input_ids.size(1) + 1, device=input_ids.device)",
            ),
        ),
        raises=True,
    ),
    _shape(
        name="mask_buffer_too_short",
        family="table_too_short",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="mask made for half of the context",
        edits=(("size = config.block_size\n", "size = config.block_size // 2\n"),),
        raises=True,
    ),
    _shape(
        name="sinusoid_table_sliced_short",
        family="table_too_short",
        parent="torch_causal_lm",
        where=("pos_encoder",),
        why="default max_len forgotten when the context was made longer",
        edits=(
            (
                "PositionalEncoding(d_model, dropout, max_seq_len)",
                "PositionalEncoding(d_model, dropout, 30)",
            ),
        ),
        raises=True,
    ),
    _shape(
        name="bias_for_fixed_length",
        family="size_hard_coded",
        parent="alibi",
        where=("blocks.0.attention",),
        why="bias built for 32 tokens and cut to length",
        edits=(("self.bias(x.size(1))", "self.bias(32)[..., : x.size(1), : x.size(1)]"),),
        raises=True,
    ),
    _shape(
        name="view_for_fixed_length",
        family="size_hard_coded",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="context length typed into a view",
        edits=(
            (
                "return self.o(y.transpose(1, 2).reshape(batch, length, width))",
                "return self.o(y.transpose(1, 2).reshape(batch, 64, width))",
            ),
        ),
        raises=True,
    ),
    _shape(
        name="view_for_fixed_batch",
        family="size_hard_coded",
        parent="conv_gpt",
        where=("blocks.0.attn",),
        why="training batch size typed into a view",
        edits=(
            (
                "part.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)",
                "part.view(2, length, self.heads, dim // self.heads).transpose(1, 2)",
            ),
        ),
        raises=True,
    ),
    _shape(
        name="state_for_four_rows",
        family="size_hard_coded",
        parent="recurrent",
        where=("mixer", "mixer.gru"),
        why="initial state allocated for the training batch",
        edits=(
            (
                "states, _ = self.gru(x)",
                "start = x.new_zeros(1, 4, x.size(2))[:, : x.size(0)]\n"
                "        states, _ = self.gru(x, start)",
            ),
        ),
        raises=True,
    ),
    _shape(
        name="lengths_of_source_and_target_equal",
        family="size_hard_coded",
        parent="seq2seq",
        where=("decoder_layers.0.self_attn",),
        why="causal mask as wide as the source",
        edits=(
            (
                "torch.ones(length, length, device=y.device)",
                "torch.ones(length, memory.size(1), device=y.device)",
            ),
        ),
        raises=True,
    ),
    _shape(
        name="positions_not_cut",
        family="size_hard_coded",
        parent="paired_layers",
        where=("(model)",),
        why="the whole table of positions is added: every training text is as long as it",
        edits=(("self.pos_emb[:, : tokens.size(1)]", "self.pos_emb"),),
    ),
    _shape(
        name="positions_of_the_whole_table",
        family="size_hard_coded",
        parent="builder_attention",
        where=("(model)",),
        why="the whole table of positions is added: every training text is as long as it",
        edits=(("self.position_0[:length]", "self.position_0"),),
    ),
)
