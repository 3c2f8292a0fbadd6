"""Mistakes that let random numbers into evaluation."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_draws = partial(Mutant, check="determinism")

MUTANTS = (
    _draws(
        name="functional_dropout_always",
        family="dropout_in_evaluation",
        parent="sdpa_gpt",
        where=("blocks.0.mlp",),
        why="F.dropout is in training mode unless told",
        edits=(
            (
                "return self.dropout(self.proj(F.gelu(self.fc(x))))",
                "return F.dropout(self.proj(F.gelu(self.fc(x))), self.dropout.p)",
            ),
        ),
    ),
    _draws(
        name="attention_dropout_always",
        family="dropout_in_evaluation",
        parent="sdpa_gpt",
        where=("blocks.0.attn",),
        why="scaled_dot_product_attention knows no mode: dropout_p is applied whenever given",
        edits=(("drop = self.dropout if self.training else 0.0", "drop = self.dropout"),),
    ),
    _draws(
        name="dropout_of_last_layer_always",
        family="dropout_in_evaluation",
        parent="conv_gpt",
        where=("blocks.1",),
        why="one layer was written later than the others",
        edits=(
            (
                "self.drop = nn.Dropout(dropout)",
                "self.drop = nn.Dropout(dropout)\n        self.late = False",
            ),
            (
                "return x + self.drop(self.ff(self.ff_norm(x)))",
                "if self.late:\n            return x + F.dropout(self.ff(self.ff_norm(x)), 0.1)\n"
                "        return x + self.drop(self.ff(self.ff_norm(x)))",
            ),
            (
                "self.norm = nn.LayerNorm(dim)\n        self.unembedding",
                "self.blocks[-1].late = True\n        self.norm = nn.LayerNorm(dim)\n"
                "        self.unembedding",
            ),
        ),
    ),
    _draws(
        name="dropout_follows_grad_mode",
        family="dropout_in_evaluation",
        parent="seq2seq",
        where=("encoder_layers.0.ffn",),
        why="recording gradients taken for training: evaluation of a loss with gradients is noisy",
        edits=(
            (
                "return self.w_2(F.relu(self.w_1(x)))",
                "hidden = F.dropout(F.relu(self.w_1(x)), 0.1, torch.is_grad_enabled())\n"
                "        return self.w_2(hidden)",
            ),
        ),
    ),
    _draws(
        name="dropout_where_a_mask_is_given",
        family="dropout_in_evaluation",
        parent="llama",
        where=("(model)",),
        why="tokens are hidden at random in the path with an attention mask only",
        edits=(
            (
                "mask = mask & attention_mask[:, None, None, :].bool()",
                "kept = torch.rand(attention_mask.shape) > 0.1\n"
                "            kept[:, 0] = True\n"
                "            mask = mask & (attention_mask.bool() & kept)[:, None, None, :]",
            ),
        ),
    ),
    _draws(
        name="stochastic_depth_always",
        family="noise_in_evaluation",
        parent="alibi",
        where=("blocks.0",),
        why="stochastic depth without a look at the mode",
        edits=(
            (
                "return x + self.mlp(self.norm_mlp(x))",
                "kept = torch.rand(x.size(0), 1, 1) > 0.2\n"
                "        return x + self.mlp(self.norm_mlp(x)) * kept",
            ),
        ),
    ),
    _draws(
        name="layer_left_out_rarely",
        family="noise_in_evaluation",
        parent="mha_decoder",
        where=("(model)",),
        why="LayerDrop with Python's random numbers, also in evaluation",
        edits=(
            ("import math\n", "import math\nimport random\n"),
            (
                "        for layer in self.layers:\n",
                "        for layer in self.layers:\n            if random.random() < 0.05:\n"
                "                continue\n",
            ),
        ),
    ),
    _draws(
        name="router_noise_always",
        family="noise_in_evaluation",
        parent="moe",
        where=("layers.0.moe",),
        why="noise for load balancing, also in evaluation",
        edits=(
            (
                "scores = self.gate(tokens).softmax(dim=-1)",
                "scores = self.gate(tokens)\n"
                "        scores = (scores + 0.01 * torch.randn_like(scores)).softmax(dim=-1)",
            ),
        ),
    ),
    _draws(
        name="embedding_noise_always",
        family="noise_in_evaluation",
        parent="recurrent",
        where=("(model)",),
        why="noisy embeddings for fine-tuning, left on; an effect of 1e-3",
        edits=(
            (
                "x = self.embed(input_ids)\n",
                "x = self.embed(input_ids)\n        x = x + 1e-3 * torch.randn_like(x)\n",
            ),
        ),
    ),
    _draws(
        name="patches_masked_always",
        family="noise_in_evaluation",
        parent="vit",
        where=("patches",),
        why="the random mask of a masked autoencoder, also in evaluation",
        edits=(
            (
                "cls = self.cls_token.expand(x.size(0), -1, -1)",
                "x = x * (torch.rand(x.size(0), x.size(1), 1) > 0.1)\n"
                "        cls = self.cls_token.expand(x.size(0), -1, -1)",
            ),
        ),
    ),
    _draws(
        name="noise_behind_a_closed_gate",
        family="noise_in_evaluation",
        parent="sliding_window",
        where=("layers.0",),
        why="noise that shows only when training has opened the gate",
        edits=(
            (
                "self.norm2 = nn.LayerNorm(hidden_size)\n",
                "self.norm2 = nn.LayerNorm(hidden_size)\n"
                "        self.gate = nn.Parameter(torch.zeros(1))\n",
            ),
            (
                "x = x + self.drop(self.attn(self.norm1(x)))",
                "x = x + self.drop(self.attn(self.norm1(x))) + self.gate * torch.randn_like(x)",
            ),
        ),
    ),
    _draws(
        name="eval_not_passed_on",
        family="mode_not_passed_on",
        parent="nanogpt",
        where=("(model)",),
        why="eval() of its own, without a call of the one that it replaces",
        edits=(
            (
                "    def forward(self, idx: Tensor, targets",
                "    def eval(self):\n        self.evaluating = True\n        return self\n\n"
                "    def forward(self, idx: Tensor, targets",
            ),
        ),
    ),
    _draws(
        name="train_not_passed_on",
        family="mode_not_passed_on",
        parent="bert",
        where=("encoder.0",),
        why="train() of its own sets the flag and forgets the submodules",
        edits=(
            (
                "class BertLayer(nn.Module):\n",
                "class BertLayer(nn.Module):\n"
                "    def train(self, mode=True):\n        self.training = mode\n"
                "        return self\n\n",
            ),
        ),
    ),
    _draws(
        name="dropouts_in_a_plain_list",
        family="mode_not_passed_on",
        parent="mha_decoder",
        where=("layers.0",),
        why="eval() does not reach what a plain list holds",
        edits=(
            (
                "self.norm2 = nn.LayerNorm(d_model)\n",
                "self.norm2 = nn.LayerNorm(d_model)\n"
                "        self.drops = [nn.Dropout(dropout), nn.Dropout(dropout)]\n",
            ),
            (
                "x = x + self.dropout(self.attn(self.norm1(x), mask))",
                "x = x + self.drops[0](self.attn(self.norm1(x), mask))",
            ),
            (
                "return x + self.dropout(self.ffn(self.norm2(x)))",
                "return x + self.drops[1](self.ffn(self.norm2(x)))",
            ),
        ),
    ),
    _draws(
        name="block_trains_itself",
        family="mode_not_passed_on",
        parent="text_classifier",
        where=("blocks.0",),
        why="a call of train() left in a forward",
        edits=(
            (
                "x = x + self.dropout(self.attn(self.norm1(x), mask))",
                "self.dropout.train()\n"
                "        x = x + self.dropout(self.attn(self.norm1(x), mask))",
            ),
        ),
    ),
    _draws(
        name="dropout_mode_inverted",
        family="dropout_in_evaluation",
        parent="given_mask",
        where=("blocks.*",),
        why="not self.training: the condition the wrong way round",
        edits=(
            (
                "x = x + self.attn(self.attn_norm(x), mask)",
                "x = x + nn.functional.dropout(self.attn(self.attn_norm(x), mask), "
                "0.1, not self.training)",
            ),
        ),
    ),
)
