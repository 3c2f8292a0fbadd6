"""Attention weights are captured exactly, whatever computes them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.probe.capture import captured
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models

LENGTH = 11
LATER = torch.ones(64, 64, dtype=torch.bool).triu(1)


def later(scores):
    return LATER[: scores.size(-2), : scores.size(-1)]


class Attention(models.Attention):
    """Attention with a seam: what makes a result (1, H, T, D) and remembers its weights."""

    def forward(self, x):
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.out(self.meet(q, k, v).transpose(1, 2).flatten(2))

    def weigh(self, scores):
        self.expected = scores.masked_fill(later(scores), -math.inf).softmax(-1)
        return self.expected

    def meet(self, q, k, v):
        return self.weigh(q @ k.mT / math.sqrt(q.size(-1))) @ v


class Fused(Attention):
    def meet(self, q, k, v):
        self.weigh(q @ k.mT * q.size(-1) ** -0.5)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Masked(Attention):
    def meet(self, q, k, v):
        self.weigh(q @ k.mT * 0.3)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~later(q @ k.mT), scale=0.3)


class Grouped(Attention):
    def meet(self, q, k, v):
        k, v = k[:, :2], v[:, :2]
        self.weigh(q @ k.repeat_interleave(2, 1).mT * q.size(-1) ** -0.5)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Einsum(Attention):
    """Grouped queries share one product; the layout is (B, T, H, D)."""

    def meet(self, q, k, v):
        q = q.unflatten(1, (2, 2))
        scores = torch.einsum("bgrid,bgjd->bgrij", q, k[:, :2]) * 0.4
        weights = self.weigh(scores)
        self.expected = weights.flatten(1, 2)
        return torch.einsum("bgrij,bgjd->bigrd", weights, v[:, :2]).flatten(2, 3).transpose(1, 2)


class ByHand(Attention):
    """Exponentials, divided by their sum."""

    def weigh(self, scores):
        scores = scores.masked_fill(later(scores), -1e9)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        self.expected = weights / weights.sum(-1, keepdim=True)
        return self.expected


class Transposed(Attention):
    """Values on the left."""

    def meet(self, q, k, v):
        return (v.mT @ self.weigh(q @ k.mT).mT).mT


class Inference(Attention):
    @torch.inference_mode()
    def meet(self, q, k, v):
        return super().meet(q, k, v)


class Sink(Attention):
    def weigh(self, scores):
        scores = scores.masked_fill(later(scores), -math.inf)
        sink = torch.zeros_like(scores[..., :1])
        self.expected = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        return self.expected


KINDS = [Attention, Fused, Masked, Grouped, Einsum, ByHand, Transposed, Inference, Sink]


def sites(module, *given):
    with torch.no_grad(), captured(module, {LENGTH}) as capture:
        module(*given)
    return capture.sites


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_meet_the_values(kind):
    module = nn.Sequential(kind(32, 4))
    (site,) = sites(module, torch.randn(1, LENGTH, 32))
    assert site.module == "0"
    assert site.more == (kind is Sink)
    assert not site.changed
    assert site.normal == ("exponential" if kind is ByHand else "softmax")
    torch.testing.assert_close(site.weights, module[0].expected[0])


@pytest.mark.parametrize("kind", [Attention, Fused, Masked, Grouped, Einsum, ByHand, Transposed])
def test_the_scale_is_what_was_multiplied(kind):
    scales = {Masked: 0.3, Einsum: 0.4, Transposed: 1.0}
    (site,) = sites(kind(32, 4), torch.randn(1, LENGTH, 32))
    assert site.projected
    assert site.scale == pytest.approx(scales.get(kind, 8**-0.5))


def test_a_learned_scale_is_not_a_number():
    class Learned(Attention):
        def __init__(self, dim, heads):
            super().__init__(dim, heads)
            self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

        def meet(self, q, k, v):
            return self.weigh(q @ k.mT * self.temperature.exp()) @ v

    (site,) = sites(Learned(32, 4), torch.randn(1, LENGTH, 32))
    assert (site.scale, site.learned) == (None, True)


@pytest.mark.parametrize("wanted", [True, False])
def test_multihead_attention_off_its_fast_path(wanted):
    module = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(1, LENGTH, 32)
    with torch.no_grad():
        expected = module(x, x, x, average_attn_weights=False)[1]
        with captured(module, {LENGTH}) as capture:
            module(x, x, x, need_weights=wanted)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(capture.sites[0].weights, expected[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w * 0.25, "times 0.25"),
        (lambda w: w.mul_(2), "times 2"),
        (lambda w: w.masked_fill(w < 0.1, 0), "masked"),
        (lambda w: w + torch.eye(LENGTH) * -1e4, "masked"),
        (lambda w: w + 0.01, "changed"),
        (lambda w: w * w, "changed"),
    ],
    ids=["times", "in_place", "masked", "mask", "added", "squared"],
)
def test_what_is_done_behind_the_softmax_is_named(change, words):
    class Changed(Attention):
        def weigh(self, scores):
            return change(super().weigh(scores))

    (site,) = sites(Changed(32, 4), torch.randn(1, LENGTH, 32))
    assert site.changed == (words,)


def test_other_products_are_no_attention():
    class Experts(nn.Module):
        def forward(self, x):
            gate = x[..., :4].softmax(-1)
            kept = torch.einsum("bte,bted->btd", gate, x[:, :, None].expand(-1, -1, 4, -1))
            keys = x.mT @ x  # linear attention
            return kept + x @ keys

    assert not sites(Experts(), torch.randn(1, LENGTH, 32))


class Flex(Attention):
    def meet(self, q, k, v):
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, score_mod=self.later)

    def later(self, score, _batch, _head, query, key):
        return torch.where(query >= key, score, -math.inf)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_shows_its_weights():
    pytest.importorskip("torch._dynamo")  # flex_attention loads it, and would compile the probe
    module = nn.Sequential(Flex(32, 2))
    (site,) = sites(module, torch.randn(1, LENGTH, 32))
    assert float(site.weights.triu(1).max()) == 0
    torch.testing.assert_close(site.weights.sum(-1), torch.ones(2, LENGTH))


class Alone(nn.Sequential):
    """A module that is called with more than it takes."""

    def forward(self, x, *_):
        return super().forward(x)


class Returned(Attention):
    """Weights that no operation shows, left in an attribute."""

    def meet(self, q, k, v):
        self.attn_weights = self.weigh((q[:, :, :, None] * k[:, :, None]).sum(-1))
        return (self.attn_weights[..., None] * v[:, :, None]).sum(-2)


def test_weights_that_a_module_leaves_behind():
    model = models.Decoder()
    for block in model.blocks:
        block.attention = Alone(Returned(32, 4))
    found = Probe(Subject(model)).attention_weights.sites()
    assert [site.normal for site in found] == ["unknown", "unknown"]
    assert found[0].weights.shape == (4, LENGTH, LENGTH)


def test_weights_that_transformers_returns():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 90}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    model = transformers.GPT2LMHeadModel(config)
    probe = Probe(Subject(model, config))
    before = (config._attn_implementation, config.output_attentions)
    probe.attention_weights._seen = lambda _batch: []  # nothing is seen on the way
    returned = probe.attention_weights.sites()
    assert (config._attn_implementation, config.output_attentions) == before
    seen = Probe(Subject(model, config)).attention_weights.sites()
    assert [site.normal for site in returned] == ["unknown", "unknown"]
    for one, other in zip(returned, seen, strict=True):
        torch.testing.assert_close(one.weights, other.weights)


def test_a_transformers_model_of_today_returns_nothing_and_is_seen():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 90}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, max_position_embeddings=32)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        assert not any(model(ids, output_attentions=True).attentions or ())  # its default: sdpa
        with captured(model, {LENGTH}) as capture:
            model(ids)
        model.set_attn_implementation("eager")
        expected = model(ids, output_attentions=True).attentions
    torch.testing.assert_close(capture.sites[0].weights, expected[0][0])
