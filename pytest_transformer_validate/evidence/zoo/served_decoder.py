"""Decoder to be served: rotary positions from a mask, a cache, greedy ``generate`` over rows that
are padded on the left; attention by name, checkpointing by a method."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Cache = list[tuple[Tensor, Tensor]]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        self.attn_implementation = "sdpa"
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, angles: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, dim = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, angles), rotate(k, angles)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        present = (k, v)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        if self.attn_implementation == "eager":
            scores = q @ k.transpose(-2, -1) * self.width**-0.5
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            y = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, dim)), present


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, kv_heads)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6)
        self.gate = nn.Linear(dim, 2 * dim, bias=False)
        self.up = nn.Linear(dim, 2 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim, bias=False)

    def forward(
        self, x: Tensor, angles: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.attention(self.norm1(x), angles, mask, past)
        x = x + attended
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), present


class ServedDecoder(nn.Module):
    rates: Tensor

    def __init__(
        self, vocab_size: int, hidden_size: int, num_layers: int, num_heads: int, num_kv_heads: int
    ) -> None:
        super().__init__()
        self.use_checkpoint = False
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(
            [Layer(hidden_size, num_heads, num_kv_heads) for _ in range(num_layers)]
        )
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
        width = hidden_size // num_heads
        rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("rates", rates, persistent=False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.use_checkpoint = enable

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> dict[str, Tensor | Cache]:
        batch, length = input_ids.shape
        past = past_key_values[0][0].size(2) if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = torch.ones(
                batch, past + length, dtype=torch.long, device=input_ids.device
            )
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        angles = position_ids[..., None] * self.rates
        causal = torch.ones(length, past + length, dtype=torch.bool, device=input_ids.device)
        causal = causal.tril(diagonal=past)
        seen = causal[None] & attention_mask[:, None].bool()
        own = torch.eye(past + length, dtype=torch.bool, device=input_ids.device)[past:]
        mask = (seen | own[None])[:, None]
        x = self.embed(input_ids)
        presents: Cache = []
        for index, layer in enumerate(self.layers):
            before = past_key_values[index] if past_key_values is not None else None
            if self.use_checkpoint and self.training:
                x, present = checkpoint(layer, x, angles, mask, before, use_reentrant=False)
            else:
                x, present = layer(x, angles, mask, before)
            presents.append(present)
        logits = self.lm_head(self.norm(x))
        return {"logits": logits, "past_key_values": presents} if use_cache else {"logits": logits}

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 20,
        eos_token_id: int | None = None,
    ) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        cache, new = None, input_ids
        for _ in range(max_new_tokens):
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new.size(1) :]
            output = self(new, attention_mask, positions, cache, use_cache=True)
            cache = output["past_key_values"]
            new = output["logits"][:, -1].argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, new], dim=1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(new)], dim=1)
            if eos_token_id is not None and bool((new == eos_token_id).all()):
                break
        return input_ids
