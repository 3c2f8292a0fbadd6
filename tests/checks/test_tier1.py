"""What each check says, decides and excuses; that it catches and spares is in tests/evidence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of

CHECKS = {check.name: check.function for check in all_checks()}


class LooksAhead(models.Decoder):
    """The causal mask is one too wide in every block."""

    def hidden(self, ids):
        t = ids.size(1)
        mask = torch.ones(t, t, dtype=torch.bool).tril(1)
        x = self.tokens(ids) + self.positions(torch.arange(t))
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


def test_causality_says_rule_numbers_place_cause_and_way_out():
    with pytest.raises(CheckFailed) as caught:
        CHECKS["causality"](probe_of(LooksAhead()))
    lines = caught.value.message.splitlines()
    assert lines[0] == "logits of a causal LM must not change when a later token changes"
    assert "= 16 u) when token" in lines[1]
    assert lines[2] == "first module to differ: blocks.0.attention"
    assert lines[3].startswith("likely: the mask is shifted by one (diagonal=2 instead of 1)")
    assert "declare it: --tb-task=masked_lm" in lines[-1]
    assert caught.value.where == "blocks.0.attention"
    assert caught.value.measurement.value > 100 * caught.value.measurement.limit.value


def test_a_statistic_over_the_sequence_is_named():
    class Mean(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            return x + 1e-3 * x.mean(1, keepdim=True)

    with pytest.raises(CheckFailed, match="a statistic over the whole sequence"):
        CHECKS["causality"](probe_of(Mean()))


def test_a_leak_behind_a_zero_gate_is_found():
    class Gated(LooksAhead):
        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks:
                nn.init.zeros_(block.attention.out.weight)
                nn.init.zeros_(block.attention.out.bias)

    with pytest.raises(CheckFailed):
        CHECKS["causality"](probe_of(Gated()))


def test_a_mask_that_is_short_is_found_on_a_long_text():
    class Short(models.Decoder):
        def hidden(self, ids):
            t = ids.size(1)
            mask = torch.ones(t, t, dtype=torch.bool).tril()
            mask[:, :] |= (torch.arange(t) > 30)[:, None]
            x = self.tokens(ids) + self.positions(torch.arange(t))
            return self.norm(self.blocks[0](x, mask=mask))

    with pytest.raises(CheckFailed, match="right for short texts only"):
        CHECKS["causality"](probe_of(Short()))


def test_mixed_rows_are_no_leak_over_time():
    class Mixes(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            return x + x.mean((0, 1), keepdim=True) * (len(ids) > 1)

    measured = CHECKS["causality"](probe_of(Mixes()))
    assert any("see batch_independence" in note for note in measured.notes)


@pytest.mark.parametrize("name", ["causality", "gradient_flow"])
def test_a_model_for_one_token_has_nothing_to_look_at(name):
    with pytest.raises(NotApplicable, match="the longest text is one token"):
        CHECKS[name](probe_of(models.Decoder(length=1), {"max_seq_len": 1}))


def test_batch_independence_names_the_row_and_the_module():
    class Exchanged(models.Attention):
        def forward(self, x, causal=True, mask=None):
            b, t, d = x.shape
            y = super().forward(x, causal, mask)
            return y.transpose(0, 1).reshape(b, t, d)

    model = models.Decoder()
    model.blocks[1].attention = Exchanged(32, 4)
    with pytest.raises(CheckFailed, match="a row's logits must not depend") as caught:
        CHECKS["batch_independence"](probe_of(model))
    assert caught.value.where == "blocks.1.attention"
    assert "exchanges the batch axis" in caught.value.message


def test_ids_that_may_stand_the_other_way_are_to_be_declared():
    class Columns(models.Decoder):
        def hidden(self, ids):
            steps = torch.arange(ids.size(0))[:, None].expand_as(ids)
            x = (self.tokens(ids) + self.positions(steps)).transpose(0, 1)
            for block in self.blocks:
                x = block(x)
            return self.norm(x.transpose(0, 1))

    with pytest.raises(CheckFailed, match='declare it: "batch_first": false in config.json'):
        CHECKS["batch_independence"](probe_of(Columns()))
    assert CHECKS["batch_independence"](probe_of(Columns(), {"batch_first": False})).value == 0


def test_what_cannot_be_differentiated_is_decided_by_swaps():
    class InPlace(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            with torch.no_grad():
                return x.clone()

        def forward(self, input_ids):
            return self.hidden(input_ids) @ self.head.weight.detach().t()

    measured = CHECKS["batch_independence"](probe_of(InPlace()))
    assert any("decided by replacing rows" in note for note in measured.notes)


class Detached(models.Decoder):
    def forward(self, input_ids):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.size(1)))
        for block in self.blocks:
            x = block(x.detach())
        return self.head(self.norm(x))


def test_gradient_flow_names_the_parameters_and_the_module():
    with pytest.raises(CheckFailed, match="parameters get none at all: blocks.0") as caught:
        CHECKS["gradient_flow"](probe_of(Detached()))
    assert "likely: detach()" in caught.value.message
    assert caught.value.measurement.value == len(caught.value.measurement.missing)


def test_a_module_that_runs_nowhere_although_its_like_do():
    class Skips(models.Decoder):
        def hidden(self, ids):
            x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
            return self.norm(self.blocks[0](x))

    with pytest.raises(CheckFailed, match="a layer that the forward skips") as caught:
        CHECKS["gradient_flow"](probe_of(Skips()))
    assert caught.value.where == "blocks.1"


REASONS = {
    "pooler": "only a result that nothing reads here depends on it",
    "segments": "it was given nothing but its padding row",
    "optional": "its module did not run for these inputs",
}


class Excused(models.Decoder):
    """Every structural reason for a missing gradient that a small decoder can have."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(32, 32)
        self.segments = nn.Embedding(2, 32, padding_idx=0)
        self.optional = nn.Linear(32, 32)

    def forward(self, input_ids, extra=None):
        x = self.tokens(input_ids) + self.segments(torch.zeros_like(input_ids))
        x = self.blocks[1](self.blocks[0](x + self.positions(torch.arange(x.size(1)))))
        if extra is not None:
            x = x + self.optional(extra)
        x = self.norm(x)
        return {"logits": self.head(x), "pooled": self.pooler(x[:, 0])}


@pytest.fixture(scope="module")
def excused():
    torch.manual_seed(0)
    return CHECKS["gradient_flow"](probe_of(Excused()))


@pytest.mark.parametrize("name", REASONS)
def test_structural_reasons_are_recorded(excused, name):
    found = {reason for n, reason in excused.explained.items() if n.startswith(name)}
    assert found == {REASONS[name]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_constant_that_a_norm_takes_out_is_rounding(dtype):
    class Shifted(models.Decoder):
        """The bias of ``shift`` moves all features of a token alike, in front of a LayerNorm."""

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Linear(32, 1)

        def hidden(self, ids):
            x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
            return self.norm(self.blocks[1](self.blocks[0](x)) + self.shift(x) * 1e-3)

    measured = CHECKS["gradient_flow"](probe_of(Shifted().to(dtype)))
    reason = "a normalisation or a softmax takes it out again: the logits do not move with it"
    assert {"shift.weight": reason, "shift.bias": reason}.items() <= measured.explained.items()


LOST = {
    "a bias that is never added": ("blocks.0.mlp.0", models.Unbiased(32, 64), "bias"),
    "a scale that is detached": ("blocks.0.norm1", models.DetachedNorm(32), "weight"),
}


@pytest.mark.parametrize("what", LOST)
def test_a_lost_vector_has_no_excuse(what):
    place, module, lost = LOST[what]
    model = models.Decoder()
    model.set_submodule(place, module)
    with pytest.raises(CheckFailed, match=f"1 of .* parameters get none at all: {place}.{lost}"):
        CHECKS["gradient_flow"](probe_of(model))


def test_frozen_parameters_are_left_alone():
    model = models.Decoder()
    model.blocks.requires_grad_(False)
    measured = CHECKS["gradient_flow"](probe_of(model))
    assert measured.frozen == sum(1 for _ in model.blocks.parameters())


def test_not_a_number_is_located():
    class Roots(models.Block):
        def forward(self, x, causal=True, mask=None):
            return super().forward(x, causal, mask) + (x - x.amax() - 1).sqrt()

    model = models.Decoder()
    model.blocks[1] = Roots()
    with pytest.raises(CheckFailed, match="logits must be finite") as caught:
        CHECKS["output_stability"](probe_of(model))
    assert caught.value.where == "blocks.1"


def test_a_head_that_starts_at_zero_is_fine():
    model = models.Decoder()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    measured = CHECKS["output_stability"](probe_of(model))
    assert measured.between_inputs == 0.0
    assert any("until parameters that start at zero move" in note for note in measured.notes)


def test_masked_outputs_may_be_minus_infinity():
    class Masked(models.Decoder):
        def forward(self, input_ids):
            return super().forward(input_ids).index_fill(-1, torch.tensor([0, 1]), float("-inf"))

    assert CHECKS["output_stability"](probe_of(Masked())).bad == ()


class Fused(nn.Module):
    """torch's encoder as a decoder, which runs fused in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.tokens = nn.Embedding(models.VOCAB, 32)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, models.VOCAB)

    def forward(self, input_ids, attention_mask):
        later = torch.ones(input_ids.size(1), input_ids.size(1), dtype=torch.bool).triu(1)
        pads = attention_mask == 0
        return self.head(self.blocks(self.tokens(input_ids), later, pads))


class Unfused(Fused):
    """The same with a softmax of its own over rows in which all is masked."""

    def forward(self, input_ids, attention_mask):
        seen = attention_mask[:, None, :].float().expand(-1, input_ids.size(1), -1).tril()
        weights = seen.log().softmax(-1)
        return super().forward(input_ids, attention_mask) + self.head(
            weights @ self.tokens.weight[: input_ids.size(1)]
        )


def test_rows_without_a_token_are_no_defect_where_torchs_fused_layers_alone_lose_them():
    measured = CHECKS["output_stability"](probe_of(Fused()))
    assert measured.bad == ()
    assert "torch's fused layers give NaN for left padding" in measured.notes[0]
    with pytest.raises(CheckFailed, match="NaN or infinity for: left padding"):
        CHECKS["output_stability"](probe_of(Unfused()))


def test_huge_logits_are_located():
    model = models.Decoder()
    with torch.no_grad():
        model.norm.weight.mul_(1e6)
    with pytest.raises(CheckFailed, match="a size that a softmax can use") as caught:
        CHECKS["output_stability"](probe_of(model))
    assert caught.value.where == "norm"


@pytest.mark.parametrize(
    "case", ["single_token", "coprime", "typical", "full_length", "full_batch"]
)
def test_shapes_that_hold(case):
    measured = CHECKS["shape_robustness"](probe_of(models.Decoder()), case)
    assert measured.logits == measured.expected == (measured.rows, measured.length, models.VOCAB)


def test_full_length_is_the_declared_maximum():
    measured = CHECKS["shape_robustness"](probe_of(models.Decoder()), "full_length")
    assert measured.length == 48


def test_a_squeezed_axis_is_a_wrong_shape():
    class Squeezed(models.Decoder):
        def forward(self, input_ids):
            return super().forward(input_ids).squeeze()

    with pytest.raises(CheckFailed, match=r"squeeze\(\) without a dimension"):
        CHECKS["shape_robustness"](probe_of(Squeezed()), "single_token")


def test_a_model_without_parameters_fails_to_load():
    class Empty(nn.Module):
        def forward(self, input_ids):
            return torch.nn.functional.one_hot(input_ids, 9).float()

    with pytest.raises(CheckFailed, match="this one has none"):
        CHECKS["load"](probe_of(Empty()))


def test_every_check_says_its_property_in_a_sentence():
    for check in all_checks():
        assert check.summary.endswith((".", "logits.")), check.name


class Gate(models.Decoder):
    """A summary of the text, or of the batch, behind a gate that starts at zero."""

    axis = 1

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def hidden(self, ids):
        x = super().hidden(ids)
        return x + self.gate.tanh() * x.mean(self.axis, keepdim=True)


class BatchGate(Gate):
    axis = 0


class Packed(models.Decoder):
    """The mask that separates documents replaces the causal one."""

    end = 7

    def hidden(self, ids):
        t = ids.size(1)
        mask = torch.ones(t, t, dtype=torch.bool).tril().expand(len(ids), 1, t, t)
        document = (ids == self.end).cumsum(1)
        apart = document[:, None, :, None] == document[:, None, None, :]
        mask = torch.where((ids == self.end).any(1)[:, None, None, None], apart, mask)
        x = self.tokens(ids) + self.positions(torch.arange(t))
        return self.norm(self.blocks[0](x, mask=mask))


class EvalOnly(models.Decoder):
    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        return self.norm(self.blocks[0](x, causal=not self.training))


LEAKS = {
    "behind a gate": (Gate, "all parameters moved at random"),
    "in packed documents": (Packed, "separates texts or hides padding"),
    "in training mode": (EvalOnly, "applied in eval mode only"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_causality_looks_where_people_do_not(leak):
    model, words = LEAKS[leak]
    with pytest.raises(CheckFailed, match=words):
        CHECKS["causality"](probe_of(model()))


def test_documents_that_are_causal_too_are_fine():
    class Both(Packed):
        def hidden(self, ids):
            t = ids.size(1)
            document = (ids == self.end).cumsum(1)
            apart = document[:, None, :, None] == document[:, None, None, :]
            mask = apart & torch.ones(t, t, dtype=torch.bool).tril()
            x = self.tokens(ids) + self.positions(torch.arange(t))
            return self.norm(self.blocks[0](x, mask=mask))

    assert CHECKS["causality"](probe_of(Both())).value == 0.0


def numbered(model):
    """Rows are told apart by their number in the batch."""
    hidden = model.hidden

    def by_row(ids):
        return hidden(ids) + torch.arange(len(ids))[:, None, None]

    model.hidden = by_row
    return model


def crowded(model):
    """From eight rows on, a row sees its neighbour."""
    hidden = model.hidden

    def with_neighbour(ids):
        x = hidden(ids)
        return x + x.roll(1, 0) * (len(ids) >= 8)

    model.hidden = with_neighbour
    return model


MIXED = {
    "behind a gate": (BatchGate, "all parameters moved at random"),
    "by the number of the row": (lambda: numbered(models.Decoder()), "by the number of the row"),
    "in a full batch": (lambda: crowded(models.Decoder()), "of 8 moved by"),
}


@pytest.mark.parametrize("how", MIXED)
def test_batch_independence_looks_where_people_do_not(how):
    model, words = MIXED[how]
    with pytest.raises(CheckFailed, match=words):
        CHECKS["batch_independence"](probe_of(model()))


def test_what_is_drawn_in_eval_mode_is_not_called_a_leak():
    class Draws(models.Decoder):
        def hidden(self, ids):
            return nn.functional.dropout(super().hidden(ids), 0.1)

    with pytest.raises(Blocked, match="the same batch twice"):
        CHECKS["batch_independence"](probe_of(Draws()))


def test_layers_in_a_plain_list_are_counted():
    model = models.Decoder()
    model.blocks = None
    model.__dict__["blocks"] = [models.Block() for _ in range(2)]
    with pytest.raises(CheckFailed, match="are not in model.parameters"):
        CHECKS["gradient_flow"](probe_of(model))


def test_a_part_of_a_fused_projection_without_gradient():
    class Frozen(models.Attention):
        def forward(self, x, causal=True, mask=None):
            weight, bias = self.qkv.weight, self.qkv.bias
            queries = nn.functional.linear(x, weight[:32].detach(), bias[:32].detach())
            rest = nn.functional.linear(x, weight[32:], bias[32:])
            self.qkv_out = torch.cat([queries, rest], -1)
            b, t, d = x.shape
            q, k, v = (
                s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv_out.chunk(3, -1)
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).reshape(b, t, d))

    model = models.Decoder()
    model.blocks[0].attention = Frozen(32, 4)
    with pytest.raises(CheckFailed, match="outputs 0 to 31 of 96 of blocks.0.attention.qkv") as e:
        CHECKS["gradient_flow"](probe_of(model))
    assert e.value.where == "blocks.0.attention"


def test_a_length_that_gives_nan_is_a_wrong_shape():
    class Spread(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            spread = (x - x.mean(1, keepdim=True)).square().sum(1, keepdim=True)
            return x / (spread / (x.size(1) - 1))

    with pytest.raises(CheckFailed, match="1 x 1 ids gave NaN"):
        CHECKS["shape_robustness"](probe_of(Spread()), "single_token")


class PaddingAsksNothing(models.Decoder):
    """Padding is hidden as what asks, not as what is looked at: its softmax is over nothing, and
    sees all alike. Where it ``replaces`` the causal mask, the others see later tokens, too."""

    replaces = False

    def hidden(self, ids):
        asks, t = (ids != 0)[:, None, :, None], ids.size(1)
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        mask = asks.expand(-1, 1, t, t) if self.replaces and not asks.all() else asks & causal
        bias = torch.zeros(mask.shape, dtype=self.head.weight.dtype).masked_fill(~mask, -1e4)
        x = self.tokens(ids) + self.positions(torch.arange(t))
        for block in self.blocks:
            x = block(x, mask=bias)
        return self.norm(x)


def test_padding_that_asks_stands_behind_the_text():
    config = {"pad_token_id": 0}
    assert CHECKS["causality"](probe_of(PaddingAsksNothing(), config)).value == 0.0
    model = PaddingAsksNothing()
    model.replaces = True
    with pytest.raises(CheckFailed, match="hides padding replaces the causal one"):
        CHECKS["causality"](probe_of(model, config))


def test_a_length_that_nobody_declared_is_asked_for():
    class Bounded(models.Decoder):
        def hidden(self, ids):
            assert ids.size(1) <= 40
            x = self.tokens(ids)
            return self.norm(self.blocks[0](x))

    with pytest.raises(CheckFailed, match='declare it: "max_seq_len"'):
        CHECKS["shape_robustness"](probe_of(Bounded()), "full_length")


def test_the_rows_of_a_probe_are_never_split():
    class Wide(models.Decoder):
        """Axes of 5 and 7 push the probe's batch to 13 rows; from nine on they mix."""

        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Parameter(torch.zeros(5, 7))

        def hidden(self, ids):
            x = super().hidden(ids) + self.side.sum()
            return x + x.roll(1, 0) * (len(ids) > 8)

    probe = probe_of(Wide())
    assert probe.subject.sizes[0] > probe.subject.full_batch
    assert max(probe.row_swaps("every").effect) > 0
    with pytest.raises(CheckFailed, match="a row's logits must not depend"):
        CHECKS["batch_independence"](probe)
