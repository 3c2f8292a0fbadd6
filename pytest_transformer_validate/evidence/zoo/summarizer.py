"""Encoder-decoder with fused attention behind a flag, checkpointed layers, and greedy decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.fused_attn = True
        self.q, self.kv, self.out = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, source: Tensor, keep: Tensor | None) -> Tensor:
        q = self.split(self.q(x))
        k, v = map(self.split, self.kv(source).chunk(2, dim=-1))
        if self.fused_attn:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=self.scale)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            if keep is not None:
                scores = scores.masked_fill(~keep, float("-inf"))
            y = scores.softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, crosses: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim) if crosses else None
        self.cross = Attention(dim, heads) if crosses else None
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.drop = nn.Dropout(0.1)

    def forward(
        self, x: Tensor, keep: Tensor | None, source: Tensor | None, source_keep: Tensor | None
    ) -> Tensor:
        y = self.norm(x)
        x = x + self.drop(self.attention(y, y, keep))
        if self.cross is not None and self.cross_norm is not None and source is not None:
            x = x + self.drop(self.cross(self.cross_norm(x), source, source_keep))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class Summarizer(nn.Module):
    def __init__(
        self, vocab_size: int, d_model: int, nhead: int, num_layers: int, max_len: int
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_len, d_model)
        self.encoder = nn.ModuleList([Layer(d_model, nhead, False) for _ in range(num_layers)])
        self.decoder = nn.ModuleList([Layer(d_model, nhead, True) for _ in range(num_layers)])
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions(torch.arange(ids.size(1), device=ids.device))

    def run(
        self,
        layer: nn.Module,
        x: Tensor,
        keep: Tensor | None,
        source: Tensor | None = None,
        source_keep: Tensor | None = None,
    ) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, x, keep, source, source_keep, use_reentrant=False)
        return layer(x, keep, source, source_keep)

    def encode(self, ids: Tensor, keep: Tensor | None) -> Tensor:
        x = self.embed(ids)
        for layer in self.encoder:
            x = self.run(layer, x, keep)
        return self.encoder_norm(x)

    def decode(self, ids: Tensor, source: Tensor, source_keep: Tensor | None) -> Tensor:
        x, length = self.embed(ids), ids.size(1)
        keep = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        for layer in self.decoder:
            x = self.run(layer, x, keep, source, source_keep)
        return self.head(self.decoder_norm(x))

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        keep = None if attention_mask is None else attention_mask[:, None, None].bool()
        return self.decode(decoder_input_ids, self.encode(input_ids, keep), keep)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int, bos_token_id: int = 1) -> Tensor:
        source = self.encode(input_ids, None)
        ids = input_ids.new_full((input_ids.size(0), 1), bos_token_id)
        for _ in range(max_new_tokens):
            logits = self.decode(ids, source, None)
            ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return ids
