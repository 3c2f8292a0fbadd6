"""Sliding-window decoder whose cache holds the window only; loss and logits as a dict."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LayerCache = dict[str, Tensor]


class WindowAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, cached: LayerCache | None) -> tuple[Tensor, LayerCache]:
        length = x.size(1)
        q, k, v = (
            self.split(self.q_proj(x)),
            self.split(self.k_proj(x)),
            self.split(self.v_proj(x)),
        )
        if cached is not None:
            k = torch.cat([cached["k"], k], dim=2)
            v = torch.cat([cached["v"], v], dim=2)
        total = k.size(2)
        query = torch.arange(total - length, total, device=x.device)[:, None]
        key = torch.arange(total, device=x.device)[None, :]
        allowed = (key <= query) & (query - key < self.window)
        scores = q @ k.transpose(-1, -2) * q.size(-1) ** -0.5
        scores = scores.masked_fill(~allowed, float("-inf"))
        y = scores.softmax(dim=-1) @ v
        keep = self.window - 1
        return self.out_proj(y.transpose(1, 2).flatten(2)), {
            "k": k[:, :, -keep:],
            "v": v[:, :, -keep:],
        }


class WindowLayer(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(hidden_size)
        self.attn = WindowAttention(hidden_size, num_heads, window)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, 3 * hidden_size)
        self.down = nn.Linear(3 * hidden_size, hidden_size)

    def forward(self, x: Tensor, cached: LayerCache | None) -> tuple[Tensor, LayerCache]:
        attended, new = self.attn(self.attn_norm(x), cached)
        x = x + attended
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)))), new


class WindowCacheLM(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        sliding_window: int,
        max_position_embeddings: int,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.embed_positions = nn.Embedding(max_position_embeddings, hidden_size)
        self.layers = nn.ModuleList(
            [
                WindowLayer(hidden_size, num_attention_heads, sliding_window)
                for _ in range(num_hidden_layers)
            ]
        )
        self.final_norm = nn.LayerNorm(hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        cache: dict | None = None,  # type: ignore[type-arg]
        use_cache: bool = False,
    ) -> dict:  # type: ignore[type-arg]
        seen = 0 if cache is None else cache["seen"]
        steps = torch.arange(seen, seen + input_ids.size(1), device=input_ids.device)
        x = self.embed_tokens(input_ids) + self.embed_positions(steps)
        layers = []
        for index, layer in enumerate(self.layers):
            x, new = layer(x, None if cache is None else cache["layers"][index])
            layers.append(new)
        logits = self.lm_head(self.final_norm(x))
        out = {"logits": logits}
        if use_cache:
            out["cache"] = {"seen": seen + input_ids.size(1), "layers": layers}
        if labels is not None:
            shift_logits = logits[:, :-1].reshape(-1, logits.size(-1))
            shift_labels = labels[:, 1:].reshape(-1)
            out["loss"] = F.cross_entropy(shift_logits, shift_labels, ignore_index=-100)
        return out
