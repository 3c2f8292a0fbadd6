"""Mistakes that leave nothing of a training where the model is used."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_tuned = partial(Mutant, check="fine_tuning", family="used_in_another_way_than_trained", where=())

MUTANTS = (
    _tuned(
        name="sampling_temperature_in_evaluation",
        parent="llama",
        why="the temperature that text is sampled with is applied wherever it is not trained",
        edits=(
            (
                "        logits = self.lm_head(self.norm(x))\n",
                """        logits = self.lm_head(self.norm(x))
        if not self.training:
            logits = logits / 0.02
""",
            ),
        ),
    ),
    _tuned(
        name="classes_in_another_order",
        parent="text_classifier",
        why="in evaluation classes are numbered from the other end, as an exported list has them",
        edits=(
            (
                "        return self.classifier(self.pool(self.norm(x), mask))",
                """        scores = self.classifier(self.pool(self.norm(x), mask))
        return scores if self.training else scores.flip(-1)""",
            ),
        ),
    ),
    _tuned(
        name="multiplier_in_evaluation_alone",
        parent="sdpa_gpt",
        why="the multiplier of the logits is not applied in training",
        edits=(
            (
                """        return {"logits": self.head(x)}""",
                """        logits = self.head(x)
        return {"logits": logits if self.training else logits * x.size(-1)}""",
            ),
        ),
    ),
    _tuned(
        name="ranks_by_what_is_unlikely",
        parent="seq2seq",
        why="in evaluation the negative logarithm of the probability is given, to rank answers",
        edits=(
            (
                "        return self.generator(y)",
                """        logits = self.generator(y)
        return logits if self.training else -logits.log_softmax(-1)""",
            ),
        ),
    ),
)
