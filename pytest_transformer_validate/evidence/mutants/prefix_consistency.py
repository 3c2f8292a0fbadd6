"""Mistakes by which a token's result depends on how many tokens follow."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_depends = partial(Mutant, check="prefix_consistency")

MUTANTS = (
    _depends(
        name="positions_from_the_end",
        family="positions_by_the_length",
        parent="sdpa_gpt",
        where=("wpe",),
        why="left-padded positions without the padding",
        edits=(("self.wpe(positions))", "self.wpe(positions.flip(0)))"),),
    ),
    _depends(
        name="target_positions_from_the_end",
        family="positions_by_the_length",
        parent="seq2seq",
        where=("decoder_positions",),
        why="positions counted down in the decoder",
        edits=(("self.decoder_positions(steps)", "self.decoder_positions(steps.flip(0))"),),
    ),
    _depends(
        name="positions_stretched",
        family="positions_by_the_length",
        parent="llama",
        where=("rotary", "layers.0.self_attn"),
        why="positions are interpolated to a fixed range for every text",
        edits=(
            (
                "cos, sin = self.rotary(position_ids)",
                "cos, sin = self.rotary(position_ids * 32.0 / length)",
            ),
        ),
    ),
    _depends(
        name="positions_squeezed_from_some_length_on",
        family="positions_by_the_length",
        parent="rotary_tied",
        where=("rotary", "blocks.*.attention"),
        why="interpolation for texts above 32 tokens follows each text's length",
        edits=(
            (
                "        angles = torch.outer(steps,",
                "        steps = steps * min(1.0, 32 / x.size(1))\n"
                "        angles = torch.outer(steps,",
            ),
        ),
    ),
    _depends(
        name="scores_sharpened_in_long_texts",
        family="length_in_the_arithmetic",
        parent="stacked_experts",
        where=("layers.*.attention",),
        why="a temperature for texts above the trained length, one for all positions; that the "
        "router takes a top-k is no excuse for attention",
        edits=(
            (
                "/ q.size(-1) ** 0.5\n",
                "/ q.size(-1) ** 0.5\n        scores = scores * max(1.0, length / 32)\n",
            ),
        ),
    ),
    _depends(
        name="scaled_by_length",
        family="length_in_the_arithmetic",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="size(-2) for size(-1) in the scale of the scores",
        edits=(("math.sqrt(k.size(-1))", "math.sqrt(k.size(-2))"),),
    ),
    _depends(
        name="temperature_by_length",
        family="length_in_the_arithmetic",
        parent="llama",
        where=("layers.0.self_attn",),
        why="a log-length temperature with the length of the whole text for every row",
        edits=(
            ("/ self.head_dim**0.5", "/ self.head_dim**0.5 * torch.tensor(length).log().item()"),
        ),
    ),
    _depends(
        name="distance_by_length",
        family="length_in_the_arithmetic",
        parent="alibi",
        where=("blocks.0.attention",),
        why="distances normalised by the length of the text",
        edits=(("bias = self.slopes * distance\n", "bias = self.slopes * distance / length\n"),),
    ),
    _depends(
        name="logits_by_length",
        family="length_in_the_arithmetic",
        parent="mha_decoder",
        where=("(model)",),
        why="a mean over the text that was meant for the loss",
        edits=(
            ("return self.lm_head(self.norm(x))", "return self.lm_head(self.norm(x)) / x.size(1)"),
        ),
    ),
    _depends(
        name="states_by_length",
        family="length_in_the_arithmetic",
        parent="recurrent",
        where=("mixer",),
        why="running sums divided by the length of the whole text",
        edits=(("return self.out(states)", "return self.out(states / x.size(1))"),),
    ),
    _depends(
        name="positions_scaled_by_the_length",
        family="length_in_the_arithmetic",
        parent="given_mask",
        where=("(model)", "position"),
        why="positions are scaled by the square root of a length, which is not the width",
        edits=(("self.position(steps)", "self.position(steps) / tokens.size(1) ** 0.5"),),
    ),
    _depends(
        name="one_token_without_values",
        family="one_token_alone",
        parent="sdpa_gpt",
        where=("blocks.0.attn",),
        why="a single token has nothing to attend to: attention is left out, and its values too",
        edits=(
            (
                "        q, k, v = self.qkv(x).split(width, dim=2)",
                "        if length == 1:\n"
                "            return self.proj(x)\n"
                "        q, k, v = self.qkv(x).split(width, dim=2)",
            ),
        ),
    ),
    _depends(
        name="one_token_without_attention",
        family="one_token_alone",
        parent="alibi",
        where=("blocks.0",),
        why="a shortcut for the first step of decoding",
        edits=(
            (
                "        x = x + self.attention(self.norm_attention(x))",
                "        if x.size(1) > 1:\n"
                "            x = x + self.attention(self.norm_attention(x))",
            ),
        ),
    ),
    _depends(
        name="one_token_without_norm",
        family="one_token_alone",
        parent="mha_decoder",
        where=("(model)",),
        why="the path of a decoding step forgets the last norm",
        edits=(
            (
                "return self.lm_head(self.norm(x))",
                "return self.lm_head(self.norm(x) if x.size(1) > 1 else x)",
            ),
        ),
    ),
)
