"""Mistakes by which a mask does not do what it says."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import ROOT, Mutant

_mask = partial(Mutant, check="mask_effect")

MUTANTS = (
    _mask(
        name="mask_is_never_false",
        family="mask_ignored",
        parent="llama",
        where=("layers.0.self_attn",),
        why=">= 0 holds for zeros too",
        edits=(
            ("attention_mask[:, None, None, :].bool()", "(attention_mask >= 0)[:, None, None]"),
        ),
    ),
    _mask(
        name="mask_not_handed_on",
        family="mask_ignored",
        parent="torch_encoder",
        where=("encoder.layers.0.self_attn",),
        why="the padding mask is made and not given to the encoder",
        edits=(("src_key_padding_mask=padding)", "src_key_padding_mask=None)"),),
    ),
    _mask(
        name="mask_is_overwritten",
        family="mask_ignored",
        parent="masked_gpt",
        where=("blocks.0.attn",),
        why="the default is set without asking whether there is a mask",
        edits=(
            (
                "        if attention_mask is None:\n            attention_mask = torch.ones",
                "        attention_mask = torch.ones",
            ),
        ),
    ),
    _mask(
        name="mask_inverted",
        family="mask_inverted",
        parent="torch_encoder",
        where=("encoder.layers.0.self_attn",),
        why="True hides in torch's key_padding_mask and keeps in attention_mask",
        edits=(("attention_mask == 0", "attention_mask != 0"),),
    ),
    _mask(
        name="scores_masked_where_kept",
        family="mask_inverted",
        parent="masked_gpt",
        where=("blocks.0.attn",),
        why="the mask that hides later tokens was inverted, the one that hides padding not",
        edits=(
            (
                "& attention_mask[:, None, None, :].bool()",
                "& ~attention_mask[:, None, None, :].bool()",
            ),
        ),
    ),
    _mask(
        name="encoder_mask_inverted",
        family="mask_inverted",
        parent="seq2seq",
        where=("encoder_layers.0.self_attn",),
        why="1 - mask, as for an additive mask, and then compared with 0",
        edits=(
            (
                "else attention_mask[:, None, None, :]",
                "else (1 - attention_mask)[:, None, None, :]",
            ),
        ),
    ),
    _mask(
        name="scaled_twice_with_a_mask",
        family="another_path_with_a_mask",
        parent="seq2seq",
        where=("encoder_layers.0.self_attn",),
        why="the path with a mask was written later and divides again",
        edits=(
            (
                "scores = scores.masked_fill(mask == 0, -1e9)",
                "scores = scores.masked_fill(mask == 0, -1e9) / (1 + (mask.size(2) == 1))",
            ),
        ),
    ),
    _mask(
        name="mask_moves_positions",
        family="another_path_with_a_mask",
        parent="masked_gpt",
        where=("embed", "positions", "(model)"),
        why="positions of a padded batch start at 1, those without a mask at 0",
        edits=(
            (
                "        if attention_mask is None:\n            attention_mask = torch.ones",
                "        given = attention_mask is not None\n"
                "        if attention_mask is None:\n            attention_mask = torch.ones",
            ),
            (".clamp(min=0)\n", ".clamp(min=0) + given\n"),
        ),
    ),
    _mask(
        name="ones_hide_the_last",
        family="another_path_with_a_mask",
        parent="cached_seq2seq",
        where=("encoder.0", "encoder.0.self_attn", "(model)"),
        why="a length is taken for an index: the last token is hidden",
        edits=(
            (
                "attention_mask[:, None, None, :].bool()",
                "(torch.arange(attention_mask.size(1))"
                " < attention_mask.sum(1, keepdim=True) - 1)[:, None, None, :]",
            ),
        ),
    ),
    _mask(
        name="source_mask_kept_from_the_encoder",
        family="mask_ignored",
        parent="torch_translation",
        where=(ROOT,),
        why="the mask of the memory is taken for the one of the source, which gets None",
        edits=(
            (
                "            src_padding_mask,\n            tgt_padding_mask,\n",
                "            None,\n            tgt_padding_mask,\n",
            ),
        ),
    ),
    _mask(
        name="only_masks_of_floats_heard",
        family="mask_ignored",
        parent="torch_encoder",
        where=(ROOT,),
        why="written for scores that are added; the zeros and ones of a tokenizer are dropped",
        edits=(
            (
                "padding = None if attention_mask is None else attention_mask == 0",
                "added = attention_mask is not None and attention_mask.is_floating_point()\n"
                "        padding = attention_mask == 0 if added else None",
            ),
        ),
    ),
    _mask(
        name="bias_only_with_a_mask",
        family="another_path_with_a_mask",
        parent="relative_encoder",
        where=("(model)", "layers.*.attention"),
        why="the path without a mask was written before the bias",
        edits=(
            (
                "        if attention_mask is not None:\n",
                (
                    "        if attention_mask is None:\n"
                    "            bias = torch.zeros_like(bias)\n"
                    "        else:\n"
                ),
            ),
        ),
    ),
    _mask(
        name="lengths_not_handed_on",
        family="mask_ignored",
        parent="length_tagger",
        where=("blks.0.attention",),
        why="lengths are taken and the layers are called without them",
        edits=(("x = blk(x, valid_lens)", "x = blk(x, None)"),),
    ),
)
