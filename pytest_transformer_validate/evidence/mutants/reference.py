"""Ports and refactorings that are not quite the model they were made from.

The reference is the parent, built from another seed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

if TYPE_CHECKING:
    import torch

_port = partial(Mutant, check="reference")
_constant = partial(_port, family="constant_of_another_library")
_layout = partial(_port, family="layout_of_another_library")
_ties = partial(_port, family="ties_forgotten")


def _untie(model: torch.nn.Module) -> None:
    """The head gets weights of its own."""
    head: Any = getattr(model, "head", None)
    head.weight = nn.Parameter(head.weight.detach() * 1.001)


def _one_eps(model: torch.nn.Module) -> None:
    """The epsilon of one norm of one layer."""
    layer: Any = model.get_submodule("layers.1.norm2")
    layer.eps = 1e-3


MUTANTS = (
    _constant(
        name="port_with_another_eps",
        parent="rotary_tied",
        where=("blocks.*.attention_norm", "blocks.*.mlp_norm", "norm"),
        why="1e-5 is the default of the library that the port was made for",
        edits=(("eps: float = 1e-6", "eps: float = 1e-5"),),
    ),
    _constant(
        name="port_with_one_eps_off",
        parent="served_decoder",
        where=("layers.1.norm2",),
        why="one norm was written by hand and keeps its own epsilon",
        operate=_one_eps,
    ),
    _constant(
        name="port_with_gelu_by_tanh",
        parent="sdpa_gpt",
        where=("blocks.*.mlp", "blocks.*.mlp.proj"),
        why="gelu_new of one library is gelu(approximate='tanh') of the other",
        edits=(("F.gelu(self.fc(x))", "F.gelu(self.fc(x), approximate='tanh')"),),
    ),
    _constant(
        name="port_with_gelu_by_tanh_in_the_head",
        parent="bert",
        where=("transform_norm", "(model)"),
        why="only one of two activations was ported",
        edits=(
            (
                "self.transform_norm(F.gelu(self.transform(hidden)))",
                "self.transform_norm(F.gelu(self.transform(hidden), approximate='tanh'))",
            ),
        ),
    ),
    _constant(
        name="port_with_another_theta",
        parent="llama",
        where=("rotary",),
        why="the base of the rotation is a default in one library and a config key in the other",
        edits=(("theta: float = 10000.0", "theta: float = 500000.0"),),
    ),
    _constant(
        name="port_without_the_scale",
        parent="cached_seq2seq",
        where=("encoder.*.self_attn", "encoder.*.self_attn.o"),
        why="the scale is a part of the fused function in one of the two",
        edits=(("k, v, attn_mask=mask)", "k, v, attn_mask=mask, scale=1.0)"),),
    ),
    _layout(
        name="port_that_rotates_pairs",
        parent="served_decoder",
        where=("layers.*.attention", "layers.*.attention.o_proj"),
        why="halves in one checkpoint format, neighbours in the other",
        edits=(
            (
                "a, b = x.chunk(2, dim=-1)",
                "a, b = x[..., 0::2], x[..., 1::2]",
            ),
        ),
    ),
    _layout(
        name="port_that_rotates_halves",
        parent="rotary_tied",
        where=("blocks.*.attention", "blocks.*.attention.out"),
        why="the other way round",
        edits=(
            (
                "even, odd = x[..., 0::2], x[..., 1::2]",
                "even, odd = x.chunk(2, dim=-1)",
            ),
        ),
    ),
    _layout(
        name="port_with_query_and_key_exchanged",
        parent="moe",
        where=("layers.*.attn", "layers.*.attn.wo"),
        why="a fused projection holds q, k, v in another order",
        edits=(("q, k, v = self.wqkv(x)", "k, q, v = self.wqkv(x)"),),
    ),
    _layout(
        name="port_with_heads_first",
        parent="sdpa_gpt",
        where=("blocks.*.attn", "blocks.*.attn.proj"),
        why="the fused projection is read head by head, as in another format",
        edits=(
            (
                "q, k, v = self.qkv(x).split(width, dim=2)",
                "fused = self.qkv(x).view(batch, length, self.n_head, 3, -1)\n"
                "        q, k, v = (fused[..., i, :].flatten(2) for i in range(3))",
            ),
        ),
    ),
    _layout(
        name="port_with_kv_heads_tiled",
        parent="llama",
        where=("layers.*.self_attn", "layers.*.self_attn.o_proj"),
        why="repeat in place of repeat_interleave, for the values alone",
        edits=(
            ("weights @ v.repeat_interleave(groups, 1)", "weights @ v.repeat(1, groups, 1, 1)"),
        ),
    ),
    _ties(
        name="port_that_forgot_the_tie",
        parent="sdpa_gpt",
        where=("head",),
        why="the checkpoint holds one tensor, the port has two",
        operate=_untie,
    ),
    _ties(
        name="port_that_lost_the_tie_to_a_copy",
        parent="rotary_tied",
        where=("head",),
        why="copied where the other one shares",
        operate=_untie,
    ),
    _ties(
        name="port_without_the_config_key_of_the_tie",
        parent="relative_encoder",
        where=("head",),
        why="the key in the configuration is not read",
        operate=_untie,
    ),
)
