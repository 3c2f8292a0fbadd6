"""Texts longer than the maximum that are processed as if they were something else."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_long = partial(Mutant, check="length_limit")

MUTANTS = (
    _long(
        name="positions_wrap",
        family="long_text_folded",
        parent="sdpa_gpt",
        where=("(model)", "wpe"),
        why="% n_positions to get rid of an IndexError",
        edits=(
            (
                "self.wte(input_ids) + self.wpe(positions)",
                "self.wte(input_ids) + self.wpe(positions % self.wpe.num_embeddings)",
            ),
        ),
    ),
    _long(
        name="positions_stop_at_the_last",
        family="long_text_folded",
        parent="sliding_window",
        where=("(model)", "embed_pos"),
        why="every token above the maximum has the last position",
        edits=(
            (
                "self.embed_pos(steps)[None]",
                "self.embed_pos(steps.clamp(max=self.embed_pos.num_embeddings - 1))[None]",
            ),
        ),
    ),
    _long(
        name="rotary_positions_wrap",
        family="long_text_folded",
        parent="llama",
        where=("(model)", "rotary"),
        why="rotary angles start again at the maximum that the configuration names",
        edits=(
            (
                "cos, sin = self.rotary(position_ids)",
                "cos, sin = self.rotary(position_ids % 64)",
            ),
        ),
    ),
    _long(
        name="decoder_positions_clamped",
        family="long_text_folded",
        parent="seq2seq",
        where=("(model)", "decoder_positions"),
        why="the decoder goes on at its last position",
        edits=(
            (
                "y = self.shared(decoder_input_ids) + self.decoder_positions(steps)",
                "steps = torch.clamp(steps, max=self.decoder_positions.num_embeddings - 1)\n"
                "        y = self.shared(decoder_input_ids) + self.decoder_positions(steps)",
            ),
        ),
    ),
    _long(
        name="text_is_cut",
        family="long_text_cut",
        parent="nanogpt",
        where=(),
        why="the crop of the sampling loop in forward: fewer outputs than inputs",
        edits=(
            (
                "        B, T = idx.size()\n",
                "        idx = idx[:, -self.config.block_size :]\n"
                "        targets = targets if targets is None else targets[:, -idx.size(1) :]\n"
                "        B, T = idx.size()\n",
            ),
        ),
    ),
    _long(
        name="classifier_cuts_the_text",
        family="long_text_cut",
        parent="text_classifier",
        where=(),
        why="the end of a long text is not read, and nobody is told",
        edits=(
            (
                "        if attention_mask is None:\n",
                "        input_ids = input_ids[:, : self.positions.size(1)]\n"
                "        if attention_mask is None:\n",
            ),
        ),
    ),
    _long(
        name="encoder_cuts_the_text",
        family="long_text_cut",
        parent="bert",
        where=(),
        why="truncation of the tokenizer copied into the model, for the mask as for the ids",
        edits=(
            (
                "        if attention_mask is None:\n",
                "        longest = self.embeddings.position_embeddings.num_embeddings\n"
                "        input_ids = input_ids[:, :longest]\n"
                "        if attention_mask is not None:\n"
                "            attention_mask = attention_mask[:, :longest]\n"
                "        if token_type_ids is not None:\n"
                "            token_type_ids = token_type_ids[:, :longest]\n"
                "        if attention_mask is None:\n",
            ),
        ),
    ),
)
