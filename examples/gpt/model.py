"""A small GPT: pre-norm blocks, learned positions, a tied head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, T tokens, C width of the model, H heads, D width of a head, V vocabulary


class SelfAttention(nn.Module):
    """Causal multi-head attention; padding, where there is some, is never looked at."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)  # (B, H, T, D)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible is None,
        )
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Attention, then a feed-forward network, each added to a normalised input's residual."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = SelfAttention(d_model, n_heads, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), visible))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Token ids (B, T) to the logits (B, T, V) of each position's next token."""

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_seq_len, d_model)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        self.head.weight = self.tokens.weight

        self.apply(self._init_weights)
        # Each block adds to the residual stream twice; this keeps its variance from growing.
        for block in self.blocks:
            for last in (block.attn.proj, block.mlp[-1]):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * n_layers))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        T = input_ids.shape[1]
        if self.max_seq_len < T:
            raise ValueError(f"{T} tokens, but max_seq_len is {self.max_seq_len}")
        positions = torch.arange(T, device=input_ids.device)
        visible = None
        if attention_mask is not None:
            # Counted from the first real token, so that padding on the left moves nothing.
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
            visible = self._visible(attention_mask.bool())
        x = self.drop(self.tokens(input_ids) + self.positions(positions))
        for block in self.blocks:
            x = block(x, visible)
        return self.head(self.norm(x))

    @staticmethod
    def _visible(real: Tensor) -> Tensor:
        """Who sees whom, (B, 1, T, T): real tokens that are not later, and everybody itself."""
        T = real.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=real.device).tril()
        itself = torch.eye(T, dtype=torch.bool, device=real.device)
        return (causal & (real[:, None, :] | itself))[:, None]
