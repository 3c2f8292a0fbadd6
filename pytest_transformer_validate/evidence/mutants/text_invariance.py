"""Tokenizers that keep what the task overlooks."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant
from pytest_transformer_validate.evidence.words import Words

_kept = partial(Mutant, check="text_invariance", family="writing_that_counts", where=())

MUTANTS = (
    _kept(
        name="words_not_lowered",
        parent="alibi",
        why="texts were lowered when the model was trained, and are not when it is used",
        tokenizer=Words(cased=True),
    ),
    _kept(
        name="punctuation_taken_for_tokens",
        parent="trained_gpt",
        why="a splitter that keeps marks, used with a model that has seen none",
        tokenizer=Words(marked=True),
    ),
    _kept(
        name="split_at_every_space",
        parent="pad_classifier",
        why='split(" ") for split(): marks stick to words, and two spaces hold an empty one',
        tokenizer=Words(cased=True, marked=True, spaced=True),
    ),
    _kept(
        name="lowered_behind_the_vocabulary",
        parent="torch_translation",
        why="looked up first and lowered then: what has a capital letter is unknown",
        tokenizer=Words(known=True),
    ),
)
