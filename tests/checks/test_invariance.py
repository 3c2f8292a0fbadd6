"""What prefix_consistency and batch_size_invariance say, decide and excuse."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.checks.tier1.invariance import (
    batch_size_invariance,
    prefix_consistency,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of


class ByLength(models.Decoder):
    def hidden(self, ids):
        return super().hidden(ids) * (1 + 1e-3 * ids.size(1))


class ByRows(models.Decoder):
    def hidden(self, ids):
        return super().hidden(ids) / ids.size(0)


class Single(models.Block):
    """One row goes another way."""

    def forward(self, x, causal=True, mask=None):
        y = super().forward(x, causal, mask)
        return y + 1e-3 * y.roll(1, -1) if len(x) == 1 else y


@pytest.mark.parametrize("model", [models.Decoder, models.Lecture])
def test_healthy_models(model):
    for check in (prefix_consistency, batch_size_invariance):
        measured = check(probe_of(model()))
        assert measured.value <= measured.limit.value


def test_rows_of_a_model_that_reads_time_first():
    measured = batch_size_invariance(probe_of(models.TimeMajor(), {"batch_first": False}))
    assert measured.value <= measured.limit.value


def test_a_result_that_depends_on_the_length():
    with pytest.raises(CheckFailed, match="must not depend on how many tokens follow it"):
        prefix_consistency(probe_of(ByLength()))


class LateScale(models.Decoder):
    def hidden(self, ids):
        return super().hidden(ids) * max(1.0, ids.size(1) / 30)


class Steps(models.Decoder):
    """Beyond some length, another factor, the same for all longer texts."""

    def __init__(self, above):
        super().__init__(length=64)
        self.above = above

    def hidden(self, ids):
        return super().hidden(ids) * (1.5 if ids.size(1) > self.above else 1.0)


@pytest.mark.parametrize("above", [None, 13, 24])
def test_a_scale_that_begins_above_short_texts(above):
    with pytest.raises(CheckFailed, match="shorter texts agree"):
        prefix_consistency(probe_of(LateScale() if above is None else Steps(above)))


def test_a_pattern_by_length_is_a_note():
    model = LateScale()
    model.keep_topk = 4
    measured = prefix_consistency(probe_of(model))
    assert any("a pattern by length (.keep_topk)" in note for note in measured.notes)


def test_what_is_not_causal_fails_once():
    class Mean(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            return x + x.mean(1, keepdim=True)

    with pytest.raises(NotApplicable, match="see causality"):
        prefix_consistency(probe_of(Mean()))


def test_a_result_that_depends_on_the_number_of_rows():
    with pytest.raises(CheckFailed, match="must not depend on the size of its batch"):
        batch_size_invariance(probe_of(ByRows()))


def test_a_branch_for_one_row_is_located():
    model = models.Decoder()
    model.blocks[1] = Single()
    with pytest.raises(CheckFailed, match=r"row 0 alone differs by") as caught:
        batch_size_invariance(probe_of(model))
    assert caught.value.where == "blocks.1"


@pytest.mark.parametrize("beyond", [16, 64])
def test_positions_that_turn_otherwise_beyond_a_declared_length_are_a_note(beyond):
    transformers = pytest.importorskip("transformers")
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "rope_theta": 10000.0,
        "original_max_position_embeddings": beyond,
    }
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        **sizes,
        vocab_size=models.VOCAB,
        num_hidden_layers=2,
        max_position_embeddings=64,
        rope_parameters=rope,
    )
    notes = prefix_consistency(probe_of(transformers.LlamaForCausalLM(config), config)).notes
    assert any("as declared beyond 16 tokens" in note for note in notes) is (beyond == 16)
