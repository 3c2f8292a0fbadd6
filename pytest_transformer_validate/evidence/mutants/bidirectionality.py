"""Mistakes that hide one side of the text from an encoder."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_blind = partial(Mutant, check="bidirectionality")
_LAYERS = "        for layer in self.encoder:\n            hidden = layer(hidden, mask)"
_SCORES = "        scores = scores + mask\n"
_ENCODER = "self.encoder(self.embedding(input_ids), src_key_padding_mask=padding)"
_SIZE = "        size = input_ids.size(1)\n"

MUTANTS = (
    _blind(
        name="causal_mask_left_on",
        family="encoder_sees_one_side",
        parent="bert",
        where=("encoder.0.attention",),
        why="an encoder made from a decoder",
        edits=(
            (
                _SCORES,
                "        later = torch.ones_like(scores, dtype=torch.bool).triu(1)\n"
                "        scores = (scores + mask).masked_fill(later, float('-inf'))\n",
            ),
        ),
    ),
    _blind(
        name="subsequent_mask_in_encoder",
        family="encoder_sees_one_side",
        parent="torch_encoder",
        where=("encoder.layers.0.self_attn",),
        why="the tutorial's mask of a language model is given to an encoder",
        edits=(
            (
                "        hidden = " + _ENCODER,
                _SIZE + "        later = torch.ones(size, size, dtype=torch.bool).triu(1)\n"
                "        hidden = self.encoder(\n"
                "            self.embedding(input_ids), later, src_key_padding_mask=padding\n"
                "        )",
            ),
        ),
    ),
    _blind(
        name="wrong_triangle",
        family="encoder_sees_one_side",
        parent="bert",
        where=("encoder.0.attention",),
        why="tril for triu, in a mask that should not be there",
        edits=(
            (
                _SCORES,
                "        earlier = torch.ones_like(scores, dtype=torch.bool).tril(-1)\n"
                "        scores = (scores + mask).masked_fill(earlier, float('-inf'))\n",
            ),
        ),
    ),
    _blind(
        name="causal_in_one_layer",
        family="encoder_sees_one_side",
        parent="bert",
        where=("encoder.1.attention",),
        why="a prefix mask that was meant for another layer",
        edits=(
            (
                _LAYERS,
                "        size = hidden.size(1)\n"
                "        later = torch.full((size, size), -1e9).triu(1)\n"
                "        for index, layer in enumerate(self.encoder):\n"
                "            hidden = layer(hidden, mask + later if index == 1 else mask)",
            ),
        ),
    ),
    _blind(
        name="one_layer_alone",
        family="encoder_sees_itself_only",
        parent="torch_encoder",
        where=("encoder.layers.1.self_attn",),
        why="a mask of which nothing but the diagonal is left, in the last layer",
        edits=(
            (
                "        hidden = " + _ENCODER,
                _SIZE + "        alone = ~torch.eye(size, dtype=torch.bool)\n"
                "        hidden = self.embedding(input_ids)\n"
                "        for index, layer in enumerate(self.encoder.layers):\n"
                "            hidden = layer(hidden, alone if index else None, padding)",
            ),
        ),
    ),
    _blind(
        name="causal_in_one_head",
        family="encoder_sees_one_side",
        parent="bert",
        where=("encoder.0.attention",),
        why="heads were given masks of their own and one kept the decoder's",
        edits=(
            (
                _SCORES,
                "        scores = scores + mask\n"
                "        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)\n"
                "        scores[:, 2] = scores[:, 2].masked_fill(later, float('-inf'))\n",
            ),
        ),
    ),
    _blind(
        name="encoder_sees_itself_only",
        family="encoder_sees_itself_only",
        parent="torch_encoder",
        where=("encoder.layers.0.self_attn",),
        why="a boolean mask the wrong way round",
        edits=(
            (
                _ENCODER,
                "self.encoder(\n"
                "            self.embedding(input_ids),\n"
                "            ~torch.eye(input_ids.size(1), dtype=torch.bool),\n"
                "            src_key_padding_mask=padding,\n"
                "        )",
            ),
        ),
    ),
    _blind(
        name="distances_of_a_decoder",
        family="encoder_sees_one_side",
        parent="relative_encoder",
        where=("layers.*.attention", "relative"),
        why="the bias was taken over from a decoder, with what it hides",
        edits=(
            (
                "return self.table(bucket).permute(2, 0, 1)[None]",
                "bias = self.table(bucket).permute(2, 0, 1)[None]\n"
                '        return bias.masked_fill(distance > 0, float("-inf"))',
            ),
        ),
    ),
    _blind(
        name="other_tokens_hidden_for_the_token_itself",
        family="encoder_sees_itself_only",
        parent="relative_encoder",
        where=("layers.*.attention", "relative"),
        why="a token was not to attend to itself, and the comparison is the wrong one",
        edits=(
            (
                "return self.table(bucket).permute(2, 0, 1)[None]",
                "bias = self.table(bucket).permute(2, 0, 1)[None]\n"
                '        return bias.masked_fill(distance != 0, float("-inf"))',
            ),
        ),
    ),
    _blind(
        name="one_head_sees_itself_only",
        family="encoder_sees_itself_only",
        parent="bert",
        where=("encoder.*.attention",),
        why="the window of a local head, of size zero",
        edits=(
            (
                _SCORES,
                "        scores = scores + mask\n"
                "        steps = torch.arange(scores.size(-1))\n"
                "        outside = (steps[:, None] - steps).abs() > 0\n"
                "        local = scores[:, :1].masked_fill(outside, float('-inf'))\n"
                "        scores = torch.cat([local, scores[:, 1:]], dim=1)\n",
            ),
        ),
    ),
    _blind(
        name="outputs_shifted_like_labels",
        family="outputs_of_other_places",
        parent="bert",
        where=("(model)",),
        why="the shift of a decoder's labels, made in an encoder's outputs",
        edits=(
            (
                "        return self.decoder(hidden)",
                "        return self.decoder(hidden.roll(1, 1))",
            ),
        ),
    ),
    _blind(
        name="prompt_cut_off_behind",
        family="outputs_of_other_places",
        parent="torch_encoder",
        where=("(model)",),
        why="vectors in front of the text are cut off at its end",
        edits=(
            (
                "        hidden = " + _ENCODER,
                "        prompt = self.embedding.norm(self.embedding.position.weight[-2:])\n"
                "        prompt = prompt.expand(len(input_ids), -1, -1)\n"
                "        whole = torch.cat([prompt, self.embedding(input_ids)], 1)\n"
                "        if padding is not None:\n"
                "            padding = nn.functional.pad(padding, (2, 0), value=False)\n"
                "        hidden = self.encoder(whole, src_key_padding_mask=padding)\n"
                "        hidden = hidden[:, : input_ids.size(1)]",
            ),
        ),
    ),
    _blind(
        name="outputs_of_the_next_token",
        family="outputs_of_other_places",
        parent="relative_encoder",
        where=("(model)",),
        why="an output is read one place further on",
        edits=(
            (
                "        return self.head(self.norm(x))",
                "        return self.head(self.norm(x.roll(-1, 1)))",
            ),
        ),
    ),
)
