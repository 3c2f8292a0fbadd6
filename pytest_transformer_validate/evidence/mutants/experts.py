"""Mistakes after which a router never chooses some expert; found where gradients are judged."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_dead = partial(Mutant, check="gradient_flow", family="part_never_used")

MUTANTS = (
    _dead(
        name="last_expert_left_out",
        parent="moe",
        where=("layers.0.moe.experts.3",),
        why="the scores are cut by one (a slot for dropped tokens that is no longer there)",
        edits=(("scores.topk(self.top_k, dim=-1)", "scores[:, :-1].topk(self.top_k, dim=-1)"),),
    ),
    _dead(
        name="router_bias_of_minus_infinity",
        parent="moe",
        where=("layers.1.moe.experts.0",),
        why="a mask for absent experts that was written with the layer's number",
        edits=(
            (
                "        scores = self.gate(tokens).softmax(dim=-1)\n",
                "        scores = self.gate(tokens) + self.absent\n"
                "        scores = scores.softmax(dim=-1)\n",
            ),
            (
                "        self.norm = nn.RMSNorm(d_model)\n        self.output",
                "        for number, layer in enumerate(self.layers):\n"
                "            absent = torch.zeros(num_experts)\n"
                "            absent[0] = float('-inf') if number == 1 else 0.0\n"
                "            layer.moe.register_buffer('absent', absent)\n"
                "        self.norm = nn.RMSNorm(d_model)\n        self.output",
            ),
        ),
    ),
    _dead(
        name="first_stacked_expert_left_out",
        parent="stacked_experts",
        where=("layers.0.experts",),
        why="expert 0 is taken for the shared one, which is a layer of its own here",
        edits=(
            (
                "values, chosen = scores.topk(self.chosen, dim=-1)\n",
                "values, chosen = scores[..., 1:].topk(self.chosen, dim=-1)\n"
                "        chosen = chosen + 1\n",
            ),
        ),
    ),
    _dead(
        name="matrix_of_the_first_expert",
        parent="stacked_experts",
        where=("layers.0.experts",),
        why="the second product takes the matrix of one expert for all of them",
        edits=(
            (
                '"btef,efd,bte->btd", inner, self.down, gates',
                '"btef,efd,bte->btd", inner, self.down[:1].expand_as(self.down), gates',
            ),
        ),
    ),
)
