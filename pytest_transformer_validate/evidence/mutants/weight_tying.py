"""Ties between embedding and head that are declared and not real, or real and not lasting."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_untied = partial(Mutant, check="weight_tying", parent="rotary_tied", where=("head",))
_TIE = "            self.head.weight = self.embed.weight\n"

MUTANTS = (
    _untied(
        name="tie_by_clone",
        family="tied_by_copy",
        why="clone() to be on the safe side: two tensors that drift apart",
        edits=((_TIE, "            self.head.weight.data = self.embed.weight.data.clone()\n"),),
    ),
    _untied(
        name="tie_undeclared_by_copy",
        family="tied_by_copy",
        parent="sdpa_gpt",
        why="copy_ copies the numbers once",
        edits=(
            (
                "self.head.weight = self.wte.weight",
                "self.head.weight.data.copy_(self.wte.weight.data)",
            ),
        ),
    ),
    _untied(
        name="tie_by_deepcopy",
        family="tied_by_copy",
        why="the parameter is copied with the layer it came from",
        edits=(
            (
                _TIE,
                "            import copy\n\n"
                "            self.head.weight = copy.deepcopy(self.embed).weight\n",
            ),
        ),
    ),
    _untied(
        name="tie_by_new_parameter",
        family="tied_by_memory_only",
        why="wrapped in a new Parameter: one memory until .to() or the optimizer's copy",
        edits=((_TIE, "            self.head.weight = nn.Parameter(self.embed.weight.data)\n"),),
    ),
    _untied(
        name="tie_by_data",
        family="tied_by_memory_only",
        parent="sdpa_gpt",
        why="weight.data shares memory, and two parameters with their own gradients",
        edits=(
            (
                "self.head.weight = self.wte.weight",
                "self.head.weight.data = self.wte.weight.data",
            ),
        ),
    ),
    _untied(
        name="tie_undone_by_init",
        family="tied_by_copy",
        why="the init that follows makes new parameters",
        edits=(
            (
                "        self.apply(self.init_weights)\n"
                "        if tie_word_embeddings:\n"
                "            self.head.weight = self.embed.weight\n",
                "        if tie_word_embeddings:\n"
                "            self.head.weight = self.embed.weight\n"
                "        self.apply(self.init_weights)\n",
            ),
            (
                "            nn.init.normal_(module.weight, std=0.05)",
                "            module.weight = nn.Parameter(torch.randn_like(module.weight) * 0.05)",
            ),
        ),
    ),
    _untied(
        name="tie_key_not_read",
        family="tied_by_copy",
        why="the configuration says so and nobody reads the key",
        edits=(("        if tie_word_embeddings:\n" + _TIE, ""),),
    ),
    _untied(
        name="tie_by_view",
        family="tied_by_copy",
        why="the head multiplies with a tensor taken from the embedding once",
        edits=(
            (_TIE, "            self.projection = self.embed.weight.detach()\n"),
            ("return self.head(self.norm(x))", "return self.norm(x) @ self.projection.t()"),
        ),
    ),
    _untied(
        name="encoder_tied_by_clone",
        family="tied_by_copy",
        parent="relative_encoder",
        why="a Parameter is wanted, and a copy of the table is one",
        edits=(
            (
                "self.head.weight = self.embed.weight",
                "self.head.weight = nn.Parameter(self.embed.weight.clone())",
            ),
        ),
    ),
    _untied(
        name="encoder_tied_by_detach",
        family="tied_by_memory_only",
        parent="relative_encoder",
        why="detach() shares the memory, nn.Parameter makes a second parameter of it",
        edits=(
            (
                "self.head.weight = self.embed.weight",
                "self.head.weight = nn.Parameter(self.embed.weight.detach())",
            ),
        ),
    ),
)
