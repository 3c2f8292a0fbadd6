"""Gradients that are not those of the function: every parameter has one, and it is wrong."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_wrong = partial(Mutant, check="attribution")

_GELU = """

class FastGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


class MLP(nn.Module):"""

_SILU = """

class FastSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.sigmoid()


class SwiGLU(nn.Module):"""

_SOFTMAX = """

class OwnSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        probs = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(probs)
        return probs

    @staticmethod
    def backward(ctx, grad):
        (probs,) = ctx.saved_tensors
        return grad * probs * (1 - probs)


class BertSelfAttention(nn.Module):"""

_NORM = """

class OwnNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
        ctx.save_for_backward(scale)
        return centred * scale

    @staticmethod
    def backward(ctx, grad):
        (scale,) = ctx.saved_tensors
        return grad * scale


class ViTBlock(nn.Module):"""

MUTANTS = (
    _wrong(
        name="residual_detached",
        family="part_of_the_path_detached",
        parent="nanogpt",
        where=("transformer.h.*",),
        why="detached to save memory while debugging; the branch still passes a gradient on",
        edits=(("x = x + self.attn(self.ln_1(x))", "x = x.detach() + self.attn(self.ln_1(x))"),),
    ),
    _wrong(
        name="input_of_attention_detached",
        family="part_of_the_path_detached",
        parent="text_classifier",
        where=("blocks.*",),
        why="the branch is detached in place of its result",
        edits=(("self.attn(self.norm1(x), mask)", "self.attn(self.norm1(x.detach()), mask)"),),
    ),
    _wrong(
        name="keys_of_the_memory_detached",
        family="part_of_the_path_detached",
        parent="seq2seq",
        where=("*_layers.*.self_attn", "*_layers.*.cross_attn"),
        why="keys are made as for a cache",
        edits=(("self.heads(self.w_k(memory))", "self.heads(self.w_k(memory.detach()))"),),
    ),
    _wrong(
        name="statistics_of_the_norm_detached",
        family="part_of_the_path_detached",
        parent="llama",
        where=("layers.*.input_layernorm", "layers.*.post_attention_layernorm", "norm"),
        why="the scale is taken for a constant",
        edits=(("torch.rsqrt(x.pow(2)", "torch.rsqrt(x.data.pow(2)"),),
    ),
    _wrong(
        name="input_of_the_mlp_detached",
        family="part_of_the_path_detached",
        parent="relative_encoder",
        where=("layers.*",),
        why="detached to keep a probe out of the graph, one name too early",
        edits=(("self.inner(self.mlp_norm(x))", "self.inner(self.mlp_norm(x.detach()))"),),
    ),
    _wrong(
        name="gelu_with_the_backward_of_relu",
        family="backward_of_another_function",
        parent="sdpa_gpt",
        where=("blocks.*.mlp",),
        why="a fast backward that is that of another activation",
        edits=(
            ("\n\nclass MLP(nn.Module):", _GELU),
            ("F.gelu(self.fc(x))", "FastGELU.apply(self.fc(x))"),
        ),
    ),
    _wrong(
        name="silu_backward_without_its_second_term",
        family="backward_of_another_function",
        parent="llama",
        where=("layers.*.mlp",),
        why="the derivative of the sigmoid is forgotten",
        edits=(
            ("\n\nclass SwiGLU(nn.Module):", _SILU),
            ("F.silu(self.gate_proj(x))", "FastSiLU.apply(self.gate_proj(x))"),
        ),
    ),
    _wrong(
        name="softmax_backward_of_a_sigmoid",
        family="backward_of_another_function",
        parent="bert",
        where=("encoder.*.attention",),
        why="p (1 - p), which is the diagonal of the derivative alone",
        edits=(
            ("\n\nclass BertSelfAttention(nn.Module):", _SOFTMAX),
            (
                "self.dropout(torch.softmax(scores, dim=-1))",
                "self.dropout(OwnSoftmax.apply(scores))",
            ),
        ),
    ),
    _wrong(
        name="norm_backward_without_its_statistics",
        family="backward_of_another_function",
        parent="vit",
        where=("blocks.*",),
        why="mean and variance are taken for constants",
        edits=(
            ("\n\nclass ViTBlock(nn.Module):", _NORM),
            ("self.mlp(self.norm2(x))", "self.mlp(OwnNorm.apply(x) * self.norm2.weight)"),
        ),
    ),
    _wrong(
        name="attribution_of_the_next_token",
        family="hidden_token_gets_an_attribution",
        parent="rotary_tied",
        where=("blocks.*.attention",),
        why="triu(2): the next token may be seen",
        edits=((".triu(1)\n        scores", ".triu(2)\n        scores"),),
    ),
    _wrong(
        name="attribution_of_the_token_behind_a_mask",
        family="hidden_token_gets_an_attribution",
        parent="nanogpt",
        where=("transformer.h.*.attn",),
        why="the buffer is made with its diagonal one too far",
        edits=(("torch.tril(torch.ones(size, size))", "torch.tril(torch.ones(size, size), 1)"),),
    ),
)
