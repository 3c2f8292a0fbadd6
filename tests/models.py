"""Models as people write them, one property each, for the tests of subject, probe and checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject

VOCAB = 101


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool = True, mask: Tensor | None = None) -> Tensor:
        b, t, d = x.shape
        q, k, v = (s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, causal: bool = True, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), causal, mask)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Learned positions, two blocks, untied head."""

    def __init__(self, vocab_size: int = VOCAB, length: int = 48) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, 32)
        self.positions = nn.Embedding(length, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, vocab_size)

    def hidden(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1), device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids))


class Lecture(Decoder):
    """(logits, loss); with targets the logits come flattened."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.head(self.hidden(idx))
        if targets is None:
            return logits, None
        logits = logits.view(-1, logits.size(-1))
        return logits, F.cross_entropy(logits, targets.view(-1))


class LastLogits(Decoder):
    """All logits only with targets, else those of the last position."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.hidden(idx)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class StartPosition(Decoder):
    def forward(self, tokens: Tensor, start_pos: int) -> Tensor:
        assert start_pos == 0
        return self.head(self.hidden(tokens))


class OneHot(nn.Module):
    """No embedding layer: a one-hot product with a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, 32) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 40, 32) * 0.02)
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        h = F.one_hot(x, VOCAB).to(self.table.dtype) @ self.table + self.positions[:, : x.size(1)]
        return self.block(h) @ self.table.t()


class Indexed(OneHot):
    """The same table, read by plain indexing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.table[x] + self.positions[:, : x.size(1)]) @ self.table.t()


class Scores(NamedTuple):
    scores: Tensor
    loss: Tensor | None


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor


class TimeMajor(nn.Module):
    """Sequence first, as nn.TransformerEncoder is by default; positions are read along axis 0."""

    def __init__(self) -> None:
        super().__init__()
        position = torch.arange(64).unsqueeze(1)
        rate = torch.exp(torch.arange(0, 32, 2) * (-math.log(10000.0) / 32))
        table = torch.zeros(64, 1, 32)
        table[:, 0, 0::2], table[:, 0, 1::2] = (
            torch.sin(position * rate),
            torch.cos(position * rate),
        )
        self.register_buffer("table", table)
        self.tokens = nn.Embedding(VOCAB, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, VOCAB)

    def forward(self, src: Tensor) -> Tensor:
        x = self.tokens(src) + self.table[: src.size(0)]
        mask = nn.Transformer.generate_square_subsequent_mask(len(src), dtype=x.dtype)
        return self.head(self.encoder(x, mask))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCAB, 32), nn.Embedding(VOCAB, 32)
        self.positions = nn.Embedding(50, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, VOCAB)

    def place(self, x: Tensor) -> Tensor:
        return x + self.positions(torch.arange(x.size(1)))

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        dtype = self.head.weight.dtype
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1), dtype=dtype)
        x = self.transformer(
            self.place(self.source(src)), self.place(self.target(tgt)), tgt_mask=mask
        )
        return self.head(x)


class Patches(nn.Module):
    """A vision transformer without a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        self.cls = nn.Parameter(torch.randn(1, 1, 32) * 0.02)
        self.block = Block()
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.block(x, causal=False)[:, 0])


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(2, 2)
        self.never_again = nn.Linear(2, 2)
        self.elsewhere = nn.Linear(2, 2)
        self.scale, self.lost = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        nn.init.zeros_(self.lost)

    def forward(self, x):
        return self.used(x) * self.scale

    def other(self, x):
        return self.elsewhere(x)


class First(nn.Module):
    """Reads one part in forward and another in a method."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.one(x) + self.inner(x)

    def inner(self, x):
        return self.three(x)


class Second(First):
    """Reads what its base does not."""

    def forward(self, x):
        return self.two(x)


class Unbiased(nn.Linear):
    """A linear layer that forgets to add its bias."""

    def forward(self, x):
        return x @ self.weight.t()


class DetachedNorm(nn.LayerNorm):
    def forward(self, x):
        return nn.functional.layer_norm(
            x, self.normalized_shape, self.weight.detach(), self.bias, self.eps
        )


def probe_of(model: nn.Module, config=None, task=None) -> Probe:
    return Probe(Subject(model, config, task=task))
