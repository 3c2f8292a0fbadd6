"""Attention that is computed in several ways, of which one lacks something."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

if TYPE_CHECKING:
    import torch

_way = partial(Mutant, check="backend_equivalence", family="one_way_lacks_something")


class _Adapted(nn.Linear):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.up(self.down(input))
        return super().forward(input) + update


def _adapt(model: torch.nn.Module) -> None:
    """The second linear layer of the first encoder layer becomes an adapted one."""
    layer: Any = next(m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer))
    layer.linear2 = _Adapted(layer.linear2)


def _other_activation(model: torch.nn.Module) -> None:
    """Another activation, put in after the layers were built."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation = nn.functional.silu


MUTANTS = (
    _way(
        name="eager_without_scale",
        parent="trained_gpt",
        where=("blocks.*.attn",),
        why="scaled_dot_product_attention scales by itself; the way by hand was left without",
        edits=(("q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))", "q @ k.transpose(-2, -1)"),),
    ),
    _way(
        name="eager_mask_of_the_next_token",
        parent="trained_gpt",
        where=("blocks.*.attn",),
        why="the mask by hand was made with another diagonal",
        edits=(("dtype=torch.bool).tril()", "dtype=torch.bool).tril(1)"),),
    ),
    _way(
        name="fused_without_padding_mask",
        parent="served_decoder",
        where=("layers.*.attention",),
        why="is_causal=True was put in the place of the mask, which also hid the padding",
        edits=(
            (
                "y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)",
                "y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)",
            ),
        ),
    ),
    _way(
        name="eager_heads_repeated_otherwise",
        parent="served_decoder",
        where=("layers.*.attention",),
        why="repeat tiles the heads, repeat_interleave repeats each",
        edits=(
            (
                "scores = q @ k.transpose(-2, -1) * self.width**-0.5",
                "k, v = k[:, self._order()], v[:, self._order()]\n"
                "            scores = q @ k.transpose(-2, -1) * self.width**-0.5",
            ),
            (
                "    def forward(\n"
                "        self, x: Tensor, angles: Tensor, mask: Tensor, "
                "past: tuple[Tensor, Tensor] | None\n"
                "    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:\n"
                "        batch, length, dim = x.shape",
                "    def _order(self) -> Tensor:\n"
                "        return torch.arange(self.heads).view(self.kv_heads, -1).T.flatten()\n"
                "\n"
                "    def forward(\n"
                "        self, x: Tensor, angles: Tensor, mask: Tensor, "
                "past: tuple[Tensor, Tensor] | None\n"
                "    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:\n"
                "        batch, length, dim = x.shape",
            ),
        ),
    ),
    _way(
        name="fused_scaled_twice",
        parent="summarizer",
        where=("encoder.*.attention", "decoder.*.attention", "decoder.*.cross"),
        why="queries are scaled before, and the fused function scales by itself",
        edits=(
            (
                "F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=self.scale)",
                "F.scaled_dot_product_attention(q * self.scale, k, v, attn_mask=keep)",
            ),
        ),
    ),
    _way(
        name="eager_softmax_over_queries",
        parent="summarizer",
        where=("decoder.*.cross",),
        why="another axis in one of the two ways, where the attention crosses",
        edits=(
            (
                "y = scores.softmax(dim=-1) @ v",
                "y = scores.softmax(dim=-1 if source is x else -2) @ v",
            ),
        ),
    ),
    _way(
        name="adapter_that_the_fast_path_skips",
        parent="torch_encoder",
        where=("encoder.layers.0",),
        why="in eval mode the fast path reads linear2.weight and never calls the adapter",
        operate=_adapt,
    ),
    _way(
        name="activation_that_the_fast_path_skips",
        parent="pad_translator",
        where=("encoder.*",),
        why="the fast path asks which activation the layer was built with",
        operate=_other_activation,
    ),
)
