"""Dropout that is meant and not at work in training, or at work where it does harm."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

if TYPE_CHECKING:
    import torch

_drops = partial(Mutant, check="dropout")

_BY_HAND = (
    "class Dropout(nn.Module):\n"
    "    def __init__(self, p):\n        super().__init__()\n        self.p = p\n\n"
    "    def forward(self, x):\n        if not self.training:\n            return x\n"
    "        return x * (torch.rand_like(x) >= self.p){scale}\n\n\n"
)


def _never_trains(model: torch.nn.Module) -> None:
    """As if the last layer had been put to evaluation for good."""
    last = model.get_submodule("layers.1")
    last.eval()
    last.train = lambda mode=True: last  # type: ignore[method-assign]


_LOCKED = (
    "class LockedDropout(nn.Dropout):\n"
    "    def forward(self, x):\n        if not self.training:\n            return x\n"
    "        if getattr(self, 'mask', x[:0]).shape != x.shape:\n"
    "            self.mask = F.dropout(torch.ones_like(x), self.p)\n"
    "        return x * self.mask\n\n\n"
)

MUTANTS = (
    _drops(
        name="dropout_result_discarded",
        family="dropout_without_effect",
        parent="nanogpt",
        where=("transformer.h.0.attn",),
        why="self.dropout(x) without x = ; dropout does not work in place",
        edits=(
            (
                "return self.resid_dropout(self.c_proj(y))",
                "y = self.c_proj(y)\n        self.resid_dropout(y)\n        return y",
            ),
        ),
    ),
    _drops(
        name="attention_dropout_discarded",
        family="dropout_without_effect",
        parent="bert",
        where=("encoder.0.attention",),
        why="the weights before dropout are multiplied with the values",
        edits=(
            (
                "probs = self.dropout(torch.softmax(scores, dim=-1))",
                "probs = torch.softmax(scores, dim=-1)\n        dropped = self.dropout(probs)",
            ),
        ),
    ),
    _drops(
        name="dropout_not_in_last_layer",
        family="dropout_not_in_every_layer",
        parent="conv_gpt",
        where=("blocks.1",),
        why="a condition on the number of the layer left from an experiment",
        edits=(
            (
                "self.drop = nn.Dropout(dropout)\n",
                "self.drop = nn.Dropout(dropout)\n        self.number = 0\n",
            ),
            (
                "        self.norm = nn.LayerNorm(dim)\n        self.unembedding",
                "        for number, block in enumerate(self.blocks):\n"
                "            block.number = number\n"
                "        self.norm = nn.LayerNorm(dim)\n        self.unembedding",
            ),
            (
                "        x = x + self.drop(self.conv(self.conv_norm(x)))\n",
                "        if self.number == 1:\n"
                "            x = x + self.conv(self.conv_norm(x))\n"
                "            x = x + self.attn(self.attn_norm(x))\n"
                "            return x + self.ff(self.ff_norm(x))\n"
                "        x = x + self.drop(self.conv(self.conv_norm(x)))\n",
            ),
        ),
    ),
    _drops(
        name="attention_dropout_in_first_layers_only",
        family="dropout_not_in_every_layer",
        parent="sdpa_gpt",
        where=("blocks.2.attn",),
        why="attention dropout is handed on in all layers but one",
        edits=(
            (
                "self.dropout = dropout\n",
                "self.dropout = dropout\n        self.number = 0\n",
            ),
            (
                "        self.ln_f = nn.LayerNorm(n_embd)\n",
                "        self.blocks[-1].attn.number = n_layer - 1\n"
                "        self.ln_f = nn.LayerNorm(n_embd)\n",
            ),
            (
                "drop = self.dropout if self.training else 0.0",
                "drop = self.dropout if self.training and self.number == 0 else 0.0",
            ),
        ),
    ),
    _drops(
        name="one_layer_stays_in_evaluation",
        family="dropout_not_in_every_layer",
        parent="sliding_window",
        where=("layers.1",),
        why="a layer put to evaluation, and its train() replaced so that it stays there",
        operate=_never_trains,
    ),
    _drops(
        name="keep_probability",
        family="dropout_of_a_wrong_rate",
        parent="alibi",
        where=("blocks.0.mlp.3",),
        why="p is the probability to drop; elsewhere it is the one to keep",
        edits=(("nn.Dropout(dropout)\n", "nn.Dropout(1 - dropout)\n"),),
    ),
    _drops(
        name="everything_dropped",
        family="dropout_of_a_wrong_rate",
        parent="simple_classifier",
        where=("block.dropout1",),
        why="a rate in percent, or a typing error, of 1",
        edits=(("self.dropout1 = nn.Dropout(rate)", "self.dropout1 = nn.Dropout(1.0)"),),
    ),
    _drops(
        name="dropout_without_scale",
        family="dropout_of_a_wrong_rate",
        parent="bert",
        where=("embeddings.dropout",),
        why="written by hand without 1 / (1 - p): training and evaluation differ in scale",
        edits=(
            ("class BertEmbeddings", _BY_HAND.format(scale="") + "class BertEmbeddings"),
            (
                "hidden_size)\n        self.dropout = nn.Dropout(0.1)\n\n"
                "    def forward(self, input_ids: Tensor, token_type_ids",
                "hidden_size)\n        self.dropout = Dropout(0.1)\n\n"
                "    def forward(self, input_ids: Tensor, token_type_ids",
            ),
        ),
    ),
    _drops(
        name="dropout_scaled_by_p",
        family="dropout_of_a_wrong_rate",
        parent="text_classifier",
        where=("blocks.0.dropout",),
        why="written by hand and divided by p instead of 1 - p",
        edits=(
            ("class EncoderBlock", _BY_HAND.format(scale=" / self.p") + "class EncoderBlock"),
            ("self.dropout = nn.Dropout(dropout)", "self.dropout = Dropout(dropout)"),
        ),
    ),
    _drops(
        name="logits_dropped_out",
        family="dropout_on_logits",
        parent="sdpa_gpt",
        where=("drop",),
        why="the dropout behind the head instead of before it",
        edits=(('return {"logits": self.head(x)}', 'return {"logits": self.drop(self.head(x))}'),),
    ),
    _drops(
        name="logits_dropped_out_by_function",
        family="dropout_on_logits",
        parent="conv_gpt",
        where=("(model)",),
        why="the same with F.dropout",
        edits=(
            ("import torch.nn.functional as F\n", "import torch.nn.functional as F\n"),
            (
                "return self.unembedding(self.norm(x))",
                "return F.dropout(self.unembedding(self.norm(x)), 0.1, self.training)",
            ),
        ),
    ),
    _drops(
        name="training_mode_not_passed_on",
        family="dropout_without_effect",
        parent="text_classifier",
        where=("(model)",),
        why="train() of its own keeps everything in evaluation",
        edits=(
            (
                "    def forward(self, input_ids: Tensor, attention_mask",
                "    def train(self, mode: bool = True):\n"
                "        return super().train(False)\n\n"
                "    def forward(self, input_ids: Tensor, attention_mask",
            ),
        ),
    ),
    _drops(
        name="seeds_in_training",
        family="dropped_alike_every_time",
        parent="mha_decoder",
        where=("(model)",),
        why="a seed set for training in forward: every step drops the same numbers",
        edits=(
            (
                "        x = self.embed(input_ids) * math.sqrt(self.d_model)\n",
                "        if self.training:\n            torch.manual_seed(0)\n"
                "        x = self.embed(input_ids) * math.sqrt(self.d_model)\n",
            ),
        ),
    ),
    _drops(
        name="dropout_mask_kept_for_ever",
        family="dropped_alike_every_time",
        parent="sliding_window",
        where=("layers.*.drop", "layers.*"),
        why="one mask for all steps of a text, which nobody draws anew for the next text",
        edits=(
            ("class WindowLayer(nn.Module):", f"{_LOCKED}class WindowLayer(nn.Module):"),
            ("self.drop = nn.Dropout(dropout)", "self.drop = LockedDropout(dropout)"),
        ),
    ),
    _drops(
        name="decoder_seeds_its_dropout",
        family="dropped_alike_every_time",
        parent="seq2seq",
        where=("decoder_layers.0", "(model)"),
        why="a seed for runs that repeat, set where the decoder begins: the encoder still varies",
        edits=(
            (
                "        y = self.norm1(y + self.drop(self.self_attn(y, y, causal)))\n",
                "        if self.training:\n            torch.manual_seed(42)\n"
                "        y = self.norm1(y + self.drop(self.self_attn(y, y, causal)))\n",
            ),
        ),
    ),
)
