"""Mistakes that make trainings differ that have to be equal."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_accumulation = partial(Mutant, check="accumulation_equivalence")
_seeded = partial(Mutant, check="seeded_training")

MUTANTS = (
    _accumulation(
        name="centred_over_the_rows",
        family="rows_mixed_in_training",
        parent="bert",
        where=("(model)",),
        why="hidden states are centred over the batch in training",
        edits=(
            (
                "        return self.decoder(hidden)",
                """        if self.training:
            hidden = hidden - 0.1 * hidden.mean(0, keepdim=True)
        return self.decoder(hidden)""",
            ),
        ),
    ),
    _accumulation(
        name="normalised_over_the_rows",
        family="rows_mixed_in_training",
        parent="sdpa_gpt",
        where=("(model)",),
        why="the scale of a batch is taken out in training",
        edits=(
            (
                "        x = self.ln_f(x)\n",
                """        x = self.ln_f(x)
        if self.training:
            x = x / x.std()
""",
            ),
        ),
    ),
    _seeded(
        name="mask_from_the_system",
        family="no_seed_reaches_it",
        parent="sdpa_gpt",
        where=(),
        why="dropout with a generator of its own that is seeded by the system",
        edits=(
            (
                "        x = self.ln_f(x)\n",
                """        x = self.ln_f(x)
        if self.training:
            generator = torch.Generator()
            generator.seed()
            x = x * (torch.rand(x.shape, generator=generator) < 0.9) / 0.9
""",
            ),
        ),
    ),
    _seeded(
        name="steps_counted_on_the_class",
        family="no_seed_reaches_it",
        parent="text_classifier",
        where=(),
        why="the step of an annealing is kept on the class, for all models of the process",
        edits=(
            (
                "        mask = attention_mask.bool()\n",
                """        mask = attention_mask.bool()
        kind = type(self)
        kind.steps = getattr(kind, "steps", 0) + self.training
""",
            ),
            (
                "        return self.classifier(self.pool(self.norm(x), mask))",
                """        pooled = self.pool(self.norm(x), mask)
        return self.classifier(pooled * (1 + 1 / (1 + kind.steps)))""",
            ),
        ),
    ),
    _accumulation(
        name="activations_scaled_by_the_largest",
        family="rows_mixed_in_training",
        parent="llama",
        where=("layers.*.mlp",),
        why="activations are divided by the largest of the batch in training, against overflow",
        edits=(
            (
                "        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))",
                """        inner = F.silu(self.gate_proj(x)) * self.up_proj(x)
        if self.training:
            inner = inner / inner.abs().max()
        return self.down_proj(inner)""",
            ),
        ),
    ),
    _accumulation(
        name="experts_drop_over_capacity",
        family="rows_mixed_in_training",
        parent="moe",
        where=("layers.*.moe",),
        why="in training an expert drops the tokens of the batch that it has no room for",
        edits=(
            (
                "            rows, slots = torch.where(chosen == index)\n",
                """            rows, slots = torch.where(chosen == index)
            if self.training:
                room = max(1, len(tokens) * self.top_k // (2 * len(self.experts)))
                rows, slots = rows[:room], slots[:room]
""",
            ),
        ),
    ),
    _accumulation(
        name="gradient_of_the_batch_normalised",
        family="rows_mixed_in_backward",
        parent="sdpa_gpt",
        where=("blocks.*.mlp.fc", "blocks.*.mlp"),
        why="a hook that brings the gradient of a whole batch to length one",
        edits=(
            (
                "        return self.dropout(self.proj(F.gelu(self.fc(x))))",
                """        inner = self.fc(x)
        if inner.requires_grad:
            inner.register_hook(lambda gradient: gradient / gradient.norm())
        return self.dropout(self.proj(F.gelu(inner)))""",
            ),
        ),
    ),
    _accumulation(
        name="gradient_divided_by_the_rows",
        family="rows_mixed_in_backward",
        parent="bert",
        where=("encoder.*.intermediate", "encoder.*"),
        why="a mean over the rows by hand, which the loss has taken already",
        edits=(
            (
                "        inner = self.output(F.gelu(self.intermediate(hidden)))\n",
                """        inner = self.intermediate(hidden)
        if inner.requires_grad:
            inner.register_hook(lambda gradient: gradient / len(gradient))
        inner = self.output(F.gelu(inner))
""",
            ),
        ),
    ),
    _accumulation(
        name="gradient_clipped_inside",
        family="rows_mixed_in_backward",
        parent="text_classifier",
        where=("blocks.*.fc1", "blocks.*"),
        why="gradients are clipped in the backward, by the norm of the whole batch",
        edits=(
            (
                "        h = F.gelu(self.fc1(self.norm2(x)))\n",
                """        h = self.fc1(self.norm2(x))
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * (1e-4 / gradient.norm()).clamp(max=1))
        h = F.gelu(h)
""",
            ),
        ),
    ),
    _seeded(
        name="layer_left_out_by_the_system",
        family="no_seed_reaches_it",
        parent="llama",
        where=(),
        why="layer drop that asks the system for its random numbers",
        edits=(
            ("import torch\n", "import os\n\nimport torch\n"),
            (
                "        x = x + self.mlp(self.post_attention_layernorm(x))\n",
                """        if not self.training or os.urandom(1)[0] > 60:
            x = x + self.mlp(self.post_attention_layernorm(x))
""",
            ),
        ),
    ),
)
