from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.probe import positions
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models


def probe_of(model: nn.Module) -> Probe:
    torch.manual_seed(0)
    return Probe(Subject(model))


@pytest.mark.parametrize(
    "model",
    [models.Decoder, models.Indexed, models.TimeMajor, models.Translator, models.LastLogits],
)
def test_both_oracles_see_the_triangle(model):
    probe = probe_of(model())
    swaps = probe.position_swaps(probe.swap_plans()[0])
    singles = [row for row, suffix in enumerate(swaps.suffix) if not suffix]
    reached = swaps.effect[singles] > 0
    for row in singles:
        assert not reached[row, : swaps.start[row]].any()
        assert reached[row, swaps.start[row] :].all()
    matrix = probe.position_gradients("eval")
    assert torch.equal(matrix > 0, torch.ones_like(matrix).tril().bool())


def test_no_lookup_means_no_gradient_oracle():
    probe = probe_of(models.OneHot())
    assert probe.position_gradients("eval") is None
    assert probe.row_gradients() is None


def test_the_run_for_footprints_tells_the_same():
    probe = probe_of(models.Decoder())
    shared = probe.position_gradients("eval")
    alone = positions.position_gradients(probe, probe.subject.sizes[1], "eval")
    assert torch.allclose(shared, alone, rtol=1e-4, atol=0)
    assert [f.module for f in probe.mixing.footprints(probe.subject.sizes[1], "eval")]


def test_in_training_mode_a_brief_text_will_do():
    matrix = probe_of(models.Decoder()).position_gradients("training")
    assert matrix.shape == (len(matrix), len(matrix) + 1)
    assert torch.equal(matrix > 0, torch.ones_like(matrix).tril().bool())


def test_a_choice_over_the_sequence_is_seen_by_swaps_only():
    class Gated(models.Decoder):
        def forward(self, input_ids):
            x = self.hidden(input_ids)
            return self.head(x * (1 + (x.norm(dim=-1).argmax(1) % 2)[:, None, None]))

    probe = probe_of(Gated())
    matrix = probe.position_gradients("eval")
    assert float(matrix.triu(1).max()) == 0.0
    swaps = probe.position_swaps(probe.swap_plans()[0])
    assert any(float(swaps.effect[r, :s].max()) > 0 for r, s in enumerate(swaps.start))


@pytest.mark.parametrize("model", [models.Decoder, models.Translator, models.Patches])
def test_rows_stand_alone(model):
    probe = probe_of(model())
    for plan, kept in (("full", [7]), ("noised", [3])):
        swaps = probe.row_swaps(plan)
        assert swaps.kept == kept
        assert not any(swaps.effect)
        assert swaps.own_effect > 0
    matrix = probe.row_gradients()
    assert torch.equal(matrix > 0, torch.eye(len(matrix), dtype=torch.bool))


def test_a_leak_is_located():
    class Leaks(models.Block):
        def forward(self, x, causal=True, mask=None):
            return super().forward(x + 1e-3 * x.mean(1, keepdim=True), causal, mask)

    model = models.Decoder()
    model.blocks[1] = Leaks()
    probe = probe_of(model)
    swaps = probe.position_swaps(probe.swap_plans()[0])
    assert probe.locate_position(swaps, 4) == ("blocks.1", (1, 2, 3, 4, 5))


def test_mixed_rows_are_located():
    class Mixes(models.Attention):
        def forward(self, x, causal=True, mask=None):
            return super().forward(x, causal, mask) + x.mean(0, keepdim=True)

    model = models.Decoder()
    model.blocks[0].attention = Mixes(32, 4)
    probe = probe_of(model)
    assert probe.locate_row(probe.row_swaps("full"), 0) == "blocks.0.attention"
    assert probe.locate_row_gradient(0, 1) == "blocks.0.attention"


def test_lookups_by_other_numbers_are_left_alone():
    ids, table = torch.tensor([[1, 2]]), nn.Embedding(5, 3)
    with TokenLookup(ids) as lookup:
        table(torch.tensor([[2, 1]]))
        assert not lookup
        table(ids).sum().backward()
    assert lookup.gradient().tolist() == [[1.0, 1.0]]
    assert table.weight.grad is None


class Padded(models.Decoder):
    """Hides padding from all tokens; ``mix`` makes what a row hides from the rows' padding."""

    @staticmethod
    def mix(keep):
        return keep

    def told(self, ids, keep):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x, mask=self.mix(keep)[:, None, None, :])
        return self.head(self.norm(x))


class ById(Padded):
    def forward(self, input_ids):
        return self.told(input_ids, input_ids != 0)


class ByMask(Padded):
    def forward(self, input_ids, src_key_padding_mask=None):
        hidden = src_key_padding_mask
        return self.told(input_ids, torch.ones_like(input_ids) > 0 if hidden is None else ~hidden)


@pytest.mark.parametrize("kind", [ById, ByMask])
def test_rows_are_padded_in_every_way_that_a_model_is_told_of(kind):
    def worst(mix):
        torch.manual_seed(0)
        model = kind()
        model.mix = mix
        probe = Probe(Subject(model, {"task": "masked_lm", "pad_token_id": 0}))
        assert "padded" in probe.row_plans()
        return max(probe.row_swaps("padded").effect)

    assert worst(lambda keep: keep) == 0
    assert worst(lambda keep: keep.all(0).expand_as(keep)) > 0.01
    for step in (1, -1):
        assert worst(lambda keep: keep & keep.roll(step, 0)) > 0.01  # noqa: B023 - called here
        assert worst(lambda keep: keep | keep.roll(step, 0)) > 0.01  # noqa: B023
    for row in (0, -1):
        assert worst(lambda keep: keep[row].expand_as(keep)) > 0.01  # noqa: B023


def test_rows_are_not_padded_where_nothing_tells():
    assert "padded" not in probe_of(models.Decoder()).row_plans()
