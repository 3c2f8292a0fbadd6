"""Mixture of experts whose weights are stacked in one parameter, with a shared expert."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).unbind(2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.size(-1) ** 0.5
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        weights = scores.masked_fill(~causal, float("-inf")).softmax(dim=-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(batch, length, hidden))


class Experts(nn.Module):
    def __init__(self, hidden: int, inner: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(hidden, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, hidden, inner) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, hidden) * inner**-0.5)
        self.shared_up = nn.Linear(hidden, inner)
        self.shared_down = nn.Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(dim=-1)
        values, chosen = scores.topk(self.chosen, dim=-1)
        gates = torch.zeros_like(scores).scatter(-1, chosen, values)
        inner = F.silu(torch.einsum("btd,edf->btef", x, self.up))
        routed = torch.einsum("btef,efd,bte->btd", inner, self.down, gates)
        return routed + self.shared_down(F.silu(self.shared_up(x)))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, inner: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.norm2 = nn.RMSNorm(hidden)
        self.experts = Experts(hidden, inner, experts, chosen)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.experts(self.norm2(x))


class StackedExperts(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 32,
        num_layers: int = 2,
        num_heads: int = 4,
        intermediate_size: int = 24,
        num_experts: int = 6,
        experts_per_token: int = 2,
        max_position: int = 48,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.positions = nn.Embedding(max_position, hidden_size)
        self.layers = nn.ModuleList(
            [
                Block(hidden_size, num_heads, intermediate_size, num_experts, experts_per_token)
                for _ in range(num_layers)
            ]
        )
        self.norm = nn.RMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.positions.weight[: input_ids.size(1)]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
