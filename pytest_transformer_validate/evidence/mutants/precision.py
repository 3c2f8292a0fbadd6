"""Arithmetic that half precision does not carry."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_rounds = partial(Mutant, check="precision", parent="rotary_tied", where=("rotary",))

MUTANTS = (
    Mutant(
        name="bias_of_the_mask_in_float32",
        family="dtype_hard_coded",
        parent="masked_gpt",
        check="precision",
        where=("(model)", "blocks.*.attn"),
        why="torch.zeros without a dtype, added to scores in bfloat16",
        edits=(
            (
                "bias = torch.zeros(allowed.shape, dtype=dtype, device=attention_mask.device)",
                "bias = torch.zeros(allowed.shape, device=attention_mask.device)",
            ),
        ),
    ),
    _rounds(
        name="steps_in_the_models_dtype",
        family="rounded_in_half_precision",
        why="arange in x.dtype: bfloat16 has no odd numbers beyond 256",
        edits=(
            (
                "steps = torch.arange(x.size(1), device=x.device, dtype=torch.float32)",
                "steps = torch.arange(x.size(1), device=x.device, dtype=x.dtype).float()",
            ),
        ),
    ),
    _rounds(
        name="angles_in_the_models_dtype",
        family="rounded_in_half_precision",
        why="sin and cos of angles that were rounded to the model's dtype",
        edits=(
            (
                "return angles.cos().to(x.dtype), angles.sin().to(x.dtype)",
                "return angles.to(x.dtype).cos(), angles.to(x.dtype).sin()",
            ),
        ),
    ),
    _rounds(
        name="distances_in_half",
        family="rounded_in_half_precision",
        where=("blocks.*.attention",),
        why="relative distances as differences of rounded positions",
        edits=(
            (
                "        weights = scores.softmax",
                "        steps = torch.arange(length, device=x.device).to(x.dtype)\n"
                "        scores = scores - (steps[:, None] - steps[None, :]) / 8\n"
                "        weights = scores.softmax",
            ),
        ),
    ),
    _rounds(
        name="running_sum_in_half",
        family="rounded_in_half_precision",
        where=("blocks.*",),
        why="a running mean by hand: small terms vanish beside a large sum",
        edits=(
            (
                "        return x + self.down(F.silu(self.gate(h)) * self.up(h))",
                "        total, means = torch.ones_like(h[:, 0]) * 4, []\n"
                "        for step in range(h.size(1)):\n"
                "            total = total + h[:, step] / 16\n"
                "            means.append(total)\n"
                "        h = h + torch.stack(means, dim=1)\n"
                "        return x + self.down(F.silu(self.gate(h)) * self.up(h))",
            ),
        ),
    ),
    _rounds(
        name="squares_overflow",
        family="out_of_the_range_of_half",
        where=(
            "blocks.*.attention_norm",
            "blocks.*.mlp_norm",
            "norm",
        ),
        why="the norm squares in float16, where 256 squared is infinite",
        edits=(
            ("        wide = x.float()\n", "        wide = x * 4096\n"),
            ("keepdim=True) + self.eps)", "keepdim=True) + 4096 * self.eps)"),
        ),
    ),
    _rounds(
        name="additive_mask_times_zero",
        family="out_of_the_range_of_half",
        parent="alibi",
        where=("blocks.*.attention",),
        why="-1e9 is -infinity in float16, and 0 times it is NaN",
        edits=(
            (
                'return bias.masked_fill(distance > 0, float("-inf"))',
                "lowest = torch.tensor(-1e9).to(bias)\n"
                "        return bias + lowest * (distance > 0)",
            ),
        ),
    ),
    Mutant(
        name="angles_stay_in_float32",
        family="dtype_hard_coded",
        parent="llama",
        check="precision",
        where=("rotary", "layers.*.self_attn"),
        why="angles in float32, as they should be, and nothing brings them back",
        edits=(
            (
                "position_ids[:, :, None].to(self.inv_freq.dtype) * self.inv_freq",
                "position_ids[:, :, None].float() * self.inv_freq.float()",
            ),
        ),
    ),
    Mutant(
        name="gate_in_float32",
        family="dtype_hard_coded",
        parent="relative_encoder",
        check="precision",
        where=("layers.*", "layers.*.outer"),
        why="the activation is computed in float32 and handed on like that",
        edits=(("F.gelu(gate) * value", "F.gelu(gate.float()) * value"),),
    ),
    Mutant(
        name="running_state_in_half",
        family="rounded_in_half_precision",
        parent="recurrent",
        check="precision",
        where=("mixer",),
        why="a slow average by hand: what is added is smaller than the last digit of the state",
        edits=(
            (
                "        return self.out(states)",
                "        total, means = torch.ones_like(states[:, 0]) * 32, []\n"
                "        for step in range(states.size(1)):\n"
                "            total = total + states[:, step] / 4\n"
                "            means.append(total - 32)\n"
                "        return self.out(states + torch.stack(means, dim=1))",
            ),
        ),
    ),
    Mutant(
        name="running_share_of_each_expert",
        family="rounded_in_half_precision",
        parent="stacked_experts",
        check="precision",
        where=("layers.*.experts",),
        why="loads are counted in the model's dtype: from 256 on, one more is no more",
        edits=(
            (
                "        inner = F.silu(",
                "        load, loads = gates[:, 0] * 0 + 256, []\n"
                "        for step in range(gates.size(1)):\n"
                "            load = load + (gates[:, step] > 0)\n"
                "            loads.append(load - 256)\n"
                "        gates = gates / (1 + torch.stack(loads, dim=1))\n"
                "        inner = F.silu(",
            ),
        ),
    ),
)
