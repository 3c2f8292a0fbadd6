"""Mistakes that make outputs NaN, infinite, constant or absurdly large."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

if TYPE_CHECKING:
    from torch import nn

_unstable = partial(Mutant, check="output_stability")


def _zero_head(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.get_submodule("lm_head").parameters():
            weight.zero_()


def _uninitialised(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule("embed_pos").get_parameter("weight")[3:5] = float("nan")


def _infinite(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule("blocks.1.fc1").get_parameter("weight")[0, 0] = float("inf")


def _half_read(model: nn.Module) -> None:
    """A row of a weight as memory that a failed read left behind."""
    with torch.no_grad():
        model.get_submodule("encoder.1.intermediate").get_parameter("weight")[5] = 3e38


MUTANTS = (
    _unstable(
        name="first_row_fully_masked",
        family="output_not_a_number",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="a token may not see itself, so the first one sees nothing",
        edits=(("torch.ones(size, size))", "torch.ones(size, size), diagonal=-1)"),),
    ),
    _unstable(
        name="mask_plus_infinity",
        family="output_not_a_number",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="sign of infinity lost",
        edits=(('float("-inf")', 'float("inf")'),),
    ),
    _unstable(
        name="router_with_relu",
        family="output_not_a_number",
        parent="moe",
        where=("layers.0.moe",),
        why="weights of two closed experts are 0 / 0",
        edits=(("self.gate(tokens).softmax(dim=-1)", "F.relu(self.gate(tokens))"),),
    ),
    _unstable(
        name="norm_without_eps_on_padding",
        family="output_not_a_number",
        parent="llama",
        where=("layers.0.input_layernorm",),
        why="the padding token's embedding is zero and the norm divides by it",
        edits=(
            (
                "nn.Embedding(vocab_size, hidden_size)",
                "nn.Embedding(vocab_size, hidden_size, padding_idx=0)",
            ),
            ("x.pow(2).mean(-1, keepdim=True) + self.eps", "x.pow(2).mean(-1, keepdim=True)"),
        ),
    ),
    _unstable(
        name="softmax_by_hand",
        family="output_too_large",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="exp overflows without the subtraction of the maximum, at default-free init",
        edits=(
            ("module.weight, mean=0.0, std=0.02", "module.weight"),
            (
                "att = F.softmax(att, dim=-1)",
                "att = att.exp() / att.exp().sum(dim=-1, keepdim=True)",
            ),
        ),
    ),
    _unstable(
        name="embedding_uninitialised",
        family="weights_never_written",
        parent="sliding_window",
        where=("embed_pos",),
        why="torch.empty holds whatever the memory held",
        operate=_uninitialised,
    ),
    _unstable(
        name="weight_infinite",
        family="weights_never_written",
        parent="text_classifier",
        where=("blocks.1.fc1",),
        why="a half-precision overflow saved in the checkpoint",
        operate=_infinite,
    ),
    _unstable(
        name="head_of_zeros",
        undetectable="a head that starts at zero is a known choice and learns at the first step",
        family="output_collapsed",
        parent="mha_decoder",
        where=("lm_head",),
        why="head initialised to zero and never loaded",
        operate=_zero_head,
    ),
    _unstable(
        name="embedding_of_zeros",
        family="output_collapsed",
        parent="alibi",
        where=("token_embedding",),
        why="embedding zero-initialised like a bias: every token looks the same",
        edits=(
            (
                "self.token_embedding = nn.Embedding(vocab_size, dim)",
                "self.token_embedding = nn.Embedding(vocab_size, dim)\n"
                "        nn.init.zeros_(self.token_embedding.weight)",
            ),
        ),
    ),
    _unstable(
        name="pooled_for_every_position",
        family="output_collapsed",
        parent="torch_encoder",
        where=("(model)",),
        why="states averaged for a classifier and expanded again for the token head",
        edits=(
            (
                "return self.mlm_head(hidden)",
                "pooled = hidden.mean(dim=1, keepdim=True)\n"
                "        return self.mlm_head(pooled.expand_as(hidden))",
            ),
        ),
    ),
    _unstable(
        name="norm_over_single_feature",
        family="output_collapsed",
        parent="vit",
        where=("(model)",),
        why="layer norm of a tensor with a trailing axis of size one gives zeros",
        edits=(
            (
                "return self.head(x[:, 0])",
                "x = nn.functional.layer_norm(x[:, 0, :, None], (1,)).squeeze(-1)\n"
                "        return self.head(x)",
            ),
        ),
    ),
    _unstable(
        name="cls_attends_over_batch",
        family="output_collapsed",
        parent="vit",
        where=("blocks.0.attn",),
        why="sequence-first attention: the CLS token only meets the CLS tokens of other images",
        edits=(("dropout=dropout, batch_first=True", "dropout=dropout"),),
    ),
    _unstable(
        name="temperature_is_eps",
        family="output_too_large",
        parent="sdpa_gpt",
        where=("(model)",),
        why="logits divided by eps instead of a temperature",
        edits=(("self.head(x)}", "self.head(x) / 1e-8}"),),
    ),
    _unstable(
        name="logits_scaled_up_twice",
        family="output_too_large",
        parent="seq2seq",
        where=("(model)",),
        why="inverse of a tiny initialiser applied to the logits",
        edits=(("return self.generator(y)", "return self.generator(y) * 1e7"),),
    ),
    _unstable(
        name="row_never_read_from_the_file",
        family="weights_never_written",
        parent="bert",
        where=("encoder.1.intermediate", "encoder.1"),
        why="a file that ended early: one row keeps what the memory held",
        operate=_half_read,
    ),
)
