"""What the checks of attention and layers say, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.tier1.gradients import gradient_flow
from pytest_transformer_validate.checks.tier1.structure import (
    attention_structure,
    layer_structure,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models
from tests.models import probe_of


class ByHand(models.Attention):
    """Attention written out, with a seam for each mistake."""

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def weigh(self, scores):
        return scores.softmax(-1)

    def merge(self, y):
        return y.transpose(1, 2).flatten(2)

    def forward(self, x, causal=True, mask=None):
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        return self.out(self.merge(self.weigh(q @ k.mT / 3) @ v))


def attention(kind: type[models.Attention], task="masked_lm"):
    model = models.Decoder()
    model.blocks[1].attention = kind(32, 4)
    return attention_structure(Probe(Subject(model, task=task)))


class SplitByView(ByHand):
    def split(self, x):
        b, t, d = x.shape
        return x.reshape(b, self.heads, t, d // self.heads)


class MergedByView(ByHand):
    def merge(self, y):
        b, h, t, d = y.shape
        return y.reshape(b, t, h * d)


class Folded(ByHand):
    """Heads and rows in one axis, (B x H, T, D)."""

    def split(self, x):
        return super().split(x).flatten(0, 1)

    def merge(self, y):
        return super().merge(y.unflatten(0, (-1, self.heads)))


class FoldedHeadsFirst(Folded):
    def split(self, x):
        return ByHand.split(self, x).transpose(0, 1).flatten(0, 1)

    def merge(self, y):
        return ByHand.merge(self, y.unflatten(0, (self.heads, -1)).transpose(0, 1))


class FoldedByView(Folded):
    def split(self, x):
        return x.reshape(len(x) * self.heads, x.shape[1], -1)


class OverQueries(ByHand):
    def weigh(self, scores):
        return scores.softmax(-2)


class OverHeads(ByHand):
    def weigh(self, scores):
        return F.dropout(torch.softmax(scores.float(), dim=1), training=self.training)


class FoldedLate(ByHand):
    """Rows and heads are put into one axis behind the softmax."""

    def folded(self, v):
        return v.flatten(0, 1)

    def forward(self, x, causal=True, mask=None):
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        weights = F.dropout(self.weigh(q @ k.mT / 3), 0.1, self.training)
        y = torch.bmm(weights.view(-1, *weights.shape[2:]), self.folded(v))
        return self.out(self.merge(y.unflatten(0, q.shape[:2])))


class FoldedLateByView(FoldedLate, SplitByView):
    pass


class FoldedLateAndMergedByView(FoldedLate, MergedByView):
    pass


class FoldedLateOverQueries(FoldedLate):
    def weigh(self, scores):
        return scores.softmax(-2)


class ByLetters(ByHand):
    """Multi-query attention by einsum: keys and values have no axis for the heads."""

    def forward(self, x, causal=True, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = self.split(q), self.split(k)[:, 0], self.split(v)[:, 0]
        weights = self.weigh(torch.einsum("b h i d, b j d -> b h i j", q, k) / 3)
        return self.out(self.merge(torch.einsum("b h i j, b j d -> b h i d", weights, v)))


class OneHead(ByHand):
    """One head, and no axis for it."""

    def forward(self, x, causal=True, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = self.weigh(torch.einsum("bmd,bnd->bmn", q, k) / 6)
        return self.out(torch.einsum("bmn,bnd->bmd", weights, v))


class Grouped(ByHand):
    """Two heads share a key and a value."""

    def forward(self, x, causal=True, mask=None):
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        q, k, v = q.unflatten(1, (2, 2)), k[:, :2], v[:, :2]
        weights = self.weigh(torch.einsum("bgrid,bgjd->bgrij", q, k) / 3)
        mixed = torch.einsum("bgrij,bgjd->bgrid", weights, v)
        return self.out(self.merge(mixed.flatten(1, 2)))


class LettersOverQueries(ByLetters):
    def weigh(self, scores):
        return scores.softmax(-2)


class OneHeadOverQueries(OneHead):
    def weigh(self, scores):
        return scores.softmax(1)


class GroupedOverQueries(Grouped):
    def weigh(self, scores):
        return scores.softmax(-2)


class LettersMergedByView(ByLetters):
    def merge(self, y):
        b, h, t, d = y.shape
        return y.reshape(b, t, h * d)


class OneSlice(ByHand):
    def split(self, x):
        return super().split(x)[:, :1].expand(-1, self.heads, -1, -1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (SplitByView, "reaches the query at other positions, and not in every head"),
        (MergedByView, "arrives at"),
        (FoldedByView, "reaches the value at other positions, and not in every head"),
        (OverQueries, "sum to 1 along axis -2, the values are summed along axis -1"),
        (OverHeads, "sum to 1 along axis -3"),
        (OneSlice, "have the same scores and the same result"),
        (LettersOverQueries, "sum to 1 along axis -2, the values are summed along axis -1"),
        (OneHeadOverQueries, "sum to 1 along axis -2, the values are summed along axis -1"),
        (GroupedOverQueries, "sum to 1 along axis -2, the values are summed along axis -1"),
        (LettersMergedByView, "arrives at"),
        (FoldedLateByView, "at other positions, and not in every head"),
        (FoldedLateAndMergedByView, "arrives at"),
        (FoldedLateOverQueries, "sum to 1 along axis -2, the values are summed along axis -1"),
    ],
)
def test_mixed_attention_fails_in_its_module(kind, words):
    with pytest.raises(CheckFailed, match=words) as caught:
        attention(kind)
    assert caught.value.where == "blocks.1.attention"


class Sink(ByHand):
    def weigh(self, scores):
        sink = torch.zeros_like(scores[..., :1])
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


class Convolved(ByHand):
    """Queries, keys and values from a convolution over the positions."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.conv = nn.Conv1d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim)

    def forward(self, x, causal=True, mask=None):
        mixed = self.conv(self.qkv(x).mT).mT
        q, k, v = (self.split(part) for part in mixed.chunk(3, -1))
        return self.out(self.merge(self.weigh(q @ k.mT / 3) @ v))


class Talking(ByHand):
    """Heads are mixed behind the softmax."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.talk = nn.Parameter(torch.randn(heads, heads))

    def weigh(self, scores):
        return torch.einsum("bhij,hk->bkij", scores.softmax(-1), self.talk)


class Linear(ByHand):
    """Efficient attention: softmax of queries over features, of keys over positions."""

    def forward(self, x, causal=True, mask=None):
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        context = k.softmax(-2).transpose(-2, -1) @ v
        return self.out(self.merge(q.softmax(-1) @ context))


class Einsum(ByHand):
    def forward(self, x, causal=True, mask=None):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).unbind(2)
        weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class Pooled(ByHand):
    """Slots look for tokens: the softmax is over the slots, and no attention over keys."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.slots = nn.Linear(dim, 3)

    def forward(self, x, causal=True, mask=None):
        share = self.slots(x).softmax(-1)
        return self.out(x + torch.einsum("bns,bnd->bsd", share, x).mean(1, keepdim=True))


class OneKey(ByHand):
    """Multi-query attention: all heads share their key and value."""

    def forward(self, x, causal=True, mask=None):
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        k, v = (t[:, :1].expand_as(q) for t in (k, v))
        return self.out(self.merge(F.scaled_dot_product_attention(q, k, v)))


class Shared(ByHand):
    """Four heads of queries over two of keys and values."""

    tiled = ""

    def forward(self, x, causal=True, mask=None):
        q, k, v = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        shared = {"k": k[:, :2], "v": v[:, :2]}
        k, v = (
            t.repeat(1, 2, 1, 1) if name in self.tiled else t.repeat_interleave(2, 1)
            for name, t in shared.items()
        )
        return self.out(self.merge(F.scaled_dot_product_attention(q, k, v)))


class SharedInBlocks(Shared):
    tiled = "kv"


class ValuesTiled(Shared):
    tiled = "v"


def test_heads_that_share_keys_share_values():
    model = models.Decoder()
    for block in model.blocks:
        block.attention = ValuesTiled(32, 4)
    with pytest.raises(CheckFailed, match="heads 0, 1 share their keys, and heads 0, 2") as caught:
        attention_structure(Probe(Subject(model)))
    assert caught.value.where == "blocks.0.attention"


class Reversed(ByHand):
    def forward(self, x, causal=True, mask=None):
        return super().forward(x.flip(1)).flip(1)


_OTHERS = [
    ByHand, Folded, FoldedHeadsFirst, Sink, Convolved, Talking, Linear, Einsum, OneKey,
    ByLetters, OneHead, Grouped, Pooled, Reversed, Shared, SharedInBlocks, FoldedLate,
]  # fmt: skip


@pytest.mark.parametrize("kind", _OTHERS)
def test_attention_of_other_kinds_passes(kind):
    assert attention(kind).sites


def test_attention_of_torch_is_not_looked_into():
    probe = Probe(Subject(models.Translator()))
    assert "torch's own" in attention_structure(probe).notes[0]


def test_without_attention_there_is_nothing_to_judge():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

        def forward(self, ids):
            return self.head(self.table(ids))

    probe = Probe(Subject(Mean()))
    with pytest.raises(NotApplicable, match="no attention was seen"):
        attention_structure(probe)
    with pytest.raises(NotApplicable, match="no list with several layers"):
        layer_structure(probe)


def layers(model: nn.Module, config=None):
    return layer_structure(Probe(Subject(model, config)))


class NoResidual(models.Block):
    """A block whose second branch replaces the stream in one layer."""

    number = 0

    def forward(self, x, causal=True, mask=None):
        x = x + self.attention(self.norm1(x), causal, mask)
        return self.mlp(self.norm2(x)) + x * (self.number != 1)


@pytest.mark.parametrize("count", [2, 4])
def test_the_layer_without_a_residual_is_named(count):
    model = models.Decoder()
    model.blocks = nn.ModuleList(NoResidual() for _ in range(count))
    layers(model)
    model.blocks[1].number = 1
    with pytest.raises(CheckFailed, match="the residual connection is missing") as caught:
        layers(model)
    assert caught.value.where == "blocks.1"


def test_the_layer_without_a_residual_among_rates_that_rise():
    model = models.Decoder()
    model.blocks = nn.ModuleList(NoResidual() for _ in range(4))
    for number, block in enumerate(model.blocks):
        block.mlp.append(nn.Dropout(0.1 * number))
    layers(model)
    model.blocks[2].number = 1
    with pytest.raises(CheckFailed, match="the residual connection is missing") as caught:
        layers(model)
    assert caught.value.where == "blocks.2"


class FilledUp(models.Decoder):
    """Texts are filled up inside with vectors of nothing, which a norm behind the sum blows up."""

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        x = nn.functional.pad(x, (0, 0, 0, 5))
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, : ids.size(1)])


class NormedLast(NoResidual):
    def forward(self, x, causal=True, mask=None):
        x = self.norm1(x + self.attention(x, causal, mask) * 0.01)
        return self.norm2(self.mlp(x) + x * (self.number != 1))


def test_places_that_are_filled_up_tell_nothing_of_a_residual():
    model = FilledUp()
    model.blocks = nn.ModuleList(NormedLast() for _ in range(2))
    layers(model, {"task": "masked_lm"})
    model.blocks[1].number = 1
    with pytest.raises(CheckFailed, match="the residual connection is missing") as caught:
        layers(model, {"task": "masked_lm"})
    assert caught.value.where == "blocks.1"


class Halves(models.Block):
    """A block with these of its two sums."""

    sums = (True, True)

    def forward(self, x, causal=True, mask=None):
        attended = self.attention(self.norm1(x), causal, mask)
        x = x + attended if self.sums[0] else attended
        return x + self.mlp(self.norm2(x)) if self.sums[1] else self.mlp(self.norm2(x))


class Inside(models.Block):
    """A block whose attention brings its own sum along, and a norm behind it."""

    def __init__(self):
        super().__init__()
        self.attention = Added(32, 4)

    def forward(self, x, causal=True, mask=None):
        return self.norm2(self.mlp(self.attention(x, causal, mask)))


class Added(models.Attention):
    def forward(self, x, causal=True, mask=None):
        return x + super().forward(x, causal, mask)


def _made(kind, **values):
    model = models.Decoder()
    model.blocks = nn.ModuleList(kind() for _ in range(3))
    for block in model.blocks:
        for name, value in values.items():
            setattr(block, name, value)
    return model


def test_layers_without_any_sum_are_a_design():
    layers(_made(Halves))
    layers(_made(Halves, sums=(False, False)))


@pytest.mark.parametrize(
    ("kind", "sums", "words"),
    [
        (Halves, (False, True), "connection around the attention is missing"),
        (Halves, (True, False), "around the feed-forward, is missing"),
        (Inside, (True, False), "around the feed-forward, is missing"),
    ],
    ids=["attention", "behind", "inside"],
)
def test_one_of_two_sums_is_missing_in_every_layer(kind, sums, words):
    with pytest.raises(CheckFailed, match=words) as caught:
        layers(_made(kind, sums=sums))
    assert caught.value.where == "blocks.0"


def test_a_feed_forward_without_a_norm_needs_no_sum():
    model = _made(Inside)
    for block in model.blocks:
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    layers(model)


class Summed(models.Block):
    """A block whose second sum is one of these."""

    way = "sum"

    def forward(self, x, causal=True, mask=None):
        attended = self.attention(self.norm1(x), causal, mask)
        y = x + attended
        fed = self.mlp(self.norm2(y))
        ways = {"sum": y, "input": x, "twice": y + x, "again": x + 0.5 * attended}
        return ways[self.way] + fed


@pytest.mark.parametrize(
    ("way", "words"),
    [("input", "starts from the layer's input again"), ("twice", "the input is added twice")],
)
def test_a_sum_that_starts_from_the_wrong_one(way, words):
    model = models.Decoder()
    model.blocks = nn.ModuleList(Summed() for _ in range(3))
    layers(model)
    for block in model.blocks:
        block.way = way
    with pytest.raises(CheckFailed, match=words) as caught:
        layers(model)
    assert caught.value.where in ("blocks.0", "blocks.1")


def test_what_attention_gives_may_be_added_in_another_way():
    model = models.Decoder()
    model.blocks = nn.ModuleList(Summed() for _ in range(3))
    for block in model.blocks:
        block.way = "again"
    layers(model)


def test_one_module_named_n_times():
    model = models.Decoder()
    model.blocks = nn.ModuleList([models.Block()] * 3)
    with pytest.raises(CheckFailed, match="n_layer promises 3 layers, there are weights for 1"):
        layers(model, {"n_layer": 3})
    layers(model, {"n_layer": 3, "share_layers": True})
    model.shares_weights = True
    layers(model, {"n_layer": 3})


def test_a_shared_layer_that_nobody_counts_is_left_alone():
    model = models.Decoder()
    model.blocks = nn.ModuleList([models.Block()] * 3)
    assert layers(model).notes == ("blocks.0 and blocks.1 share all weights (undeclared)",)


class Repeated(models.Decoder):
    def __init__(self, num_layers=3):
        super().__init__()
        self.blocks = nn.ModuleList([models.Block()] * num_layers)


def test_a_number_that_the_model_is_made_with_counts_its_layers():
    with pytest.raises(CheckFailed, match="num_layers promises 3 layers") as caught:
        layers(Repeated())
    assert caught.value.where == "blocks"
    model = Repeated(4)
    assert layers(model).notes
    model.n_layer, model.block_size = 4, 4
    with pytest.raises(CheckFailed, match="n_layer promises 4 layers"):
        layers(model)
    model.universal = True
    layers(model)


def test_one_weight_of_another_layer():
    model = models.Decoder()
    model.blocks = nn.ModuleList(models.Block() for _ in range(3))
    model.blocks[2].mlp[0].weight = model.blocks[0].mlp[0].weight
    with pytest.raises(CheckFailed, match="blocks.0 and blocks.2 share mlp.0.weight"):
        layers(model)
    for block in model.blocks:
        block.mlp[0].weight = model.blocks[0].mlp[0].weight
    layers(model)


class Routed(nn.Module):
    """Top-1 of a list of experts; ``closed`` are never chosen."""

    def __init__(self, closed: int = 0) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32)) for _ in range(4)
        )
        self.closed = closed

    def forward(self, x):
        scores = self.router(x).softmax(-1)
        value, index = scores[..., : 4 - self.closed].max(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            taken = (index == number).squeeze(-1)
            if taken.any():
                out[taken] = expert(x[taken]) * value[taken]
        return out


def flow(closed: int):
    model = models.Decoder()
    model.blocks[0].mlp = Routed()
    model.blocks[1].mlp = Routed(closed)
    return gradient_flow(Probe(Subject(model)))


def test_an_expert_that_is_never_chosen_is_named():
    flow(0)
    with pytest.raises(CheckFailed, match="a router that cannot choose this expert") as caught:
        flow(1)
    assert caught.value.where == "blocks.1.mlp.experts.3"


def test_experts_for_other_inputs_are_left_alone():
    flow(2)


def test_a_list_without_residuals_beside_one_that_has_them():
    class Both(models.Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.later = nn.ModuleList(NoResidual() for _ in range(2))

        def hidden(self, ids):
            x = super().hidden(ids)
            for block in self.later:
                x = block(x)
            return x

    model = Both()
    layers(model)
    for block in model.later:
        block.number = 1
    with pytest.raises(CheckFailed, match="and of every layer in its list") as caught:
        layers(model)
    assert caught.value.where == "later.0"


class Crossed(models.Decoder):
    """Attention in a list of its own, added outside: branches, and no stack."""

    def __init__(self):
        super().__init__()
        self.cross = nn.ModuleList(models.Attention(32, 4) for _ in range(2))

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block, cross in zip(self.blocks, self.cross, strict=True):
            x = block(x)
            x = x + cross(x)
        return self.norm(x)


def test_branches_that_are_added_outside_need_no_residual():
    assert layers(Crossed()).layers


class Apart(models.Decoder):
    """Parts of layers side by side, with their sums outside: in pairs, or in a list each."""

    def __init__(self, pairs=True, attends=True, feeds=True):
        super().__init__()
        blocks, self.sums = self.blocks, (attends, feeds)
        del self.blocks
        parts = [
            [nn.Sequential(block.norm1, block.attention), nn.Sequential(block.norm2, block.mlp)]
            for block in blocks
        ]
        if pairs:
            self.layers = nn.ModuleList(map(nn.ModuleList, parts))
        else:
            self.attends, self.feeds = (nn.ModuleList(part) for part in zip(*parts, strict=True))

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        lists = (
            zip(*self.layers, strict=True)
            if hasattr(self, "layers")
            else (self.attends, self.feeds)
        )
        for attend, feed in zip(*lists, strict=True):
            x = attend(x) + x if self.sums[0] else attend(x)
            x = feed(x) + x if self.sums[1] else feed(x)
        return self.norm(x)


@pytest.mark.parametrize("pairs", [True, False])
def test_parts_whose_sums_stand_outside(pairs):
    layers(Apart(pairs))
    for sums, where in (((False, True), 0), ((True, False), 1)):
        with pytest.raises(CheckFailed, match="is given is not used again") as caught:
            layers(Apart(pairs, *sums))
        assert caught.value.where == (
            f"layers.0.{where}" if pairs else ("attends.0", "feeds.0")[where]
        )


def test_parts_without_any_sum_are_a_design():
    layers(Apart(True, False, False))


def test_a_list_may_hold_nothing():
    model = Apart()
    model.more = nn.ModuleList([None, None])
    layers(model)


class Doubled(Apart):
    """The result is added to itself."""

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for attend, feed in self.layers:
            x = attend(x)
            x = x + x
            x = feed(x) + x
        return self.norm(x)


def test_a_result_that_is_added_to_itself():
    with pytest.raises(CheckFailed, match="x = x \\+ x behind it") as caught:
        layers(Doubled())
    assert caught.value.where == "layers.0.0"


class Skips(Apart):
    """A feed-forward part reads a sum with an early state, and has no residual of its own."""

    def hidden(self, ids):
        x = early = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for attend, feed in self.layers:
            x = attend(x) + x
            x = feed(x + early)
        return self.norm(x)


def test_a_sum_with_an_early_state_is_no_stream():
    layers(Skips())


class OwnNorm(nn.Module):
    """A norm written out: by ``scale`` of the mean square."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.weight = scale, nn.Parameter(torch.ones(32))
        self.bias = nn.Parameter(torch.full((32,), 0.1))

    def forward(self, x):
        return self.weight * self.scale(x, x.pow(2).mean(-1, keepdim=True) + 1e-5) + self.bias


class Squashes(OwnNorm):
    def forward(self, x):
        return self.weight * torch.tanh(0.5 * x) + self.bias


def with_norm(norm):
    model = models.Decoder()
    model.blocks[1].norm2 = norm
    return model


@pytest.mark.parametrize(
    "norm", [OwnNorm(lambda x, size: x * size.rsqrt()), Squashes(None)], ids=["rms", "tanh"]
)
def test_norms_that_are_some(norm):
    layers(with_norm(norm))


@pytest.mark.parametrize(
    "scale",
    [
        lambda x, size: x / size.rsqrt(),
        lambda x, size: x * size,
        lambda x, size: x / size,
    ],
    ids=["divided", "times the square", "no root"],
)
def test_a_norm_whose_output_follows_the_size_of_its_input(scale):
    with pytest.raises(CheckFailed, match="whatever the size of its input") as caught:
        layers(with_norm(OwnNorm(scale)))
    assert caught.value.where == "blocks.1.norm2"


class Pair(nn.Module):
    """Two linear layers, with what is ``between`` them."""

    def __init__(self, wide, between):
        super().__init__()
        self.up, self.between, self.down = nn.Linear(32, wide), between, nn.Linear(wide, 32)

    def forward(self, x):
        return self.down(self.between(self.up(x)))


@pytest.mark.parametrize("between", [nn.Dropout(0.1), nn.Identity()], ids=["dropout", "identity"])
def test_two_linear_layers_that_act_as_one(between):
    model = models.Decoder()
    model.blocks[1].mlp = Pair(64, between)
    with pytest.raises(CheckFailed, match="together they can do no more") as caught:
        layer_structure(probe_of(model))
    assert caught.value.where == "blocks.1.mlp"
    layer_structure(Probe(Subject(model, {"hidden_act": "linear"})))
    layer_structure(Probe(Subject(model, {"adapter_rank": 64})))


@pytest.mark.parametrize(
    ("wide", "between"),
    [(16, nn.Identity()), (64, nn.ReLU(inplace=True)), (64, nn.LayerNorm(64))],
    ids=["narrow", "in_place", "norm"],
)
def test_two_linear_layers_with_something_between_them(wide, between):
    model = models.Decoder()
    model.blocks[1].mlp = Pair(wide, between)
    layer_structure(probe_of(model))
