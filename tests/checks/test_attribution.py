"""Integrated gradients: against captum's own layer method, on mistakes, and on healthy traps."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier2.attribution import attribution
from pytest_transformer_validate.errors import CheckFailed, MissingDependency, NotApplicable
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.probe.vectors import Reader
from pytest_transformer_validate.subject.guard import fingerprint
from tests.models import VOCAB, Block, Decoder, Indexed, OneHot, Patches, TimeMajor, probe_of

captum = pytest.importorskip("captum.attr")


def zoo_probe(name):
    healthy = ZOO[name]
    return probe_of(healthy.build(), healthy.config)


@pytest.mark.parametrize("model", [Decoder, Indexed, Patches, TimeMajor])
def test_healthy(model):
    measured = attribution(probe_of(model(), task=None))
    assert measured.value <= measured.limit.value
    assert measured.moved > 0.01


def test_equals_the_layer_method_of_captum():
    model = Decoder().eval()
    found = probe_of(model).attributions.explained((5, 6, 7, 8), -1, 32)
    path = found.path
    assert path.reader.position == -1
    ids = torch.tensor([[5, 6, 7, 8]])
    base = torch.full_like(ids, int(path.baseline.split()[1]))
    layer = captum.LayerIntegratedGradients(lambda x: model(x)[:, -1, path.target], model.tokens)
    expected = layer.attribute(ids, baselines=base, n_steps=32)
    torch.testing.assert_close(found.parts[0], expected, rtol=1e-4, atol=1e-6)
    assert abs(found.missing) < 1e-5


def test_later_tokens_and_tokens_under_a_mask_get_nothing():
    measured = attribution(zoo_probe("llama"))
    assert measured.forbidden == {"later tokens": 0.0, "tokens under a mask": 0.0}
    assert measured.tokens["input_ids"][measured.position] != 0
    assert set(measured.tokens["input_ids"][measured.position + 1 :]) == {0.0}


def test_both_texts_of_a_translation_get_something():
    measured = attribution(zoo_probe("seq2seq"))
    assert any(measured.tokens["input_ids"])
    assert any(measured.tokens["decoder_input_ids"])


def test_patches_of_an_image():
    measured = attribution(zoo_probe("vit"))
    assert [len(row) for row in measured.patches] == [4, 4, 4, 4]
    total = sum(map(sum, measured.patches))
    assert total == pytest.approx(measured.change, rel=1e-3)


class ReadsAhead(Decoder):
    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x, causal=False)
        return self.norm(x)


def test_a_later_token_with_an_attribution_fails():
    with pytest.raises(CheckFailed, match="the logit at position 6 gives token") as caught:
        attribution(probe_of(ReadsAhead()))
    assert caught.value.measurement.forbidden["later tokens"] > 0.001
    assert caught.value.where == "blocks.0.attention"


class DetachedBlock(Block):
    def forward(self, x, causal=True, mask=None):
        x = x.detach() + self.attention(self.norm1(x), causal, mask)
        return x + self.mlp(self.norm2(x))


def test_a_detached_residual_is_found_where_it_is():
    model = Decoder()
    model.blocks[1] = DetachedBlock()
    with pytest.raises(CheckFailed, match="the gradient is not the slope") as caught:
        attribution(probe_of(model))
    assert caught.value.where == "blocks.1"
    assert caught.value.measurement.slopes["wrong"] > 8


class StraightThrough(Decoder):
    def hidden(self, ids):
        x = super().hidden(ids)
        return x + ((x * 4).round() / 4 - x).detach()


def test_a_straight_through_estimator_is_no_mistake():
    with pytest.raises(NotApplicable, match="steps along the path"):
        attribution(probe_of(StraightThrough()))


class Shrunk(Decoder):
    """The gradient of the embedding is made smaller on purpose, as large models do."""

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        x = 0.1 * x + 0.9 * x.detach()
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_a_gradient_that_is_scaled_everywhere_is_no_mistake():
    with pytest.raises(NotApplicable, match=r"the gradient is 0\.1 times the slope"):
        attribution(probe_of(Shrunk()))


def test_a_frozen_backbone_is_no_mistake():
    class Frozen(Decoder):
        def forward(self, input_ids):
            with torch.no_grad():
                hidden = self.hidden(input_ids)
            return self.head(hidden)

    with pytest.raises(NotApplicable, match="no gradient reaches the input"):
        attribution(probe_of(Frozen()))


def test_a_loop_whose_backward_is_cut_short_is_no_mistake():
    class Loop(Decoder):
        """One block again and again; the last cycle alone is differentiated."""

        def hidden(self, ids):
            x = start = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
            for cycle in range(3):
                with torch.set_grad_enabled(cycle == 2 and torch.is_grad_enabled()):
                    x = self.blocks[0](x + start)
            return self.norm(x)

    with pytest.raises(NotApplicable, match=r"blocks\.0.* is called several times"):
        attribution(probe_of(Loop()))


def test_a_text_is_run_twice_to_find_what_else_a_model_is_given():
    assert attribution(zoo_probe("builder_attention")).value < 1e-3


def test_routed_tokens_are_told():
    with pytest.raises(NotApplicable, match="routed among 4 experts, and the choice jumps"):
        attribution(zoo_probe("moe"))


class Copied(Decoder):
    """Computes with what its weights were when it was made."""

    def __init__(self):
        super().__init__()
        self.inner = [Decoder()]

    def forward(self, input_ids):
        return self.inner[0](input_ids)


def test_attributions_that_ignore_the_weights_fail():
    with pytest.raises(CheckFailed, match="must depend on the weights"):
        attribution(probe_of(Copied(), {"vocab_size": VOCAB}))


class Bigram(nn.Module):
    """The vectors that are looked up are the logits."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, input_ids):
        return self.table(input_ids)


def test_a_table_of_logits_is_healthy():
    measured = attribution(probe_of(Bigram()))
    assert measured.value == 0
    assert measured.moved > 0.001


class InPlace(Decoder):
    def hidden(self, ids):
        x = self.tokens(ids)
        x *= 4.0
        for block in self.blocks:
            x = block(x + self.positions(torch.arange(ids.size(1))))
        return self.norm(x)


def test_vectors_may_be_written_to():
    assert attribution(probe_of(InPlace())).value < 1e-3


def test_a_product_with_one_hot_rows_does_not_apply():
    with pytest.raises(NotApplicable, match="no lookup of vectors by the ids"):
        attribution(probe_of(OneHot(), {"vocab_size": VOCAB}))


def test_what_has_no_gradient_does_not_apply():
    class Sampled(Decoder):
        def forward(self, input_ids):
            if torch.is_grad_enabled():
                raise RuntimeError("for inference only")
            return super().forward(input_ids)

    with pytest.raises(NotApplicable, match="no gradient can be taken in eval mode: .*inference"):
        attribution(probe_of(Sampled()))


def test_half_precision_is_judged_in_a_copy():
    assert attribution(probe_of(Decoder().to(torch.bfloat16))).value < 1e-3


def test_no_more_rows_at_once_than_a_model_takes():
    model, seen = Decoder(), set()
    model.tokens.register_forward_pre_hook(lambda _, args: seen.add(len(args[0])))
    attribution(probe_of(model, {"max_batch_size": 3}))
    assert max(seen) <= 3


def test_everything_is_given_back():
    model = Decoder()
    before = fingerprint(model)
    attribution(probe_of(model))
    assert fingerprint(model) == before


def test_without_captum_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingDependency, match=r"captum is not installed.*\[analysis\]"):
        attribution(probe_of(Decoder()))


def test_a_reader_is_the_model():
    probe = probe_of(Decoder())
    path = probe.attributions.path("eval")
    with probe.running("test") as subject:
        whole = subject(path.reader.batch).logits[:, path.reader.position]
        read = path.reader.logits(subject, path.end)
    assert isinstance(path.reader, Reader)
    torch.testing.assert_close(read, whole, rtol=0, atol=0)


def test_no_dependence_on_the_input_does_not_apply():
    class Constant(Decoder):
        def hidden(self, ids):
            return super().hidden(ids) * 0

    with pytest.raises(NotApplicable, match="no logit depends on the input"):
        attribution(probe_of(Constant()))


def test_wrong_backward_is_found_where_it_is():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    class Squared(nn.Module):
        def forward(self, x):
            return Square.apply(x)

    model = Decoder()
    model.blocks[0].mlp[1] = Squared()
    with pytest.raises(CheckFailed) as caught:
        attribution(probe_of(model))
    assert caught.value.where == "blocks.0.mlp.1"


def test_a_second_output_a_text_is_explained_as_one():
    class Sentence(Decoder):
        """The output that comes first is one a text."""

        def forward(self, input_ids):
            hidden = self.hidden(input_ids)
            return self.head(hidden[:, 0])[:, :2], self.head(hidden)

    measured = attribution(probe_of(Sentence(), task="classification"))
    assert measured.position is None


def test_a_translation_that_shifts_its_labels_reads_its_source_in_both_directions():
    class FromLabels(ReadsAhead):
        def forward(self, input_ids, labels):
            return self.head(self.hidden(input_ids))

    measured = attribution(probe_of(FromLabels(), task="seq2seq"))
    assert "later tokens" not in measured.forbidden


class PaddingMoves(Decoder):
    """Positions count tokens that are no padding, and padding is a row of zeros."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(101, 32, padding_idx=1)

    def hidden(self, ids):
        real = (ids != 1).long()
        x = self.tokens(ids) + self.positions(real.cumsum(1) * real + 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_the_baseline_is_no_padding():
    probe = probe_of(PaddingMoves(), {"pad_token_id": 1})
    measured = attribution(probe)
    assert measured.value <= measured.limit.value
    assert measured.baseline != "id 1 everywhere"
    assert 1 not in probe.attributions.path("eval").reader.batch["input_ids"]
