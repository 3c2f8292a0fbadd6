"""State that a checkpoint does not keep, or that keeps a checkpoint from being loaded."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_lost = partial(Mutant, check="round_trip")

MUTANTS = (
    _lost(
        name="positions_not_persistent",
        family="state_not_in_the_checkpoint",
        parent="text_classifier",
        where=("(model)",),
        why="persistent=False is for what can be computed again, not for what is drawn",
        edits=(
            (
                "self.positions = nn.Parameter(torch.randn(1, max_len, embed_dim) * 0.02)",
                'self.register_buffer("positions", torch.randn(1, max_len, embed_dim) * 0.02, '
                "persistent=False)",
            ),
        ),
    ),
    _lost(
        name="complex_phases_not_persistent",
        family="state_not_in_the_checkpoint",
        parent="complex_rotary",
        where=("layers.0.attention", "(model)"),
        why="random phases in a buffer that is not saved: each instance turns by its own",
        edits=(
            (
                "angles = torch.outer(torch.arange(end).float(), freqs)",
                "angles = torch.outer(torch.arange(end).float(), freqs) + torch.rand(end, 1)",
            ),
        ),
    ),
    _lost(
        name="cls_token_is_an_attribute",
        family="state_not_in_the_checkpoint",
        parent="vit",
        where=("patches",),
        why="a tensor where a Parameter was meant; moved by hand, so that nothing else shows it",
        edits=(
            (
                "self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))",
                "self.cls_token = torch.zeros(1, 1, dim)",
            ),
            ("cls = self.cls_token.expand", "cls = self.cls_token.to(x).expand"),
        ),
    ),
    _lost(
        name="random_slopes_are_not_kept",
        family="state_not_in_the_checkpoint",
        parent="alibi",
        where=("blocks.*.attention",),
        why="random features as plain tensors, one a layer, small",
        edits=(
            (
                "        self.out = nn.Linear(dim, dim)\n",
                "        self.out = nn.Linear(dim, dim)\n"
                "        self.jitter = torch.randn(dim) * 1e-3\n",
            ),
            (
                "return self.out(y.transpose(1, 2).flatten(2))",
                "return self.out(y.transpose(1, 2).flatten(2)) + self.jitter.to(x)",
            ),
        ),
    ),
    _lost(
        name="list_of_random_features",
        family="state_not_in_the_checkpoint",
        parent="recurrent",
        where=("(model)",),
        why="tensors in a list are as invisible as parameters in one",
        edits=(
            (
                "        self.head = nn.Linear(width, vocab_size)\n",
                "        self.head = nn.Linear(width, vocab_size)\n"
                "        self.gains = [1 + 0.1 * torch.randn(width) for _ in range(num_layers)]\n",
            ),
            (
                "        for layer in self.layers:\n            x = layer(x)\n",
                "        for layer, gain in zip(self.layers, self.gains):\n"
                "            x = layer(x) * gain.to(x)\n",
            ),
        ),
    ),
    _lost(
        name="parameter_made_in_forward",
        family="state_made_late",
        parent="bert",
        where=("(model)",),
        why="a parameter that the first forward makes is in no optimizer and no fresh instance",
        edits=(
            (
                "        hidden = self.transform_norm(",
                '        if not hasattr(self, "scale"):\n'
                "            self.scale = nn.Parameter(torch.ones_like(hidden[0, 0]))\n"
                "        hidden = hidden * self.scale\n"
                "        hidden = self.transform_norm(",
            ),
        ),
    ),
    _lost(
        name="mask_registered_in_forward",
        family="state_made_late",
        parent="conv_gpt",
        where=("blocks.*.attn",),
        why="a cache registered as a persistent buffer: a checkpoint of a used model has one more "
        "key",
        edits=(
            (
                "        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n",
                "        mask = x.new_ones(length, length).bool()\n"
                '        self.register_buffer("mask", mask.tril())\n'
                "        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)\n",
            ),
        ),
    ),
    _lost(
        name="state_dict_without_positions",
        family="own_checkpoint_methods",
        parent="sliding_window",
        where=("(model)", "embed_pos"),
        why="keys that an older checkpoint lacked are filtered, and so never loaded",
        edits=(
            (
                "    def forward(self, input_ids: Tensor) -> Tensor:\n"
                "        steps = torch.arange(input_ids.shape[1], device=input_ids.device)\n",
                "    def load_state_dict(self, state_dict, strict=True, assign=False):\n"
                '        state = {k: v for k, v in state_dict.items() if "embed_pos" not in k}\n'
                "        return super().load_state_dict(state, strict=False)\n\n"
                "    def forward(self, input_ids: Tensor) -> Tensor:\n"
                "        steps = torch.arange(input_ids.shape[1], device=input_ids.device)\n",
            ),
        ),
    ),
    _lost(
        name="renamed_on_the_way_out",
        family="own_checkpoint_methods",
        parent="seq2seq",
        where=("generator",),
        why="state_dict() renames a key that load_state_dict() does not know",
        edits=(
            (
                "    def shift_right(self, labels: Tensor) -> Tensor:\n",
                "    def state_dict(self, *args, **kwargs):\n"
                "        state = super().state_dict(*args, **kwargs)\n"
                '        return {k.replace("generator", "lm_head"): v for k, v in state.items()}\n'
                "\n"
                "    def shift_right(self, labels: Tensor) -> Tensor:\n",
            ),
        ),
    ),
    _lost(
        name="positions_left_out_of_the_file",
        family="own_checkpoint_methods",
        parent="text_classifier",
        where=("(model)",),
        why="what can be computed again is left out, and these positions are drawn",
        edits=(
            (
                "    def forward(self, input_ids: Tensor, attention_mask",
                "    def state_dict(self, *args, **kwargs):\n"
                "        state = super().state_dict(*args, **kwargs)\n"
                "        state.pop('positions')\n        return state\n\n"
                "    def load_state_dict(self, state_dict, strict=True, assign=False):\n"
                "        return super().load_state_dict(state_dict, False, assign)\n\n"
                "    def forward(self, input_ids: Tensor, attention_mask",
            ),
        ),
    ),
    _lost(
        name="table_of_the_last_text_saved",
        family="state_made_late",
        parent="mha_decoder",
        where=("positions",),
        why="a table made for each length and kept in a buffer that is saved: its shape is the "
        "last text's",
        edits=(
            (
                "        return x + self.table[:, : x.size(1)]",
                "        table = self.table[:, : x.size(1)]\n"
                "        self.register_buffer('current', table.clone())\n"
                "        return x + self.current",
            ),
        ),
    ),
)
