"""What the checks of attention weights say, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.tier2.attention import (
    attention_heads,
    attention_patterns,
    attention_rows,
)
from pytest_transformer_validate.checks.tier2.attention_mask import attention_mask
from pytest_transformer_validate.checks.tier2.attention_reach import attention_reach
from pytest_transformer_validate.checks.tier2.attention_scale import attention_scale
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models

CHECKS = [
    attention_rows,
    attention_mask,
    attention_reach,
    attention_heads,
    attention_scale,
    attention_patterns,
]


class Attention(models.Attention):
    """Attention written out, with a seam for each mistake and each idiom."""

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, x):
        return tuple(self.split(part) for part in self.qkv(x).chunk(3, -1))

    def score(self, q, k):
        return q @ k.mT / math.sqrt(q.size(-1))

    def hide(self, scores, causal, mask):
        length = scores.size(-1)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf) if causal else scores
        return scores if mask is None else scores.masked_fill(~mask, -math.inf)

    def weigh(self, scores):
        return scores.softmax(-1)

    def forward(self, x, causal=True, mask=None):
        q, k, v = self.project(x)
        weights = self.weigh(self.hide(self.score(q, k), causal, mask))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def probe(kind, *, last=None, model=models.Decoder, config=None, task=None, weights="random"):
    made = model()
    for block, each in zip(made.blocks, (kind, last or kind), strict=True):
        block.attention = each(32, 4)
    return Probe(Subject(made, config, task=task), weights=weights)


def fails(check, words, kind, **given):
    with pytest.raises(CheckFailed, match=words) as caught:
        check(probe(kind, **given))
    assert caught.value.where == "blocks.0.attention"


@pytest.mark.parametrize("check", CHECKS)
def test_plain_attention_passes(check):
    check(probe(Attention))


# Idioms that are right...


class Sink(Attention):
    def weigh(self, scores):
        return torch.cat([scores, torch.zeros_like(scores[..., :1])], -1).softmax(-1)[..., :-1]


class Capped(Attention):
    def score(self, q, k):
        return (super().score(q, k) / 5).tanh() * 5


class Talking(Attention):
    """Heads are mixed before and behind the softmax."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.before, self.behind = (nn.Conv2d(heads, heads, 1) for _ in range(2))

    def score(self, q, k):
        return self.before(super().score(q, k))

    def weigh(self, scores):
        return self.behind(scores.softmax(-1)).tril()


class Sigmoid(Attention):
    def weigh(self, scores):
        return scores.sigmoid()


class Differential(Attention):
    """The difference of two softmaxes."""

    def weigh(self, scores):
        return scores.softmax(-1) - 0.3 * scores.flip(1).softmax(-1)


class OffByOne(Attention):
    """exp / (1 + sum)."""

    def weigh(self, scores):
        weights = scores.exp()
        return weights / (1 + weights.sum(-1, keepdim=True))


class Linear(Attention):
    """No weights over tokens at all."""

    def forward(self, x, causal=True, mask=None):
        q, k, v = (F.elu(part) + 1 for part in self.project(x))
        state = torch.einsum("bhtd,bhte->bhtde", k, v).cumsum(2)
        return self.out(torch.einsum("bhtd,bhtde->bhte", q, state).transpose(1, 2).flatten(2))


class Normalised(Attention):
    def score(self, q, k):
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 1.0


class SmallQueries(Attention):
    """The scale is in the initialisation."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        with torch.no_grad():
            self.qkv.weight[:dim] *= (dim // heads) ** -0.5
            self.qkv.bias[:dim] *= (dim // heads) ** -0.5

    def score(self, q, k):
        return q @ k.mT


class ZeroQueries(Attention):
    """Every head starts uniform."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        nn.init.zeros_(self.qkv.weight[:dim])
        nn.init.zeros_(self.qkv.bias[:dim])


class Shared(Attention):
    """One map for all heads."""

    def weigh(self, scores):
        return scores.mean(1, keepdim=True).softmax(-1)


class Latent(Attention):
    """Keys and values from one narrow vector, with a part of the keys that all heads share."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.narrow = nn.Linear(width, 12)
        self.wide = nn.Linear(12, 2 * width)
        self.query, self.key = nn.Linear(width, 4 * heads), nn.Linear(width, 4)

    def project(self, x):
        q = torch.cat([self.split(self.qkv(x).chunk(3, -1)[0]), self.split(self.query(x))], -1)
        k, v = (self.split(part) for part in self.wide(self.narrow(x)).chunk(2, -1))
        shared = self.key(x)[:, None].expand(-1, self.heads, -1, -1)
        return q, torch.cat([k, shared], -1), v


IDIOMS = [
    Sink, Capped, Talking, Sigmoid, Differential, OffByOne, Linear, Normalised, SmallQueries,
    ZeroQueries, Shared, Latent,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", IDIOMS)
def test_idioms_are_spared(check, kind):
    try:
        check(probe(kind))
    except NotApplicable as skip:
        assert skip.reason  # noqa: PT017 - a reason is all that is asked for


def test_no_weights_are_a_failure_to_capture():
    with pytest.raises(NotApplicable, match="failed to capture: blocks.0.attention is called"):
        attention_rows(probe(Linear))


def test_a_model_without_attention_says_so():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
    with pytest.raises(NotApplicable, match="^no attention found$"):
        attention_rows(Probe(Subject(model)))


# ... rows...


class Divided(Attention):
    def weigh(self, scores):
        return scores.softmax(-1) / math.sqrt(8)


class Cut(Attention):
    def weigh(self, scores):
        weights = scores.softmax(-1)
        return weights.masked_fill(weights < 0.09, 0)


class OverQueries(Attention):
    def weigh(self, scores):
        weights = scores.exp()
        return weights / weights.sum(-2, keepdim=True)


class Softmaxes(Attention):
    def weigh(self, scores):
        return F.dropout(scores.softmax(-1), 0.1, self.training).softmax(-1)


class Sharpened(Attention):
    """A softmax of weights that were made steeper, which is a choice."""

    def weigh(self, scores):
        return (scores.softmax(-1) * 8).softmax(-1)


def test_a_softmax_of_a_softmax():
    given = {"model": Padded, "config": {"task": "masked_lm"}}
    fails(attention_rows, "scores to the second lies between 0", Softmaxes, **given)
    with pytest.raises(NotApplicable, match="made by more than a softmax"):
        attention_rows(probe(Sharpened, **given))


@pytest.mark.parametrize(
    ("kind", "words", "task"),
    [
        (Divided, "multiplied behind the softmax", None),
        (Cut, "masked behind the softmax", None),
        (OverQueries, "runs over the queries", None),
    ],
)
def test_rows_that_do_not_sum_to_one(kind, words, task):
    fails(attention_rows, words, kind, task=task)


# ... masks...


class Weak(Attention):
    def hide(self, scores, causal, mask):
        length = scores.size(-1)
        return scores - 40 * torch.ones(length, length).triu(1)


class Open(Attention):
    def hide(self, scores, causal, mask):
        return scores


def test_a_future_with_a_weight():
    fails(attention_mask, "later than the query .*weight of", Weak)
    fails(attention_mask, "does not reach this layer or head", Open)


class Padded(models.Decoder):
    def forward(self, input_ids, attention_mask=None):
        length = input_ids.size(1)
        x = self.tokens(input_ids) + self.positions(torch.arange(length))
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        for block in self.blocks:
            x = block(x, causal=False, mask=mask)
        return self.head(self.norm(x))


class Forgetful(Attention):
    def hide(self, scores, causal, mask):
        return scores


class Soft(Attention):
    def hide(self, scores, causal, mask):
        return scores if mask is None else scores - 50.0 * ~mask


class VerySoft(Attention):
    """Padding shows in the outputs."""

    def hide(self, scores, causal, mask):
        return scores if mask is None else scores - 10.0 * ~mask


def test_padding_with_a_weight():
    given = {"model": Padded, "task": "masked_lm"}
    assert attention_mask(probe(Attention, **given)).cells["padding"]
    fails(attention_mask, "(?s)is padding .*does not reach this layer", Forgetful, last=Attention,
          **given)  # fmt: skip
    for kind in (Soft, VerySoft):
        fails(attention_mask, "(?s)is padding .*adds too small a number", kind, **given)


def test_a_mask_that_no_layer_uses_is_for_tier_1():
    with pytest.raises(NotApplicable, match="padding has a weight here, and in all layers"):
        attention_mask(probe(Forgetful, model=Padded, task="masked_lm"))


class Window(Attention):
    window = 4

    def hide(self, scores, causal, mask):
        steps = torch.arange(scores.size(-1))
        back = steps[:, None] - steps
        return scores.masked_fill((back < 0) | (back >= self.window), -math.inf)


class OneFree(Window):
    def hide(self, scores, causal, mask):
        free = Attention.hide(self, scores[:, :1], True, None)
        return torch.cat([free, super().hide(scores[:, 1:], causal, mask)], 1)


class WeakWindow(Attention):
    def hide(self, scores, causal, mask):
        steps = torch.arange(scores.size(-1))
        far = steps[:, None] - steps >= 4
        return super().hide(scores - 50.0 * far, causal, mask)


def test_a_window_that_a_head_leaves():
    config = {"sliding_window": 4}
    assert attention_mask(probe(Window, config=config)).cells["window"]
    fails(attention_mask, "beyond the declared window", OneFree, config=config)
    fails(attention_mask, "not 0, and far below all others", WeakWindow)


# ... reach...


class Mean(Window):
    def forward(self, x, causal=True, mask=None):
        steps = torch.arange(1, x.size(1) + 1)[:, None]
        return super().forward(x, causal, mask) + 0.1 * x.cumsum(1) / steps


class Convolved(Window):
    """A convolution carries a little further than the window."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.conv = nn.Conv1d(dim, dim, 3, groups=dim)

    def forward(self, x, causal=True, mask=None):
        x = self.conv(F.pad(x.mT, (2, 0))).mT
        return super().forward(x, causal, mask)


class Lost(Attention):
    def forward(self, x, causal=True, mask=None):
        return super().forward(x, causal, mask).detach() * 0 + x


def test_tokens_carried_past_attention():
    fails(attention_reach, "which no attention connects with it", Mean)
    attention_reach(probe(Window))
    attention_reach(probe(Convolved))


def test_attention_whose_result_is_lost():
    fails(attention_reach, "does not depend on token", Lost)


# ... heads, scale...


class Copied(Attention):
    def project(self, x):
        q, k, v = super().project(x)
        return *(torch.cat([t[:, :3], t[:, :1]], 1) for t in (q, k)), v


def test_heads_that_are_copies():
    fails(attention_heads, "heads 0 and 3 of 4", Copied)


class Unscaled(Attention):
    def score(self, q, k):
        return q @ k.mT


class Twice(Attention):
    def forward(self, x, causal=True, mask=None):
        q, k, v = self.project(x)
        y = F.scaled_dot_product_attention(q * 8**-0.5, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class ByTheModel(Attention):
    """The width of all heads together."""

    def score(self, q, k):
        return q @ k.mT / math.sqrt(q.size(1) * q.size(-1))


def test_a_scale_that_is_missing_or_doubled():
    fails(attention_scale, "not scaled before the softmax, d is 8", Unscaled)
    fails(attention_scale, "scaled by 0.125 = 1/d", Twice)
    fails(attention_scale, r"scaled by 0.177 = 1/sqrt\(heads x d\)", ByTheModel)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Unscaled, {"attention_multiplier": 1.0}),
        (Unscaled, {"scale_attn_weights": False}),
        (Twice, {"query_pre_attn_scalar": 64}),
        (Twice, {"use_mup": True}),
        (ByTheModel, {"query_pre_attn_scalar": 32}),
    ],
)
def test_a_scale_that_is_declared(kind, config):
    assert "in the configuration says" in attention_scale(probe(kind, config=config)).notes[0]


def test_trained_weights_make_their_own_scale():
    given = probe(Unscaled, weights="model.safetensors")
    with torch.no_grad():
        for parameter in given.subject.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    with pytest.raises(NotApplicable, match="may be trained"):
        attention_scale(given)


# ... and numbers.


def test_patterns_are_information():
    measured = attention_patterns(probe(Attention))
    assert measured.notes == ("information: the weights show no training, so nothing is judged",)
    first = measured.layers[0]
    assert first.module == "blocks.0.attention"
    assert len(first.entropy) == len(first.first) == len(first.distance) == 4
    assert all(0.9 < e <= 1 for e in first.entropy)
    assert 0 < first.diversity < 0.3
    assert first.length == len(measured.pictures[first.module]) > 16


class Sharp(Attention):
    """Every query sees itself and nothing else."""

    def score(self, q, k):
        return torch.eye(k.size(-2)) * 100 + super().score(q, k)


def test_rows_with_one_visible_key_are_no_collapse():
    measured = attention_patterns(probe(Sharp, weights="model.safetensors"))
    assert measured.value < 0.01  # normalised by the keys that a row may see
    assert measured.collapsed == ()


def test_latent_keys_and_values_are_seen_in_full():
    assert attention_scale(probe(Latent)).value == pytest.approx(1.0, abs=1e-3)


def test_heads_that_found_little_to_look_for_are_no_collapse():
    given = probe(ZeroQueries, weights="model.safetensors")
    with torch.no_grad():
        for parameter in given.subject.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    measured = attention_patterns(given)
    assert 0.99 < measured.value < 0.9999
    assert measured.collapsed == ()


def test_a_collapse_of_trained_weights():
    given = probe(ZeroQueries, weights="model.safetensors")
    with torch.no_grad():
        for name, parameter in given.subject.model.named_parameters():
            if "qkv" not in name:
                parameter.add_(torch.randn_like(parameter))
    with pytest.raises(CheckFailed, match="in 2 of 2 layers every head looks at all keys alike"):
        attention_patterns(given)
