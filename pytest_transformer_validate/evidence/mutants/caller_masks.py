"""Mistakes with masks that the caller gives: the model does not honour them everywhere."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_causal = partial(Mutant, check="causality")
_padding = partial(Mutant, check="padding")

MUTANTS = (
    _causal(
        name="given_mask_for_first_layer_only",
        family="causal_mask_not_everywhere",
        parent="given_mask",
        where=("blocks.1.attn",),
        why="the mask is handed to the first block, the others get an open one",
        edits=(
            (
                "x = block(x, causal_mask)",
                "x = block(x, causal_mask)\n"
                "            causal_mask = torch.zeros_like(causal_mask)",
            ),
        ),
    ),
    _causal(
        name="given_mask_shifted",
        family="causal_mask_off_by_one",
        parent="given_mask",
        where=("blocks.*.attn",),
        why="aligned with the targets: every row of the mask is the next one's",
        edits=(
            (
                "scores = scores + mask",
                "scores = scores + torch.cat([mask[1:], mask[-1:]])",
            ),
        ),
    ),
    _causal(
        name="given_mask_added_after_softmax",
        family="causal_mask_misapplied",
        parent="given_mask",
        where=("blocks.*.attn",),
        why="softmax first, then zeros where the mask says so: what was hidden shares the weights",
        edits=(
            (
                "scores = scores + mask\n        out = scores.softmax(dim=-1) @ v",
                "out = (scores.softmax(dim=-1) * mask.exp()) @ v",
            ),
        ),
    ),
    _causal(
        name="given_mask_for_half_of_the_heads",
        family="causal_mask_not_everywhere",
        parent="given_mask",
        where=("blocks.*.attn",),
        why="written for the local heads of a split model",
        edits=(
            (
                "scores = scores + mask",
                "scores[:, : self.heads // 2] += mask",
            ),
        ),
    ),
    _causal(
        name="given_target_mask_lost_in_last_layer",
        family="causal_mask_not_everywhere",
        parent="annotated",
        where=("decoder.1.self_attn",),
        why="the last layer is called by hand, with the default mask",
        edits=(
            (
                "for layer in self.decoder:\n            x = layer(x, memory, src_mask, tgt_mask)",
                "for layer in self.decoder:\n"
                "            last = layer is self.decoder[-1]\n"
                "            x = layer(x, memory, src_mask, None if last else tgt_mask)",
            ),
        ),
    ),
    _causal(
        name="given_target_mask_read_by_its_last_row",
        family="causal_mask_misapplied",
        parent="annotated",
        where=("decoder.*.self_attn",),
        why="the mask of the keys is taken from the row that sees everything",
        edits=(
            (
                "x = x + self.self_attn(y, y, y, tgt_mask)",
                "x = x + self.self_attn(y, y, y, tgt_mask[:, -1:])",
            ),
        ),
    ),
    _causal(
        name="given_target_mask_off_by_one",
        family="causal_mask_off_by_one",
        parent="annotated",
        where=("decoder.*.self_attn",),
        why="one more diagonal is opened, for a start token that is not there",
        edits=(
            (
                "x = x + self.self_attn(y, y, y, tgt_mask)",
                "x = x + self.self_attn(y, y, y, tgt_mask | tgt_mask.roll(1, dims=-1))",
            ),
        ),
    ),
    _causal(
        name="given_target_mask_not_handed_to_torch",
        family="causal_mask_not_everywhere",
        parent="torch_translation",
        where=(
            "transformer.decoder.layers.*.self_attn",
            "transformer.decoder.layers.*",
            "transformer.decoder",
            "transformer",
        ),
        why="None in one place too early",
        edits=(
            (
                "            tgt_mask,\n            None,\n",
                "            None,\n            None,\n",
            ),
        ),
    ),
    _padding(
        name="given_memory_mask_not_handed_on",
        family="padding_of_the_source_seen",
        parent="torch_translation",
        where=(
            "transformer.decoder.layers.*.multihead_attn",
            "transformer.decoder.layers.*",
            "transformer.decoder",
            "transformer",
        ),
        why="the last of many masks forgotten: the decoder reads padding of the source",
        edits=(
            (
                "            tgt_padding_mask,\n            memory_key_padding_mask,\n        )",
                "            tgt_padding_mask,\n        )",
            ),
        ),
    ),
    _padding(
        name="given_source_mask_not_in_cross_attention",
        family="padding_of_the_source_seen",
        parent="annotated",
        where=("decoder.*.src_attn",),
        why="padding of the source hidden from the encoder only",
        edits=(
            (
                "self.src_attn(self.norms[1](x), memory, memory, src_mask)",
                "self.src_attn(self.norms[1](x), memory, memory, None)",
            ),
        ),
    ),
    _padding(
        name="given_source_mask_of_the_first_row",
        family="padding_of_the_source_seen",
        parent="annotated",
        where=("encoder.*.self_attn", "decoder.*.src_attn"),
        why="the mask is expanded from its first row",
        edits=(
            (
                "memory = self.encode(src, src_mask)",
                "src_mask = src_mask[:1]\n        memory = self.encode(src, src_mask)",
            ),
        ),
    ),
)
