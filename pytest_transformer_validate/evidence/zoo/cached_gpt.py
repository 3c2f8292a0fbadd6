"""GPT with a key/value cache as a tuple: ``logits, presents = model(idx, past)``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]


class CachedAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor, layer_past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        batch, length, width = x.shape
        q, k, v = self.c_attn(x).split(width, dim=2)
        q = q.view(batch, length, self.n_head, -1).transpose(1, 2)
        k = k.view(batch, length, self.n_head, -1).transpose(1, 2)
        v = v.view(batch, length, self.n_head, -1).transpose(1, 2)
        if layer_past is not None:
            past_key, past_value = layer_past
            k = torch.cat((past_key, k), dim=-2)
            v = torch.cat((past_value, v), dim=-2)
        total = k.size(-2)
        mask = torch.ones(length, total, dtype=torch.bool, device=x.device)
        mask = mask.tril(diagonal=total - length)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).reshape(batch, length, width)
        return self.c_proj(y), (k, v)


class CachedBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CachedAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.fc = nn.Linear(n_embd, 4 * n_embd)
        self.proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor, layer_past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        attended, present = self.attn(self.ln_1(x), layer_past)
        x = x + attended
        x = x + self.proj(F.gelu(self.fc(self.ln_2(x))))
        return x, present


class CachedGPT(nn.Module):
    def __init__(
        self, vocab_size: int, n_positions: int, n_embd: int, n_layer: int, n_head: int
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(n_positions, n_embd)
        self.h = nn.ModuleList([CachedBlock(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(
        self, idx: Tensor, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        past_length = past[0][0].size(-2) if past is not None else 0
        steps = torch.arange(past_length, past_length + idx.size(1), device=idx.device)
        x = self.wte(idx) + self.wpe(steps)
        presents = []
        for index, block in enumerate(self.h):
            x, present = block(x, past[index] if past is not None else None)
            presents.append(present)
        return self.lm_head(self.ln_f(x)), presents
