"""Mistakes that show when a model is trained."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_overfit = partial(Mutant, check="one_batch_overfit")
_curve = partial(Mutant, check="loss_curve")

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
    _curve(
        name="logits_for_a_sharp_choice",
        family="loss_far_from_a_guess",
        parent="alibi",
        where=(),
        why="logits are scaled by the length of the table instead of by its root",
        edits=(
            (
                "        return self.to_logits(self.final_norm(x))",
                "        return self.to_logits(self.final_norm(x)) * self.to_logits.out_features",
            ),
        ),
    ),
    _curve(
        name="annealing_starts_again",
        family="loss_leaps",
        parent="bert",
        where=(),
        why="a temperature that is annealed is set back to its first value again and again",
        edits=(
            (
                "        self.decoder = nn.Linear(hidden_size, vocab_size)\n",
                """        self.decoder = nn.Linear(hidden_size, vocab_size)
        self.step = 0
""",
            ),
            (
                "        return self.decoder(hidden)",
                """        self.step += self.training
        cold = self.training and self.step % 12 == 0
        return self.decoder(hidden) / (0.001 if cold else 1.0)""",
            ),
        ),
    ),
    _curve(
        name="noise_now_and_then",
        family="loss_leaps",
        parent="seq2seq",
        where=(),
        why="adversarial noise every 15 steps, on logits instead of on embeddings",
        edits=(
            (
                "        self.generator = nn.Linear(d_model, vocab_size)\n",
                "        self.generator = nn.Linear(d_model, vocab_size)\n        self.seen = 0\n",
            ),
            (
                "        return self.generator(y)",
                """        self.seen += self.training
        logits = self.generator(y)
        if self.training and self.seen % 15 == 0:
            logits = logits + 50 * torch.randn_like(logits)
        return logits""",
            ),
        ),
    ),
    _overfit(
        name="tanh_on_logits",
        family="outputs_that_cannot_grow",
        parent="llama",
        where=(),
        why="soft capping of logits with a cap of 1",
        edits=(
            (
                "        logits = self.lm_head(self.norm(x))\n",
                "        logits = self.lm_head(self.norm(x)).tanh()\n",
            ),
        ),
    ),
    _overfit(
        name="softmax_before_the_loss",
        family="outputs_that_cannot_grow",
        parent="vit",
        where=(),
        why="probabilities are given where cross entropy asks for logits",
        edits=(
            ("        return self.head(x[:, 0])", "        return self.head(x[:, 0]).softmax(-1)"),
        ),
    ),
    _overfit(
        name="cosine_of_the_classes",
        family="outputs_that_cannot_grow",
        parent="text_classifier",
        where=(),
        why="a cosine classifier without its scale",
        edits=(
            (
                "        return self.classifier(self.pool(self.norm(x), mask))",
                """        pooled = F.normalize(self.pool(self.norm(x), mask), dim=-1)
        return pooled @ F.normalize(self.classifier.weight, dim=-1).T""",
            ),
        ),
    ),
)
