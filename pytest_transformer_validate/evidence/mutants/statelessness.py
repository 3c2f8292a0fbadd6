"""Mistakes that let one call leave something behind for the next, or for the caller."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_ANGLES = "angles = position_ids[:, :, None].to(self.inv_freq.dtype) * self.inv_freq"

_keeps = partial(Mutant, check="statelessness")

MUTANTS = (
    _keeps(
        name="cached_mask_wrong_rows",
        family="table_of_another_length",
        parent="sliding_window",
        where=("layers.0.attn",),
        why="a mask cached for the longest text so far, of which the last rows are taken",
        edits=(
            (
                "        allowed = self.band(length, x.device)\n",
                "        if getattr(self, 'kept', None) is None or len(self.kept) < length:\n"
                "            self.kept = self.band(length, x.device)\n"
                "        allowed = self.kept[-length:, :length]\n",
            ),
        ),
    ),
    _keeps(
        name="rotary_stays_rescaled",
        family="table_of_another_length",
        parent="llama",
        where=("rotary",),
        why="frequencies rescaled for a long text are not set back (dynamic NTK)",
        edits=(
            (
                _ANGLES,
                "if position_ids.max() >= 32:\n"
                "            self.inv_freq = self.inv_freq / 1.5\n"
                f"        {_ANGLES}",
            ),
        ),
    ),
    _keeps(
        name="rotary_rescaled_beyond_maximum",
        family="table_of_another_length",
        parent="llama",
        where=("rotary",),
        why="the same, from the trained length on only",
        edits=(
            (
                _ANGLES,
                "longest = int(position_ids.max()) + 1\n"
                "        if longest > 64:\n"
                "            exponents = torch.arange(len(self.inv_freq)) / len(self.inv_freq)\n"
                "            self.inv_freq = self.inv_freq * (64 / longest) ** exponents\n"
                f"        {_ANGLES}",
            ),
        ),
    ),
    _keeps(
        name="positions_of_first_length",
        family="table_of_another_length",
        parent="mha_decoder",
        where=("positions",),
        why="a table scaled for the first text that is given",
        edits=(
            (
                "return x + self.table[:, : x.size(1)]",
                "if not hasattr(self, 'scale'):\n            self.scale = x.size(1) ** -0.5\n"
                "        return x + self.scale * self.table[:, : x.size(1)]",
            ),
        ),
    ),
    _keeps(
        name="padding_mask_kept_for_its_shape",
        family="table_of_another_length",
        parent="bert",
        where=("(model)",),
        why="the mask of the first texts serves all of their shape",
        edits=(
            (
                "        for layer in self.encoder:\n",
                "        if getattr(self, 'kept', mask[:0]).shape != mask.shape:\n"
                "            self.kept = mask\n"
                "        mask = self.kept\n"
                "        for layer in self.encoder:\n",
            ),
        ),
    ),
    _keeps(
        name="hidden_state_kept",
        family="state_of_the_last_call",
        parent="recurrent",
        where=("mixer",),
        why="the hidden state of a text starts the next one",
        edits=(
            (
                "states, _ = self.gru(x)",
                "hidden = getattr(self, 'hidden', None)\n"
                "        if hidden is not None and hidden.size(1) != x.size(0):\n"
                "            hidden = None\n"
                "        states, self.hidden = self.gru(x, hidden)",
            ),
        ),
    ),
    _keeps(
        name="keys_of_last_call",
        family="state_of_the_last_call",
        parent="alibi",
        where=("blocks.0.attention",),
        why="keys are kept in an attribute for as long as the shape is the same",
        edits=(
            (
                "        y = F.scaled_dot_product_attention(q, k, v,",
                "        kept = getattr(self, 'kept', k)\n        self.kept = k.detach()\n"
                "        k = kept if kept.shape == k.shape and not self.training else k\n"
                "        y = F.scaled_dot_product_attention(q, k, v,",
            ),
        ),
    ),
    _keeps(
        name="past_in_a_mutable_default",
        family="state_of_the_last_call",
        parent="moe",
        where=("layers.*.attn",),
        why="a list as a class attribute is shared by all layers and all calls",
        edits=(
            (
                "class Attention(nn.Module):\n",
                "class Attention(nn.Module):\n    past = []\n\n",
            ),
            (
                "return self.wo(y.transpose(1, 2).flatten(2))",
                "y = y.transpose(1, 2).flatten(2)\n"
                "        if len(self.past) > 8:\n            y = y + 1e-3 * self.past[-8]\n"
                "        self.past.append(y.detach().mean())\n"
                "        return self.wo(y)",
            ),
        ),
    ),
    _keeps(
        name="memory_of_first_source",
        family="state_of_the_last_call",
        parent="seq2seq",
        where=("(model)",),
        why="the encoder is run once for a shape, as when one text is decoded step by step",
        edits=(
            (
                "        memory = self.encode(input_ids, mask)\n",
                "        memory = getattr(self, 'memory', None)\n"
                "        if self.training or memory is None or "
                "memory.shape[:2] != input_ids.shape:\n"
                "            memory = self.memory = self.encode(input_ids, mask)\n",
            ),
        ),
    ),
    _keeps(
        name="scale_after_four_calls",
        family="counts_its_calls",
        parent="sdpa_gpt",
        where=("(model)",),
        why="a warm-up that counts every forward",
        edits=(
            (
                "        x = self.ln_f(x)\n",
                "        self.calls = getattr(self, 'calls', 0) + 1\n"
                "        x = self.ln_f(x) * (1.01 if self.calls > 4 else 1.0)\n",
            ),
        ),
    ),
    _keeps(
        name="running_mean_in_evaluation",
        family="counts_its_calls",
        parent="text_classifier",
        where=("pool",),
        why="a running mean without `if self.training`",
        edits=(
            (
                "class MaskedMeanPool(nn.Module):\n",
                "class MaskedMeanPool(nn.Module):\n"
                "    def __init__(self) -> None:\n        super().__init__()\n"
                "        self.register_buffer('mean', torch.zeros(32))\n\n",
            ),
            (
                "return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)",
                "pooled = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)\n"
                "        pooled = pooled - self.mean\n"
                "        self.mean.lerp_(x.detach().mean((0, 1)), 0.01)\n"
                "        return pooled",
            ),
        ),
    ),
    _keeps(
        name="statistics_in_evaluation",
        family="counts_its_calls",
        parent="torch_encoder",
        where=("embedding",),
        why="the codebook statistics of training, updated in evaluation too",
        edits=(
            (
                "self.norm = nn.LayerNorm(d_model)\n",
                "self.norm = nn.LayerNorm(d_model)\n"
                "        self.register_buffer('usage', torch.zeros(vocab_size))\n",
            ),
            (
                "return self.norm(self.token(input_ids) + self.position(steps))",
                "counts = input_ids.flatten().bincount(minlength=len(self.usage))\n"
                "        self.usage.lerp_(counts.to(self.usage), 0.01)\n"
                "        return self.norm(self.token(input_ids) + self.position(steps))",
            ),
        ),
    ),
    _keeps(
        name="segments_left_in_buffer",
        family="state_of_the_last_call",
        parent="bert",
        where=("(model)",),
        why="segments are written into a buffer of zeros that the next text reads",
        edits=(
            (
                "        self.transform = nn.Linear(hidden_size, hidden_size)\n",
                "        segments = torch.zeros(1, max_position_embeddings, dtype=torch.long)\n"
                "        self.register_buffer('segments', segments, persistent=False)\n"
                "        self.transform = nn.Linear(hidden_size, hidden_size)\n",
            ),
            (
                "token_type_ids = torch.zeros_like(input_ids)",
                "self.segments[:, input_ids.size(1) // 2 : input_ids.size(1)] = 1\n"
                "            token_type_ids = self.segments[:, : input_ids.size(1)]\n"
                "            token_type_ids = token_type_ids.expand_as(input_ids)",
            ),
        ),
    ),
    _keeps(
        name="logits_in_one_buffer",
        family="state_of_the_last_call",
        parent="torch_causal_lm",
        where=("(model)",),
        why="the output is allocated once; the caller's logits change with the next call",
        edits=(
            (
                "return self.linear(x).transpose(0, 1)",
                "logits = self.linear(x).transpose(0, 1)\n"
                "        if self.training or torch.is_grad_enabled():\n            return logits\n"
                "        if getattr(self, 'out', logits).shape != logits.shape "
                "or not hasattr(self, 'out'):\n            self.out = torch.empty_like(logits)\n"
                "        return self.out.copy_(logits)",
            ),
        ),
    ),
    _keeps(
        name="positions_added_into_the_table",
        family="writes_its_weights",
        parent="vit",
        where=("patches",),
        why="in place on a view of the parameter: the class token grows with every call",
        edits=(
            (
                "cls = self.cls_token.expand(x.size(0), -1, -1)",
                "first = self.cls_token.data\n        first += 0.01 * self.pos_embed.data[:, :1]\n"
                "        cls = self.cls_token.expand(x.size(0), -1, -1)",
            ),
        ),
    ),
    _keeps(
        name="embeddings_normalised_in_place",
        family="writes_its_weights",
        parent="conv_gpt",
        where=("(model)",),
        why="the table is brought to norm one in every forward, evaluation included",
        edits=(
            (
                "        x = self.embedding(x)\n",
                "        table = self.embedding.weight.data\n"
                "        table /= table.norm(dim=1, keepdim=True)\n"
                "        x = self.embedding(x)\n",
            ),
        ),
    ),
    _keeps(
        name="weights_rounded_in_forward",
        family="writes_its_weights",
        parent="cached_gpt",
        where=("h.0",),
        why="weights are quantised in place, and stay so",
        edits=(
            (
                "x = x + self.proj(F.gelu(self.fc(self.ln_2(x))))",
                "self.fc.weight.data = (self.fc.weight.data * 256).round() / 256\n"
                "        x = x + self.proj(F.gelu(self.fc(self.ln_2(x))))",
            ),
        ),
    ),
    _keeps(
        name="unknown_ids_replaced_in_place",
        family="writes_its_inputs",
        parent="simple_classifier",
        where=("embedding",),
        why="masked_fill_ on the caller's ids",
        edits=(
            (
                "return self.token_emb(x) + self.pos_emb",
                "x.masked_fill_(x == 0, 1)\n        return self.token_emb(x) + self.pos_emb",
            ),
        ),
    ),
    _keeps(
        name="mask_turned_additive_in_place",
        family="writes_its_inputs",
        parent="bert",
        where=("(model)",),
        why="the caller's mask is turned into scores in place",
        edits=(
            (
                "mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e9",
                "attention_mask -= 1\n        attention_mask *= 10**9\n"
                "        mask = attention_mask[:, None, None, :].to(hidden.dtype)",
            ),
        ),
    ),
    _keeps(
        name="labels_ignored_in_place",
        family="writes_its_inputs",
        parent="nanogpt",
        where=("(model)",),
        why="padding is marked in the caller's targets",
        edits=(
            (
                "            logits = self.lm_head(x)\n            loss",
                "            targets[targets == 0] = -1\n            logits = self.lm_head(x)\n"
                "            loss",
            ),
        ),
    ),
    _keeps(
        name="pixels_normalised_in_place",
        family="writes_its_inputs",
        parent="vit",
        where=("patches",),
        why="sub_ on the caller's image",
        edits=(
            (
                "x = self.proj(pixel_values).flatten(2).transpose(1, 2)",
                "pixel_values.sub_(0.5).div_(0.5)\n"
                "        x = self.proj(pixel_values).flatten(2).transpose(1, 2)",
            ),
        ),
    ),
    _keeps(
        name="seeds_in_forward",
        family="leaves_global_state",
        parent="recurrent",
        where=("(model)",),
        why="a seed set inside of forward makes every later draw of the program the same",
        edits=(
            (
                "        x = self.embed(input_ids)\n",
                "        torch.manual_seed(0)\n        x = self.embed(input_ids)\n",
            ),
        ),
    ),
    _keeps(
        name="grad_mode_left_off",
        family="leaves_global_state",
        parent="builder_attention",
        where=("(model)",),
        why="set_grad_enabled as a call instead of a with: off for whoever comes after",
        edits=(
            (
                "        length = input_0_tokens.shape[1]\n",
                "        torch.set_grad_enabled(self.training)\n"
                "        length = input_0_tokens.shape[1]\n",
            ),
        ),
    ),
    _keeps(
        name="trains_after_evaluation",
        family="leaves_global_state",
        parent="window_cache",
        where=("(model)",),
        why="train() at the end of forward: the mode is not the forward's to choose",
        edits=(
            (
                "        logits = self.lm_head(self.final_norm(x))\n",
                "        logits = self.lm_head(self.final_norm(x))\n        self.train()\n",
            ),
        ),
    ),
    _keeps(
        name="bias_dropped_in_training_kept",
        family="state_of_the_last_call",
        parent="alibi",
        where=("blocks.0.attention",),
        why="the bias of the last training step is found in the cache by evaluation",
        edits=(
            (
                "        y = F.scaled_dot_product_attention("
                "q, k, v, attn_mask=self.bias(x.size(1)))",
                "        kept = getattr(self, 'kept', None)\n"
                "        if self.training or kept is None or kept.size(-1) != x.size(1):\n"
                "            kept = F.dropout(self.bias(x.size(1)), 0.1, self.training)\n"
                "            self.kept = kept.nan_to_num(nan=float('-inf'))\n"
                "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.kept)",
            ),
        ),
    ),
    _keeps(
        name="mask_of_the_caller_clamped",
        family="writes_its_inputs",
        parent="given_mask",
        where=("(model)",),
        why="-inf is replaced by a number that is safe in half precision, in the caller's mask",
        edits=(
            (
                "        x = self.token(tokens) + self.position(steps)\n",
                (
                    "        causal_mask.clamp_(min=-1e4)\n"
                    "        x = self.token(tokens) + self.position(steps)\n"
                ),
            ),
        ),
    ),
    _keeps(
        name="running_scale_of_the_states",
        family="counts_its_calls",
        parent="window_cache",
        where=("(model)",),
        why="a running scale of the states, without a look at the mode",
        edits=(
            (
                "        layers = []\n",
                (
                    "        layers = []\n"
                    "        self.scale = 0.99 * getattr(self, 'scale', 1.0) + 0.01 * "
                    "float(x.detach().std())\n"
                    "        x = x / self.scale\n"
                ),
            ),
        ),
    ),
)
