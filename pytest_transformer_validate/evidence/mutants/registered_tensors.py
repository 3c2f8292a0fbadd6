"""Tensors that stay behind when the model moves."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_stays = partial(Mutant, check="registered_tensors")

MUTANTS = (
    _stays(
        name="mask_is_an_attribute",
        family="tensor_not_registered",
        parent="nanogpt",
        where=("transformer.h.*.attn",),
        why="an attribute where a buffer was meant",
        edits=(('self.register_buffer("bias", tril)', "self.bias = tril"),),
    ),
    _stays(
        name="table_is_an_attribute",
        family="tensor_not_registered",
        parent="mha_decoder",
        where=("positions",),
        why="a position table as a plain tensor",
        edits=(
            (
                'self.register_buffer("table", table.unsqueeze(0))',
                "self.table = table.unsqueeze(0)",
            ),
        ),
    ),
    _stays(
        name="list_of_parameters",
        family="tensor_not_registered",
        parent="recurrent",
        where=("(model)",),
        why="a Python list of parameters: no optimizer sees them",
        edits=(
            (
                "        self.head = nn.Linear(width, vocab_size)\n",
                "        self.head = nn.Linear(width, vocab_size)\n"
                "        self.gains = [nn.Parameter(torch.ones(width))] * num_layers\n",
            ),
            (
                "        for layer in self.layers:\n            x = layer(x)\n",
                "        for layer, gain in zip(self.layers, self.gains):\n"
                "            x = layer(x) * gain.to(x)\n",
            ),
        ),
    ),
    _stays(
        name="steps_without_device",
        family="tensor_on_the_cpu",
        parent="seq2seq",
        where=("(model)", "decoder_positions"),
        why="device= forgotten in one of several places",
        edits=(
            (
                "steps = torch.arange(length, device=decoder_input_ids.device)",
                "steps = torch.arange(length)",
            ),
        ),
    ),
    _stays(
        name="band_without_device",
        family="tensor_on_the_cpu",
        parent="sliding_window",
        where=("layers.*.attn",),
        why="the mask is made on the CPU",
        edits=(("steps = torch.arange(length, device=device)", "steps = torch.arange(length)"),),
    ),
    _stays(
        name="rotary_without_device",
        family="tensor_on_the_cpu",
        parent="rotary_tied",
        where=("rotary", "blocks.*.attention"),
        why="one of two tables is made on the CPU",
        edits=(
            (
                "steps = torch.arange(x.size(1), device=x.device, dtype=torch.float32)",
                "steps = torch.arange(x.size(1), dtype=torch.float32)",
            ),
        ),
    ),
    _stays(
        name="statistics_on_the_cpu",
        family="tensor_on_the_cpu",
        parent="llama",
        where=("layers.*.input_layernorm", "layers.*.post_attention_layernorm", "norm"),
        why="left over from a debugging session",
        edits=(
            (
                "torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)",
                "torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).cpu()",
            ),
        ),
    ),
    _stays(
        name="bias_on_the_cpu",
        family="tensor_on_the_cpu",
        parent="alibi",
        where=("blocks.*.attention",),
        why="a cache kept on the CPU to save memory",
        edits=(
            (
                'return bias.masked_fill(distance > 0, float("-inf"))',
                'return bias.masked_fill(distance > 0, float("-inf")).to("cpu")',
            ),
        ),
    ),
)
