"""Ids that are read as others, and tables and heads of another size than the vocabulary."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_edge = partial(Mutant, check="vocabulary_bounds")

MUTANTS = (
    _edge(
        name="ids_wrap",
        family="ids_folded",
        parent="nanogpt",
        where=("(model)",),
        why="% vocab_size to get rid of an IndexError",
        edits=(
            (
                'tok_emb = self.transformer["wte"](idx)',
                'tok_emb = self.transformer["wte"](idx % self.config.vocab_size)',
            ),
        ),
    ),
    _edge(
        name="ids_clamped",
        family="ids_folded",
        parent="llama",
        where=("(model)",),
        why="clamp to get rid of an IndexError",
        edits=(
            (
                "x = self.embed_tokens(input_ids)",
                "x = self.embed_tokens(input_ids.clamp(max=self.embed_tokens.num_embeddings - 1))",
            ),
        ),
    ),
    _edge(
        name="negative_ids_are_zero",
        family="ids_folded",
        parent="alibi",
        where=("(model)",),
        why="-100 in the ids is taken for a token",
        edits=(
            (
                "x = self.token_embedding(tokens)",
                "x = self.token_embedding(tokens.clamp(min=0))",
            ),
        ),
    ),
    _edge(
        name="negative_ids_by_abs",
        family="ids_folded",
        parent="mha_decoder",
        where=("(model)",),
        why="abs() on ids",
        edits=(("x = self.embed(input_ids) *", "x = self.embed(input_ids.abs()) *"),),
    ),
    _edge(
        name="decoder_ids_wrap",
        family="ids_folded",
        parent="seq2seq",
        where=("(model)",),
        why="only the decoder's ids wrap",
        edits=(
            (
                "y = self.shared(decoder_input_ids) + self.decoder_positions(steps)",
                "ids = decoder_input_ids.remainder(self.shared.num_embeddings)\n"
                "        y = self.shared(ids) + self.decoder_positions(steps)",
            ),
        ),
    ),
    _edge(
        name="table_one_row_short",
        family="vocabulary_of_another_size",
        parent="conv_gpt",
        where=("embedding",),
        why="vocab_size - 1 rows: the last id has none",
        edits=(("nn.Embedding(vocab_size, dim)", "nn.Embedding(vocab_size - 1, dim)"),),
    ),
    _edge(
        name="head_one_column_short",
        family="vocabulary_of_another_size",
        parent="sliding_window",
        where=("lm_head",),
        why="the last id can never be predicted",
        edits=(
            (
                "self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)",
                "self.lm_head = nn.Linear(hidden_size, vocab_size - 1, bias=False)",
            ),
        ),
    ),
    _edge(
        name="head_of_the_other_vocabulary",
        family="vocabulary_of_another_size",
        parent="pad_translator",
        where=("fc_out",),
        why="the head of the target has the size of the source's vocabulary",
        edits=(
            (
                "self.fc_out = nn.Linear(d_model, tgt_vocab_size)",
                "self.fc_out = nn.Linear(d_model, src_vocab_size)",
            ),
        ),
    ),
    _edge(
        name="ids_of_both_sides_clamped",
        family="ids_folded",
        parent="cached_seq2seq",
        where=("(model)", "shared"),
        why="clamp in the function that both sides use",
        edits=(
            (
                "return self.shared(ids) + self.positions(steps)",
                "return self.shared(ids.clamp(0, self.shared.num_embeddings - 1)) + "
                "self.positions(steps)",
            ),
        ),
    ),
    _edge(
        name="ids_wrap_below_the_vocabulary",
        family="ids_folded",
        parent="sliding_window",
        where=("(model)", "embed"),
        why="% with the size of another tokenizer: the last ids are read as the first",
        edits=(
            (
                "self.embed(input_ids)",
                "self.embed(input_ids % (self.embed.num_embeddings - 3))",
            ),
        ),
    ),
    _edge(
        name="last_id_read_as_the_one_before",
        family="ids_folded",
        parent="paired_layers",
        where=("(model)", "token_emb"),
        why="clamp to a largest id that is one too small",
        edits=(
            (
                "self.token_emb(tokens)",
                "self.token_emb(tokens.clamp(max=self.token_emb.num_embeddings - 2))",
            ),
        ),
    ),
    _edge(
        name="padding_of_the_table_typed",
        family="token_taken_for_padding",
        parent="pad_classifier",
        where=("embedding",),
        why="padding_idx of the last tokenizer; the texts are padded with another id",
        edits=(("padding_idx=pad_id", "padding_idx=1"),),
    ),
    _edge(
        name="padding_of_the_target_table",
        family="token_taken_for_padding",
        parent="pad_translator",
        where=("trg_tokens",),
        why="padding_idx=0 by habit, where padding is 1",
        edits=(
            (
                "self.trg_tokens = nn.Embedding(tgt_vocab_size, d_model)",
                "self.trg_tokens = nn.Embedding(tgt_vocab_size, d_model, padding_idx=0)",
            ),
        ),
    ),
    _edge(
        name="last_id_is_padding_of_the_table",
        family="token_taken_for_padding",
        parent="bert",
        where=("embeddings.word_embeddings",),
        why='padding_idx=-1 for "the padding id": the last row of the table',
        edits=(("padding_idx=pad", "padding_idx=-1"),),
    ),
)
