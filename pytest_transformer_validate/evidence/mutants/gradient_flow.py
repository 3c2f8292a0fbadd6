"""Mistakes that keep a part of the model from learning."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

if TYPE_CHECKING:
    from torch import nn

_dead = partial(Mutant, check="gradient_flow")


def _negative_bias(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule("layers.1.ffn.up").get_parameter("bias").fill_(-10.0)


_QUICK_GELU = """class QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        gate = torch.sigmoid(1.702 * x)
        ctx.save_for_backward(gate)
        return x * gate

    @staticmethod
    def backward(ctx, grad):
        (gate,) = ctx.saved_tensors
        return grad * gate


"""
_RMS = """class RMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        (scale,) = ctx.saved_tensors
        return grad * scale, None


"""

MUTANTS = (
    _dead(
        name="attention_detached",
        family="graph_cut",
        parent="llama",
        where=("layers.*.self_attn",),
        why="detach left over from an experiment",
        edits=(("x = x + attended\n", "x = x + attended.detach()\n"),),
    ),
    _dead(
        name="attention_detached_in_training",
        family="graph_cut",
        parent="llama",
        where=("layers.*.self_attn",),
        why="frozen for a fine-tuning that is over",
        edits=(
            ("x = x + attended\n", "x = x + (attended.detach() if self.training else attended)\n"),
        ),
    ),
    _dead(
        name="encoder_without_graph_in_training",
        family="graph_cut",
        parent="seq2seq",
        where=("(model)",),
        why="torch.set_grad_enabled with the condition the wrong way round",
        edits=(
            (
                "memory = self.encode(input_ids, mask)",
                "with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):\n"
                "            memory = self.encode(input_ids, mask)",
            ),
        ),
    ),
    _dead(
        name="encoder_memory_detached",
        family="graph_cut",
        parent="seq2seq",
        where=("(model)",),
        why="memory treated as a fixed input of the decoder",
        edits=(
            (
                "memory = self.encode(input_ids, mask)",
                "memory = self.encode(input_ids, mask).detach()",
            ),
        ),
    ),
    _dead(
        name="head_on_detached_states",
        family="graph_cut",
        parent="torch_encoder",
        where=("(model)", "encoder"),
        why="probing head trained on frozen features",
        edits=(("self.mlm_head(hidden)", "self.mlm_head(hidden.detach())"),),
    ),
    _dead(
        name="weight_data",
        family="graph_cut",
        parent="nanogpt",
        where=("transformer.h.*.mlp", "transformer.h.*.mlp.c_fc"),
        why=".data gives the weight without its graph",
        edits=(("self.gelu(self.c_fc(x))", "self.gelu(F.linear(x, self.c_fc.weight.data))"),),
    ),
    _dead(
        name="weight_detached",
        family="graph_cut",
        parent="seq2seq",
        where=("generator",),
        why="projection shared with a part that must not be trained",
        edits=(
            (
                "return self.generator(y)",
                "return F.linear(y, self.generator.weight.detach(), self.generator.bias)",
            ),
        ),
    ),
    _dead(
        name="no_grad_in_feed_forward",
        family="graph_cut",
        parent="text_classifier",
        where=("blocks.*",),
        why="no_grad to save memory",
        edits=(
            (
                "h = F.gelu(self.fc1(self.norm2(x)))",
                "with torch.no_grad():\n            h = F.gelu(self.fc1(self.norm2(x)))",
            ),
        ),
    ),
    _dead(
        name="no_grad_in_embeddings",
        family="graph_cut",
        parent="bert",
        where=("embeddings",),
        why="embedding sum under no_grad copied from an inference script",
        edits=(
            (
                "x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)",
                "with torch.no_grad():\n"
                "            x = self.word_embeddings(input_ids)\n"
                "            x = x + self.token_type_embeddings(token_type_ids)",
            ),
        ),
    ),
    _dead(
        name="router_without_weights",
        family="hard_decision",
        parent="moe",
        where=("layers.*.moe",),
        why="experts are summed without their router weights, so only argmax sees the router",
        edits=(
            (
                "weights = weights / weights.sum(dim=-1, keepdim=True)",
                "weights = torch.full_like(weights, 1.0 / self.top_k)",
            ),
        ),
    ),
    _dead(
        name="hard_gate",
        family="hard_decision",
        parent="llama",
        where=("layers.*.mlp",),
        why="a threshold instead of a smooth gate",
        edits=(
            (
                "F.silu(self.gate_proj(x)) * self.up_proj(x)",
                "(self.gate_proj(x) > 0).to(x.dtype) * self.up_proj(x)",
            ),
        ),
    ),
    _dead(
        name="activations_rounded",
        family="hard_decision",
        parent="sliding_window",
        where=("layers.*",),
        why="quantised activations without a straight-through gradient",
        edits=(
            (
                "F.gelu(self.fc_in(self.norm2(x)))",
                "torch.round(8 * F.gelu(self.fc_in(self.norm2(x)))) / 8",
            ),
        ),
    ),
    _dead(
        name="last_layer_skipped",
        family="layer_skipped",
        parent="sdpa_gpt",
        where=("(model)", "blocks.2"),
        why="range(n - 1)",
        edits=(("for block in self.blocks:", "for block in self.blocks[:-1]:"),),
    ),
    _dead(
        name="first_layer_skipped",
        family="layer_skipped",
        parent="bert",
        where=("(model)", "encoder.0"),
        why="index from 1",
        edits=(("for layer in self.encoder:", "for layer in self.encoder[1:]:"),),
    ),
    _dead(
        name="same_layer_twice",
        family="layer_skipped",
        parent="mha_decoder",
        where=("(model)", "layers.1"),
        why="constant index in the loop",
        edits=(
            (
                "for layer in self.layers:\n            x = layer(x, mask)",
                "for _ in self.layers:\n            x = self.layers[0](x, mask)",
            ),
        ),
    ),
    _dead(
        name="layer_result_dropped",
        family="result_lost",
        parent="sliding_window",
        where=("(model)",),
        why="assignment forgotten",
        edits=(("x = layer(x)", "layer(x)"),),
    ),
    _dead(
        name="attention_result_dropped",
        family="result_lost",
        parent="conv_gpt",
        where=("blocks.*",),
        why="the sum is computed and assigned to nothing",
        edits=(
            (
                "x = x + self.drop(self.attn(self.attn_norm(x)))",
                "x + self.drop(self.attn(self.attn_norm(x)))",
            ),
        ),
    ),
    _dead(
        name="conv_result_overwritten",
        family="result_lost",
        parent="conv_gpt",
        where=("blocks.*",),
        why="second sublayer starts from the block's input",
        edits=(
            (
                "x = x + self.drop(self.conv(self.conv_norm(x)))",
                "h = x + self.drop(self.conv(self.conv_norm(x)))",
            ),
        ),
    ),
    _dead(
        name="builder_output_unused",
        family="result_lost",
        parent="builder_attention",
        where=("(model)", "ffn_1"),
        why="the second feed-forward's residual was wired to the first",
        edits=(("self.layernorm_3(x + ffn_1_output)", "self.layernorm_3(x + ffn_0_output)"),),
    ),
    _dead(
        name="transform_unused",
        family="part_never_used",
        parent="bert",
        where=("transform",),
        why="head refactored, old layer still there",
        edits=(("F.gelu(self.transform(hidden))", "F.gelu(hidden)"),),
    ),
    _dead(
        name="projection_of_a_list_unused",
        family="part_never_used",
        parent="annotated",
        where=("decoder.*.self_attn.linears.3", "encoder.*.self_attn.linears.3"),
        why="zip stops behind three of four projections, and the first takes the result, too",
        edits=(("self.linears[-1](self.dropout(x))", "self.linears[0](self.dropout(x))"),),
    ),
    _dead(
        name="final_norm_unused",
        family="part_never_used",
        parent="text_classifier",
        where=("norm",),
        why="final norm built and forgotten",
        edits=(("self.pool(self.norm(x), mask)", "self.pool(x, mask)"),),
    ),
    _dead(
        name="second_norm_unused",
        family="part_never_used",
        parent="vit",
        where=("blocks.*.norm2",),
        why="norm1 typed twice",
        edits=(("self.mlp(self.norm2(x))", "self.mlp(self.norm1(x))"),),
    ),
    _dead(
        name="relu_dead",
        family="effect_vanishes",
        parent="mha_decoder",
        where=("layers.1.ffn.up",),
        why="bias loaded with the scale of another layer",
        operate=_negative_bias,
    ),
    _dead(
        name="gate_saturated",
        family="effect_vanishes",
        parent="recurrent",
        where=("mixer",),
        why="gate opened by a large constant instead of a bias that can be learned",
        edits=(
            (
                "self.out = nn.Linear(width, width)",
                "self.out = nn.Linear(width, width)\n        self.gate = nn.Linear(width, width)",
            ),
            (
                "return self.out(states)",
                "return self.out(states) * torch.sigmoid(self.gate(x) + 100.0)",
            ),
        ),
    ),
    _dead(
        name="softmax_over_one",
        family="effect_vanishes",
        parent="vit",
        where=("(model)", "score"),
        why="softmax over the last dimension, which has size one, instead of over the tokens",
        edits=(
            (
                "self.head = nn.Linear(dim, num_classes)",
                "self.score = nn.Linear(dim, 1)\n        self.head = nn.Linear(dim, num_classes)",
            ),
            (
                "return self.head(x[:, 0])",
                "weights = self.score(x).softmax(dim=-1)\n"
                "        return self.head((weights * x).mean(dim=1))",
            ),
        ),
    ),
    _dead(
        name="branch_subtracted_again",
        family="effect_vanishes",
        parent="alibi",
        where=("blocks.*",),
        why="both halves of a rewritten residual kept, so the branch cancels",
        edits=(
            (
                "x = x + self.attention(self.norm_attention(x))",
                "residual = self.attention(self.norm_attention(x))\n"
                "        x = (x + residual) - residual",
            ),
        ),
    ),
    _dead(
        name="branch_scaled_away",
        family="effect_vanishes",
        parent="torch_encoder",
        where=("(model)", "embedding"),
        why="eps multiplied where it should be added",
        edits=(
            (
                "hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=padding)",
                "embedded = self.embedding(input_ids) * 1e-12\n"
                "        hidden = self.encoder(embedded, src_key_padding_mask=padding)",
            ),
        ),
    ),
    _dead(
        name="layer_scale_too_small",
        family="effect_vanishes",
        parent="sdpa_gpt",
        where=("blocks.*.attn",),
        why="a layer scale of 1e-8 where 1e-1 was meant",
        edits=(("x = x + self.attn(self.ln_1(x))", "x = x + 1e-8 * self.attn(self.ln_1(x))"),),
    ),
    _dead(
        name="no_norm_and_unit_weights",
        family="gradient_explodes",
        parent="alibi",
        where=("token_embedding", "blocks.*", "blocks.*.attention"),
        why="norms taken out and weights drawn with unit variance",
        edits=(
            ("self.attention(self.norm_attention(x))", "self.attention(x)"),
            ("self.mlp(self.norm_mlp(x))", "self.mlp(x)"),
            ("        self.norm_attention = nn.LayerNorm(dim)\n", ""),
            ("        self.norm_mlp = nn.LayerNorm(dim)\n", ""),
            ("        self.final_norm = nn.LayerNorm(dim)\n", ""),
            (
                "return self.to_logits(self.final_norm(x))",
                "return self.to_logits(x)",
            ),
            (
                "self.to_logits = nn.Linear(dim, vocab_size)",
                "self.to_logits = nn.Linear(dim, vocab_size)\n"
                "        for weight in self.parameters():\n"
                "            nn.init.normal_(weight)",
            ),
        ),
    ),
    _dead(
        name="sqrt_under_where",
        family="gradient_explodes",
        parent="mha_decoder",
        where=("layers.*.ffn",),
        why="where() hides the NaN of the square root from the output, not from the gradient",
        edits=(
            (
                "return self.down(self.dropout(torch.relu(self.up(x))))",
                "h = self.up(x)\n"
                "        h = torch.where(h > 0, torch.sqrt(h), torch.zeros_like(h))\n"
                "        return self.down(self.dropout(h))",
            ),
        ),
    ),
    _dead(
        name="signed_square_root_by_where",
        family="gradient_explodes",
        parent="vit",
        where=("(model)", "norm"),
        why="where() keeps the NaN of the branch that it did not take, in the gradient",
        edits=(
            (
                "        x = self.norm(x)\n",
                "        x = self.norm(x)\n"
                "        x = torch.where(x > 0, x.sqrt(), -(-x).sqrt())\n",
            ),
        ),
    ),
    _dead(
        name="shared_expert_not_added",
        family="result_lost",
        parent="stacked_experts",
        where=("layers.*.experts",),
        why="the shared expert is computed and not added",
        edits=(
            (
                "return routed + self.shared_down(F.silu(self.shared_up(x)))",
                ("self.shared_down(F.silu(self.shared_up(x)))\n        return routed"),
            ),
        ),
    ),
    _dead(
        name="recurrent_states_detached",
        family="graph_cut",
        parent="recurrent",
        where=("mixer", "mixer.gru"),
        why="states are detached as between two steps of truncated training",
        edits=(("return self.out(states)", "return self.out(states.detach())"),),
    ),
    _dead(
        name="source_embedded_without_gradient",
        family="graph_cut",
        parent="torch_translation",
        where=("(model)", "src_tok_emb"),
        why="only the source's embedding was frozen, with its table left to train",
        edits=(
            (
                "src_emb = self.positional_encoding(self.src_tok_emb(src))",
                (
                    "with torch.no_grad():\n"
                    "            src_emb = self.positional_encoding(self.src_tok_emb(src))"
                ),
            ),
        ),
    ),
    _dead(
        name="tied_head_by_data",
        family="graph_cut_in_part",
        parent="rotary_tied",
        where=("(model)", "head"),
        why="the head reads the tied weight by .data: it learns from the embedding alone",
        edits=(
            (
                "return self.head(self.norm(x))",
                "return F.linear(self.norm(x), self.head.weight.data)",
            ),
        ),
    ),
    _dead(
        name="experts_on_detached_tokens",
        family="graph_cut_in_part",
        parent="moe",
        where=("layers.*.moe",),
        why="tokens are detached for the experts, and learn by the residual path alone",
        edits=(("expert(tokens[rows])", "expert(tokens[rows].detach())"),),
    ),
    _dead(
        name="mixer_on_detached_tokens",
        family="graph_cut_in_part",
        parent="recurrent",
        where=("(model)", "mixer"),
        why="detach left over where the mixer was trained alone",
        edits=(("x = x + self.mixer(x)", "x = x + self.mixer(x.detach())"),),
    ),
    _dead(
        name="mlp_on_detached_states",
        family="graph_cut_in_part",
        parent="vit",
        where=("blocks.*",),
        why="detach saves memory and cuts every layer off those before it",
        edits=(("self.mlp(self.norm2(x))", "self.mlp(self.norm2(x.detach()))"),),
    ),
    _dead(
        name="squared_relu_without_its_factor",
        family="backward_by_hand",
        parent="paired_layers",
        where=("layers.*.1",),
        why="the derivative of the square lacks its factor of two",
        edits=(("return grad * 2 * positive", "return grad * positive"),),
    ),
    _dead(
        name="gelu_with_half_its_derivative",
        family="backward_by_hand",
        parent="nanogpt",
        where=("transformer.h.*.mlp",),
        why="the product rule's second term is forgotten, which saves a tensor",
        edits=(
            ("class MLP(nn.Module):", f"{_QUICK_GELU}class MLP(nn.Module):"),
            ("self.gelu(self.c_fc(x))", "QuickGELU.apply(self.c_fc(x))"),
        ),
    ),
    _dead(
        name="norm_whose_backward_takes_the_scale_for_a_constant",
        family="backward_by_hand",
        parent="llama",
        where=("layers.*.input_layernorm",),
        why="a fused norm whose backward leaves out what the scale depends on",
        edits=(
            ("class RMSNorm(nn.Module):", f"{_RMS}class RMSNorm(nn.Module):"),
            (
                "x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)",
                "RMS.apply(x, self.eps)",
            ),
        ),
    ),
    _dead(
        name="residual_added_in_place",
        family="written_over_in_place",
        parent="alibi",
        where=("blocks.*.norm_attention",),
        why="x += saves memory that the norm in front still needs",
        edits=(
            (
                "x = x + self.attention(self.norm_attention(x))",
                "x += self.attention(self.norm_attention(x))",
            ),
        ),
    ),
    _dead(
        name="weights_masked_in_place",
        family="written_over_in_place",
        parent="bert",
        where=("encoder.*.attention",),
        why="weights of padding are zeroed in place behind the softmax, which keeps its result",
        edits=(
            (
                "probs = self.dropout(torch.softmax(scores, dim=-1))",
                "probs = torch.softmax(scores, dim=-1).masked_fill_(mask < 0, 0.0)\n"
                "        probs = self.dropout(probs)",
            ),
        ),
    ),
    _dead(
        name="patches_added_in_place",
        family="written_over_in_place",
        parent="vit",
        where=("blocks.*.norm1",),
        why="x += behind a norm that keeps x",
        edits=(
            (
                "x = x + self.attn(h, h, h, need_weights=False)[0]",
                "x += self.attn(h, h, h, need_weights=False)[0]",
            ),
        ),
    ),
)
