"""Mistakes in how weights are drawn."""

from __future__ import annotations

from functools import partial

import torch

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_init = partial(Mutant, check="parameter_initialization")


def _unit_table(model: torch.nn.Module) -> None:
    torch.nn.init.normal_(model.get_parameter("wte.weight"))


def _repeat_head(model: torch.nn.Module) -> None:
    """All heads of the query of the first layer are drawn once and copied."""
    weight = model.get_parameter("encoder.0.attention.query.weight")
    with torch.no_grad():
        weight.copy_(weight[:12].repeat(4, 1))


def _zero_half(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("layers.0.mlp.gate_proj.weight")[48:] = 0


def _draw_all(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)


def _draw_last_norm(model: torch.nn.Module) -> None:
    torch.nn.init.normal_(model.get_parameter("norm.weight"), std=0.02)


def _ten_times(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.get_submodule("transformer.h.1.mlp").parameters():
            parameter.mul_(10)


def _missed_by_scale(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.2.attention.out.weight").mul_(0.1)


def _never_written(model: torch.nn.Module) -> None:
    """What memory that was never written may hold: rest of other tensors, mostly denormal."""
    weight = model.get_parameter("classifier.weight")
    with torch.no_grad():
        weight[1] = 1e-41
        weight[2, ::3] = 3e35


def _both_zero(model: torch.nn.Module) -> None:
    for name in ("blocks.1.mlp.fc.weight", "blocks.1.mlp.proj.weight"):
        torch.nn.init.zeros_(model.get_parameter(name))


def _adapter_of_zeros(model: torch.nn.Module) -> None:
    for name in ("layers.1.self_attn.v_proj.weight", "layers.1.self_attn.o_proj.weight"):
        torch.nn.init.zeros_(model.get_parameter(name))


def _ones(model: torch.nn.Module) -> None:
    torch.nn.init.ones_(model.get_parameter("layers.1.attn.q.weight"))


MUTANTS = (
    _init(
        name="unit_normal_tied_table",
        family="initial_scale",
        parent="sdpa_gpt",
        where=("wte", "head"),
        why="nn.Embedding starts with a standard deviation of 1, and the init function misses it",
        operate=_unit_table,
    ),
    _init(
        name="one_layer_ten_times",
        family="initial_scale",
        parent="nanogpt",
        where=("transformer.h.1.mlp", "transformer.h.1.mlp.*"),
        why="one layer is initialised in another way",
        operate=_ten_times,
    ),
    _init(
        name="one_projection_a_tenth",
        family="initial_scale",
        parent="alibi",
        where=("blocks.2.attention.out",),
        why="the scale of residual projections is applied twice in the last layer",
        operate=_missed_by_scale,
    ),
    _init(
        name="layers_by_deepcopy",
        family="drawn_once",
        parent="bert",
        where=("encoder.1",),
        why="one layer is drawn and copied, so all start with the same weights",
        edits=(
            ("import math\n", "import copy\nimport math\n"),
            (
                """            [
                BertLayer(hidden_size, num_attention_heads, intermediate_size)
                for _ in range(num_hidden_layers)
            ]
""",
                """            copy.deepcopy(layer)
            for layer in [BertLayer(hidden_size, num_attention_heads, intermediate_size)]
            for _ in range(num_hidden_layers)
""",
            ),
        ),
    ),
    _init(
        name="seed_in_every_block",
        family="drawn_once",
        parent="text_classifier",
        where=("blocks.1",),
        why="a seed for reproducible weights, set in each block",
        edits=(
            (
                "        self.norm1 = nn.LayerNorm(dim)\n",
                "        torch.manual_seed(0)\n        self.norm1 = nn.LayerNorm(dim)\n",
            ),
        ),
    ),
    _init(
        name="experts_drawn_once",
        family="drawn_once",
        parent="moe",
        where=("layers.0.moe.experts.1",),
        why="experts are copies of one",
        edits=(
            ("import torch\n", "import copy\n\nimport torch\n"),
            (
                "[Expert(d_model, d_ff) for _ in range(num_experts)]",
                "[copy.deepcopy(e) for e in [Expert(d_model, d_ff)] for _ in range(num_experts)]",
            ),
        ),
    ),
    _init(
        name="heads_drawn_once",
        family="drawn_once",
        parent="bert",
        where=("encoder.0.attention.query",),
        why="one head is drawn and repeated",
        operate=_repeat_head,
    ),
    _init(
        name="half_of_gate_zero",
        family="initial_constants",
        parent="llama",
        where=("layers.0.mlp.gate_proj",),
        why="a slice is zeroed that was meant to be another weight's",
        operate=_zero_half,
    ),
    _init(
        name="query_of_ones",
        family="initial_constants",
        parent="sliding_window",
        where=("layers.1.attn.q",),
        why="init.ones_ on a weight that was meant for the norm",
        operate=_ones,
    ),
    _init(
        name="head_never_written",
        family="initial_constants",
        parent="text_classifier",
        where=("classifier",),
        why="nn.Parameter(torch.empty(...)) that no init function touches",
        operate=_never_written,
    ),
    _init(
        name="both_projections_zero",
        family="initial_constants",
        parent="sdpa_gpt",
        where=("blocks.1.mlp",),
        why="zero init of residual branches, applied to both matrices of one",
        operate=_both_zero,
    ),
    _init(
        name="value_and_output_zero",
        family="initial_constants",
        parent="llama",
        where=("layers.1.self_attn",),
        why="zero init of the value projection, where the output projection starts at zero too",
        operate=_adapter_of_zeros,
    ),
    _init(
        name="norms_drawn_as_weights",
        family="norm_drawn_as_a_weight",
        parent="rotary_tied",
        where=("blocks.0.attention_norm",),
        why="the init function takes every module with a weight",
        edits=(
            ("if isinstance(module, nn.Linear | nn.Embedding):", 'if hasattr(module, "weight"):'),
        ),
    ),
    _init(
        name="all_parameters_drawn",
        family="norm_drawn_as_a_weight",
        parent="nanogpt",
        where=("transformer.h.0.ln_1",),
        why="one line for all parameters",
        operate=_draw_all,
    ),
    _init(
        name="last_norm_drawn",
        family="norm_drawn_as_a_weight",
        parent="llama",
        where=("norm",),
        why="the last norm is initialised with the head",
        operate=_draw_last_norm,
    ),
)
