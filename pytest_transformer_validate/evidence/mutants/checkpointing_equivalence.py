"""Activation checkpointing that changes what is learnt."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import ROOT, Mutant

_checkpoint = partial(Mutant, check="checkpointing_equivalence")
_anew = partial(_checkpoint, family="drawn_anew_for_the_backward")
_lost = partial(_checkpoint, family="checkpoint_loses_an_argument")

MUTANTS = (
    _anew(
        name="random_state_not_preserved",
        parent="trained_gpt",
        where=("blocks.*",),
        why="preserve_rng_state=False saves time; dropout then drops others in the backward",
        edits=(
            (
                "checkpoint(block, x, scale, use_reentrant=False)",
                "checkpoint(block, x, scale, use_reentrant=False, preserve_rng_state=False)",
            ),
        ),
    ),
    _anew(
        name="random_state_not_preserved_twice",
        parent="summarizer",
        where=("encoder.*", "decoder.*"),
        why="the same in an encoder and a decoder",
        edits=(
            (
                "checkpoint(layer, x, keep, source, source_keep, use_reentrant=False)",
                "checkpoint(\n"
                "                layer, x, keep, source, source_keep, use_reentrant=False,\n"
                "                preserve_rng_state=False,\n"
                "            )",
            ),
        ),
    ),
    _anew(
        name="depth_by_another_generator",
        parent="served_decoder",
        where=("layers.*",),
        why="checkpoints keep torch's random state, not that of Python's random",
        edits=(
            ("import torch\nimport torch.nn", "import random\n\nimport torch\nimport torch.nn"),
            (
                "        y = self.norm2(x)\n",
                "        y = self.norm2(x)\n"
                "        if self.training:\n"
                "            y = y * random.uniform(0.9, 1.1)\n",
            ),
        ),
    ),
    _lost(
        name="checkpoint_without_scale",
        parent="trained_gpt",
        where=(ROOT,),
        why="checkpoint was called with a constant in place of the argument",
        edits=(
            (
                "checkpoint(block, x, scale, use_reentrant=False)",
                "checkpoint(block, x, torch.full_like(scale, 0.5), use_reentrant=False)",
            ),
        ),
    ),
    _lost(
        name="checkpoint_detaches_its_argument",
        parent="trained_gpt",
        where=(ROOT,),
        why="a tensor that needs a gradient is taken as a number",
        edits=(
            (
                "checkpoint(block, x, scale, use_reentrant=False)",
                "checkpoint(block, x, scale.data, use_reentrant=False)",
            ),
        ),
    ),
    _lost(
        name="checkpoint_without_mask",
        parent="served_decoder",
        where=("layers.*", "layers.*.attention"),
        why="the mask was forgotten among the arguments",
        edits=(
            (
                "checkpoint(layer, x, angles, mask, before, use_reentrant=False)",
                "checkpoint(\n"
                "                    layer, x, angles, torch.ones_like(mask), before, "
                "use_reentrant=False\n"
                "                )",
            ),
        ),
    ),
    _lost(
        name="checkpoint_without_source",
        parent="summarizer",
        where=("decoder.*",),
        why="arguments with a default were left out, and the layer skips its cross attention",
        edits=(
            (
                "checkpoint(layer, x, keep, source, source_keep, use_reentrant=False)",
                "checkpoint(layer, x, keep, None, None, use_reentrant=False)",
            ),
        ),
    ),
    _lost(
        name="reentrant_checkpoint_of_the_first_layer",
        parent="served_decoder",
        where=("layers.0",),
        why="a reentrant checkpoint gives no gradient where no input asks for one",
        edits=(
            (
                "x, present = checkpoint(layer, x, angles, mask, before, use_reentrant=False)",
                "x = x.detach() if index == 0 else x\n"
                "                x, present = checkpoint(\n"
                "                    layer, x, angles, mask, before, use_reentrant=index == 0\n"
                "                )",
            ),
        ),
    ),
)
