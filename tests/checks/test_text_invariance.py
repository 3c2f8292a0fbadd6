"""Predictions for texts in other letters."""

from __future__ import annotations

import random

import pytest

from pytest_transformer_validate.checks.tier2.text import text_invariance
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.probe.texts import KINDS, TEXTS
from pytest_transformer_validate.subject.subject import Subject
from tests.models import VOCAB, Decoder, Translator


class Letters:
    """Ids of letters, whatever their case where ``lower``."""

    def __init__(self, *, lower: bool = False, most: int = VOCAB) -> None:
        self.lower, self.most = lower, most

    def encode(self, text):
        return [ord(letter) % self.most for letter in (text.lower() if self.lower else text)]


def probe_with(tokenizer, model=None, config=None):
    return Probe(Subject(model or Decoder(), config, tokenizer=tokenizer))


def test_without_a_declared_rate_it_is_information():
    measured = text_invariance(probe_with(Letters()))
    assert measured.pairs == len(TEXTS) * len(KINDS)
    assert measured.limit is None
    assert "information" in measured.notes[0]
    assert set(measured.rates) == set(KINDS)


def test_a_declared_rate_is_judged():
    with pytest.raises(CheckFailed, match="the declared pass rate") as caught:
        text_invariance(probe_with(Letters()), pass_rate=1.0)
    assert caught.value.measurement.value < 1
    assert text_invariance(probe_with(Letters()), pass_rate=0.01).limit.value == 0.01


def test_what_the_tokenizer_overlooks_changes_nothing():
    measured = text_invariance(probe_with(Letters(lower=True)))
    assert measured.rates["lower case"] == measured.rates["upper case"] == 1
    assert measured.moved["lower case"] == 0 < measured.moved["typo"]


@pytest.mark.parametrize("name", ["text_classifier", "bert", "pad_classifier"])
def test_every_task(name):
    healthy = ZOO[name]
    probe = probe_with(Letters(), healthy.build(), healthy.config)
    assert text_invariance(probe).pairs == 48


def test_the_first_word_of_a_translation():
    assert text_invariance(probe_with(Letters(), Translator())).pairs == 48


def test_without_a_tokenizer_it_does_not_apply():
    with pytest.raises(NotApplicable, match="--tb-tokenizer"):
        text_invariance(probe_with(None))


def test_ids_without_a_row_in_the_model_do_not_apply():
    with pytest.raises(NotApplicable, match=r"ids above the vocabulary \(101\)"):
        text_invariance(probe_with(Letters(most=128)))


def test_every_change_is_one():
    draw = random.Random(0)
    assert all(change(text, draw) != text for text in TEXTS for change in KINDS.values())


def test_a_library_that_gives_an_object():
    class Encoding:
        ids = (1, 2, 3)

    class Tokenizer:
        def encode(self, text):
            return Encoding()

    assert text_invariance(probe_with(Tokenizer())).value == 1
