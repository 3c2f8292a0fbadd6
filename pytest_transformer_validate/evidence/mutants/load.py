"""Mistakes after which there is no model to call."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_unloadable = partial(Mutant, check="load")


class _Holder(nn.Module):
    """A wrapper that keeps the model in a list, so none of its parameters is registered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = [model]

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.models[0].eval()(input_ids)
        return out


def _frozen_tables(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())


def _hold(model: nn.Module) -> torch.nn.Module:
    return _Holder(model)


MUTANTS = (
    _unloadable(
        name="tied_before_it_exists",
        family="raises_at_first_use",
        parent="sdpa_gpt",
        where=(),
        why="weights tied one line too early",
        edits=(
            (
                "self.head = nn.Linear(n_embd, vocab_size, bias=False)\n",
                "self.head.weight = self.wte.weight\n"
                "        self.head = nn.Linear(n_embd, vocab_size, bias=False)\n",
            ),
            ("self.apply(self._init_weights)\n        self.head.weight = self.wte.weight\n", ""),
        ),
        raises=True,
    ),
    _unloadable(
        name="argument_not_in_config",
        family="raises_at_first_use",
        parent="mha_decoder",
        where=(),
        why="new required argument, old config",
        edits=(
            (
                "        vocab_size: int,\n",
                "        vocab_size: int,\n        rope_theta: float,\n",
            ),
        ),
        raises=True,
    ),
    _unloadable(
        name="attribute_misspelt",
        family="raises_at_first_use",
        parent="torch_encoder",
        where=(),
        why="typing mistake on a line that only forward runs",
        edits=(("return self.mlm_head(hidden)", "return self.mlm_haed(hidden)"),),
        raises=True,
    ),
    _unloadable(
        name="wrapped_in_a_list",
        family="nothing_to_train",
        parent="conv_gpt",
        where=(),
        why="a module in a plain list is not registered",
        operate=_hold,
    ),
    _unloadable(
        name="all_weights_buffers",
        family="nothing_to_train",
        parent="recurrent",
        where=(),
        why="weights registered as buffers, so there is nothing to train",
        operate=_frozen_tables,
    ),
    _unloadable(
        name="layers_in_a_dict",
        family="nothing_to_train",
        parent="simple_classifier",
        where=(),
        why="a dict of modules where an nn.ModuleDict was meant",
        edits=(
            (
                "        super().__init__()\n        self.embedding = TokenAndPosition",
                "        super().__init__()\n        self.parts = {}\n"
                "        self.embedding = TokenAndPosition",
            ),
            (
                "        x = self.block(self.embedding(x))\n",
                "        self.eval()\n        x = self.block(self.embedding(x))\n",
            ),
            (
                "class SentimentModel(nn.Module):\n",
                "class SentimentModel(nn.Module):\n"
                "    def __setattr__(self, name, value):\n"
                "        object.__setattr__(self, name, value)\n\n",
            ),
        ),
    ),
)
