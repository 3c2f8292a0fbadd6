"""Mistakes between an encoder and a decoder."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_lost = partial(Mutant, check="encoder_use", parent="seq2seq")
_CROSS = "self.cross_attn(y, memory, memory_mask)"
_DECODE = (
    "        for layer in self.decoder_layers:\n            y = layer(y, memory, causal, mask)"
)
_ENCODE = "        for layer in self.encoder_layers:\n            x = layer(x, mask)"
_MEMORY = "        memory = self.encode(input_ids, mask)\n"

MUTANTS = (
    _lost(
        name="decoder_attends_to_itself",
        family="encoder_ignored",
        where=("decoder_layers.0.cross_attn",),
        why="the decoder's own states as keys and values",
        edits=((_CROSS, "self.cross_attn(y, y, None)"),),
    ),
    _lost(
        name="memory_overwritten",
        family="encoder_ignored",
        where=("(model)",),
        why="a buffer of the right shape where the encoder's output was meant",
        edits=((_MEMORY, _MEMORY + "        memory = torch.zeros_like(memory)\n"),),
    ),
    _lost(
        name="one_layer_ignores_memory",
        family="encoder_ignored",
        where=("decoder_layers.1.cross_attn",),
        why="a layer index off by one turns cross attention off",
        edits=(
            (
                _DECODE,
                "        for index, layer in enumerate(self.decoder_layers):\n"
                "            y = layer(y, memory * (index == 0), causal, mask)",
            ),
        ),
    ),
    _lost(
        name="last_layer_attends_to_the_text",
        family="encoder_ignored",
        where=("decoder_layers.1", "decoder_layers.1.cross_attn"),
        why="the last layer is called as the layers of a decoder alone are, with itself as memory",
        edits=(
            (
                _DECODE,
                "        for layer in self.decoder_layers[:-1]:\n"
                "            y = layer(y, memory, causal, mask)\n"
                "        y = self.decoder_layers[-1](y, y, causal, causal)",
            ),
        ),
    ),
    _lost(
        name="source_mask_as_long_as_the_text",
        family="part_of_the_source_lost",
        where=("(model)", "decoder_layers.*.cross_attn"),
        why="the mask of the encoder's output is filled up to the length of the decoder's text",
        edits=(
            (
                _DECODE,
                "        keep = torch.arange(memory.size(1), device=y.device) < length\n"
                "        keep = keep.long()[None, None, None]\n"
                "        mask = keep if mask is None else keep * mask\n" + _DECODE,
            ),
        ),
    ),
    _lost(
        name="one_source_position",
        family="part_of_the_source_lost",
        where=("decoder_layers.0.cross_attn",),
        why="a pooled memory from another task: the first position only",
        edits=((_CROSS, "self.cross_attn(y, memory[:, :1], None)"),),
    ),
    _lost(
        name="first_source_token_broadcast",
        family="part_of_the_source_lost",
        where=("(model)",),
        why="expand of one position over the length of the source",
        edits=((_MEMORY, _MEMORY + "        memory = memory[:, :1].expand_as(memory)\n"),),
    ),
    _lost(
        name="last_source_token_lost",
        family="part_of_the_source_lost",
        where=("(model)",),
        why="the end of the text is cut off with the end id",
        edits=(
            (
                _MEMORY,
                _MEMORY + "        memory = memory[:, :-1]\n"
                "        mask = None if mask is None else mask[..., :-1]\n",
            ),
        ),
    ),
    _lost(
        name="encoder_is_causal",
        family="causal_mask_in_the_encoder",
        where=("encoder_layers.0.self_attn",),
        why="the decoder's mask is given to the encoder",
        edits=(
            (
                _ENCODE,
                "        length = x.size(1)\n"
                "        causal = torch.ones(length, length, device=x.device).tril()[None, None]\n"
                "        mask = causal if mask is None else causal * mask\n" + _ENCODE,
            ),
        ),
    ),
    _lost(
        name="one_encoder_layer_is_causal",
        family="causal_mask_in_the_encoder",
        where=("encoder_layers.1.self_attn",),
        why="the decoder's mask is given to the last layer of the encoder",
        edits=(
            (
                _ENCODE,
                "        length = x.size(1)\n"
                "        causal = torch.ones(length, length, device=x.device).tril()[None, None]\n"
                "        for index, layer in enumerate(self.encoder_layers):\n"
                "            x = layer(x, causal if index else mask)",
            ),
        ),
    ),
    _lost(
        name="torch_source_masked_like_the_target",
        family="causal_mask_in_the_encoder",
        parent="torch_translation",
        where=("transformer.encoder.layers.*.self_attn", "transformer", "(model)"),
        why="the two masks in one call are taken for one",
        edits=(
            (
                "            tgt_emb,\n            src_mask,\n",
                "            tgt_emb,\n"
                "            src_mask + torch.full_like(src_mask, -1e9).triu(1),\n",
            ),
        ),
    ),
    _lost(
        name="annotated_decoder_attends_to_itself_twice",
        family="encoder_ignored",
        parent="annotated",
        where=("decoder.*.src_attn", "decoder.*"),
        why="the second sublayer is a copy of the first",
        edits=(
            (
                "self.src_attn(self.norms[1](x), memory, memory, src_mask)",
                "self.src_attn(self.norms[1](x), x, x, tgt_mask)",
            ),
        ),
    ),
    _lost(
        name="cross_keys_of_the_decoder",
        family="encoder_ignored",
        parent="cached_seq2seq",
        where=("decoder.*.cross_attn", "decoder.*"),
        why="keys and values of the wrong tensor go into the cache of the source",
        edits=(
            (
                "cross_k, cross_v = cross.split(cross.k(memory)), cross.split(cross.v(memory))",
                "own = torch.zeros_like(memory)\n"
                "            cross_k, cross_v = cross.split(cross.k(own)), "
                "cross.split(cross.v(own))",
            ),
        ),
    ),
    _lost(
        name="memory_with_its_last_token_blank",
        family="part_of_the_source_lost",
        parent="cached_seq2seq",
        where=("(model)", "encoder_norm"),
        why="the end id is cut off behind the encoder, by a zero where its state was",
        edits=(
            (
                "            memory = self.encoder_norm(x)\n",
                "            memory = F.pad(self.encoder_norm(x)[:, :-1], (0, 0, 0, 1))\n",
            ),
        ),
    ),
)
