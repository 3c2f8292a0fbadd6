"""Encoder-decoder whose decoder keeps keys and values, its own and those of the source."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LayerPast = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Seq2SeqOutput:
    logits: Tensor
    loss: Tensor | None = None
    past_key_values: list[LayerPast] | None = None
    encoder_last_hidden_state: Tensor | None = None


class Attention(nn.Module):
    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.o = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        y = F.scaled_dot_product_attention(self.split(self.q(x)), k, v, attn_mask=mask)
        return self.o(y.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(d_model, heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, d_model)
        )
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attn = self.self_attn
        h = self.norm1(x)
        x = x + attn.attend(h, attn.split(attn.k(h)), attn.split(attn.v(h)), mask)
        return x + self.ffn(self.norm2(x))


class DecoderLayer(nn.Module):
    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(d_model, heads)
        self.cross_attn = Attention(d_model, heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, d_model)
        )

    def forward(
        self, y: Tensor, memory: Tensor, mask: Tensor | None, past: LayerPast | None
    ) -> tuple[Tensor, LayerPast]:
        h = self.norm1(y)
        own, cross = self.self_attn, self.cross_attn
        k, v = own.split(own.k(h)), own.split(own.v(h))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        new, total = y.size(1), k.size(2)
        causal = torch.ones(new, total, dtype=torch.bool, device=y.device).tril(total - new)
        y = y + own.attend(h, k, v, causal)
        if past is not None:
            cross_k, cross_v = past[2], past[3]
        else:
            cross_k, cross_v = cross.split(cross.k(memory)), cross.split(cross.v(memory))
        y = y + cross.attend(self.norm2(y), cross_k, cross_v, mask)
        return y + self.ffn(self.norm3(y)), (k, v, cross_k, cross_v)


class CachedSeq2Seq(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        d_model: int = 32,
        heads: int = 4,
        num_layers: int = 2,
        max_position_embeddings: int = 48,
        pad_token_id: int = 0,
        decoder_start_token_id: int = 1,
    ) -> None:
        super().__init__()
        self.pad, self.start = pad_token_id, decoder_start_token_id
        self.shared = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_position_embeddings, d_model)
        self.encoder = nn.ModuleList([EncoderLayer(d_model, heads) for _ in range(num_layers)])
        self.decoder = nn.ModuleList([DecoderLayer(d_model, heads) for _ in range(num_layers)])
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder_norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size)

    def place(self, ids: Tensor, past: int = 0) -> Tensor:
        steps = torch.arange(past, past + ids.size(1), device=ids.device)
        return self.shared(ids) + self.positions(steps)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: tuple[Tensor, ...] | None = None,
        past_key_values: list[LayerPast] | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
    ) -> Seq2SeqOutput:
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids or labels")
            first = torch.full_like(labels[:, :1], self.start)
            decoder_input_ids = torch.cat([first, labels[:, :-1]], dim=1)
            decoder_input_ids = decoder_input_ids.masked_fill(decoder_input_ids == -100, self.pad)
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        if encoder_outputs is None:
            x = self.place(input_ids)
            for layer in self.encoder:
                x = layer(x, mask)
            memory = self.encoder_norm(x)
        else:
            memory = encoder_outputs[0]
        past = 0 if past_key_values is None else past_key_values[0][0].size(2)
        y = self.place(decoder_input_ids, past)
        presents = []
        for index, layer in enumerate(self.decoder):
            layer_past = None if past_key_values is None else past_key_values[index]
            y, present = layer(y, memory, mask, layer_past)
            presents.append(present)
        logits = self.lm_head(self.decoder_norm(y))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return Seq2SeqOutput(logits, loss, presents if use_cache else None, memory)
