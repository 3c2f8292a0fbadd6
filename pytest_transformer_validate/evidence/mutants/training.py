"""Mistakes that show when a model is trained."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_overfit = partial(Mutant, check="one_batch_overfit")
_curve = partial(Mutant, check="loss_curve")
_accumulation = partial(Mutant, check="accumulation_equivalence")
_seeded = partial(Mutant, check="seeded_training")

MUTANTS = (
    _overfit(
        name="gradient_reversed",
        family="learns_the_wrong_way",
        parent="sdpa_gpt",
        where=(),
        why="gradient reversal left from adversarial training",
        edits=(
            (
                """        return {"logits": self.head(x)}""",
                """        logits = self.head(x)
        if logits.requires_grad:
            logits.register_hook(torch.neg)
        return {"logits": logits}""",
            ),
        ),
    ),
    _overfit(
        name="noise_as_regularisation",
        family="learns_the_wrong_way",
        parent="bert",
        where=(),
        why="noise on hidden states in training, far larger than they are",
        edits=(
            (
                "        hidden = self.embeddings(input_ids, token_type_ids)\n",
                """        hidden = self.embeddings(input_ids, token_type_ids)
        if self.training:
            hidden = hidden + 10 * torch.randn_like(hidden)
""",
            ),
        ),
    ),
    _overfit(
        name="tokens_dropped_too_often",
        family="learns_the_wrong_way",
        parent="text_classifier",
        where=(),
        why="word dropout that keeps what it should drop",
        edits=(
            (
                "        mask = attention_mask.bool()\n",
                """        mask = attention_mask.bool()
        if self.training:
            input_ids = input_ids * (torch.rand(input_ids.shape) < 0.1)
""",
            ),
        ),
    ),
    _curve(
        name="temperature_for_sampling",
        family="loss_far_from_a_guess",
        parent="llama",
        where=(),
        why="the temperature that text is sampled with is part of the forward",
        edits=(
            (
                "        logits = self.lm_head(self.norm(x))\n",
                "        logits = self.lm_head(self.norm(x)) / 0.02\n",
            ),
        ),
    ),
    _curve(
        name="scale_by_width_twice",
        family="loss_far_from_a_guess",
        parent="vit",
        where=(),
        why="logits multiplied by the width to make up for a small initialisation",
        edits=(("        return self.head(x[:, 0])", "        return self.head(x[:, 0]) * 48"),),
    ),
    _curve(
        name="restart_inside_the_model",
        family="loss_leaps",
        parent="sdpa_gpt",
        where=(),
        why="a schedule that the model keeps for itself starts anew every 16 steps",
        edits=(
            (
                "        self.head.weight = self.wte.weight\n",
                "        self.head.weight = self.wte.weight\n        self.calls = 0\n",
            ),
            (
                """        return {"logits": self.head(x)}""",
                """        self.calls += self.training
        scale = 1000.0 if self.training and self.calls % 16 == 0 else 1.0
        return {"logits": self.head(x) * scale}""",
            ),
        ),
    ),
    _accumulation(
        name="centred_over_the_rows",
        family="rows_mixed_in_training",
        parent="bert",
        where=(),
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
        where=(),
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
)
