"""What context_use, bidirectionality and encoder_use say, decide and excuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.context import bidirectionality, context_use
from pytest_transformer_validate.checks.tier1.encoder_use import encoder_use
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.context import causal_pattern, cliff, full_pattern
from tests import models
from tests.models import probe_of

ENCODER = {"task": "masked_lm", "vocab_size": models.VOCAB}


class Masked(models.Decoder):
    """Each block is given the mask that ``mask(index, T)`` makes."""

    def mask(self, index: int, t: int) -> torch.Tensor:
        return torch.ones(t, t, dtype=torch.bool).tril()

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for index, block in enumerate(self.blocks):
            x = block(x, mask=self.mask(index, ids.size(1)))
        return self.norm(x)


class Alone(Masked):
    def mask(self, index, t):
        return torch.eye(t, dtype=torch.bool)


class LastAlone(Masked):
    def mask(self, index, t):
        causal = super().mask(index, t)
        return causal & torch.eye(t, dtype=torch.bool) if index else causal


class Window(Masked):
    def mask(self, index, t):
        return super().mask(index, t).triu(-3)


class Holes(Masked):
    def mask(self, index, t):
        steps = torch.arange(t)
        return super().mask(index, t) & ((steps % 2 == 0) | torch.eye(t, dtype=torch.bool))


class Both(Masked):
    def mask(self, index, t):
        return torch.ones(t, t, dtype=torch.bool)


class OneCausal(Both):
    def mask(self, index, t):
        return super().mask(index, t).tril() if index else super().mask(index, t)


def test_the_whole_past_is_seen():
    measured = context_use(probe_of(models.Decoder()))
    assert measured.unseen == 0
    assert measured.reach == measured.length - 1
    assert dict(measured.module_reach)["blocks.0.attention"] == measured.length - 1
    assert measured.long_reach == measured.long_length - 2


def test_outputs_that_see_only_themselves():
    with pytest.raises(CheckFailed, match="no output depends on any token but its own") as caught:
        context_use(probe_of(Alone()))
    assert caught.value.where == "blocks.0.attention"
    assert "likely: the mask leaves only the diagonal" in caught.value.message


def test_a_layer_is_compared_with_its_like():
    with pytest.raises(CheckFailed, match="sees no position but its own") as caught:
        context_use(probe_of(LastAlone()))
    assert caught.value.where == "blocks.1.attention"


def test_holes_name_the_position():
    with pytest.raises(CheckFailed, match="does not depend on token") as caught:
        context_use(probe_of(Holes()))
    assert caught.value.where == "blocks.0.attention"


class Skipping(Masked):
    """Which tokens others may look at depends on the text: a router's choice."""

    def forward(self, input_ids):
        self.chosen = input_ids % 3 > 0
        return super().forward(input_ids)

    def mask(self, index, t):
        own = torch.eye(t, dtype=torch.bool)
        return super().mask(index, t) & (self.chosen[0] | own)


def test_tokens_that_a_router_skips_are_seen_in_another_text():
    measured = context_use(probe_of(Skipping()))
    assert measured.unseen == 0
    assert "which tokens are seen depends on the text" in measured.notes


def test_a_tensor_in_an_attribute_tells_of_no_limit():
    model = Holes()
    model.table = torch.ones(4)
    with pytest.raises(CheckFailed):
        context_use(probe_of(model))


def test_a_window_is_reported():
    measured = context_use(probe_of(Window()))
    assert measured.reach == 6
    assert any("sees 6 tokens back" in note for note in measured.notes)


class Cut(Masked):
    def mask(self, index, t):
        return super().mask(index, t).triu(-15)


class LastCut(Masked):
    def mask(self, index, t):
        return super().mask(index, t).triu(-15) if index else super().mask(index, t)


class Divided(models.Attention):
    """A softmax written out, which no operation shows."""

    def forward(self, x, causal=True, mask=None):
        b, t, d = x.shape
        q, k, v = (s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        weights = (q @ k.mT).exp() * torch.ones(t, t).tril().triu(-9)
        y = weights / weights.sum(-1, keepdim=True) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, d))


def test_a_short_context_of_which_nothing_tells():
    with pytest.raises(CheckFailed, match="looks 15 tokens back in a text of") as caught:
        context_use(probe_of(Cut()))
    assert caught.value.where == "blocks.0.attention"
    assert '"sliding_window"' in caught.value.message
    assert context_use(probe_of(Cut(), {"sliding_window": 16})).window == 16


def test_a_short_context_of_one_layer():
    with pytest.raises(CheckFailed, match="looks 15 tokens back") as caught:
        context_use(probe_of(LastCut()))
    assert caught.value.where == "blocks.1.attention"


def test_a_short_context_seen_by_the_last_output():
    model = models.Decoder()
    for block in model.blocks:
        block.attention = Divided(32, 4)
    probe = probe_of(model)
    probe.position_swaps(next(p for p in probe.swap_plans() if p.name == "long"))
    with pytest.raises(CheckFailed, match="the last output looks 18 tokens back") as caught:
        context_use(probe)
    assert caught.value.where == "blocks.0.attention"


@pytest.mark.parametrize(
    ("values", "far"),
    [([0, 0, 1.0, 1, 1], 2), ([1.0, 1, 1], None), ([0, 1e-30, 1.0], None), ([0, 1.0, 0, 1], None)],
)
def test_where_influence_ends(values, far):
    assert cliff(torch.tensor(values)) == far


def test_a_window_is_held_against_the_declared_one():
    assert context_use(probe_of(Window(), {"sliding_window": 4})).window == 4
    with pytest.raises(CheckFailed, match="declares 12 tokens; blocks.0.attention looks 3 back"):
        context_use(probe_of(Window(), {"sliding_window": 12}))


def test_a_bigram_model_has_no_context():
    model = nn.Sequential(nn.Embedding(models.VOCAB, 32), nn.Linear(32, models.VOCAB))
    with pytest.raises(NotApplicable, match="nothing in the model mixes positions"):
        context_use(probe_of(model, {"task": "causal_lm"}))


class Pooled(nn.Module):
    """The maximum over time of token vectors, of the first ``most`` tokens."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.tokens = nn.Embedding(models.VOCAB, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids):
        return self.head(self.tokens(input_ids[:, : self.most]).amax(1))


def test_a_maximum_over_time_reads_every_token_of_some_text():
    config = {"task": "classification", "max_len": 24}
    assert context_use(probe_of(Pooled(), config)).unseen == 0


class ReadAtTheLargest(Masked):
    """The output is read where the largest id stands, as CLIP reads its texts, or (``first``)
    from the first token."""

    first = False

    def forward(self, input_ids):
        place = input_ids.argmax(-1) * (not self.first)
        return self.head(self.hidden(input_ids)[torch.arange(len(input_ids)), place])[:, :5]


def test_an_output_that_is_read_at_the_largest_id():
    config = {"task": "classification"}
    assert context_use(probe_of(ReadAtTheLargest(), config)).unseen == 0
    model = ReadAtTheLargest()
    model.first = True
    with pytest.raises(CheckFailed, match="tokens have no influence"):
        context_use(probe_of(model, config))


def test_a_text_that_is_cut_inside():
    with pytest.raises(CheckFailed, match="tokens have no influence"):
        context_use(probe_of(Pooled(16), {"task": "classification", "vocab_size": models.VOCAB}))


class FrozenMemory(models.Translator):
    """The encoder is frozen and runs under ``no_grad``; ``deaf``: the decoder gets zeros."""

    deaf = False

    def forward(self, src, tgt):
        t = self.transformer
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1), dtype=dtype_of(self))
        with torch.no_grad():
            memory = t.encoder(self.place(self.source(src)))
        memory = memory * 0 if self.deaf else memory
        return self.head(t.decoder(self.place(self.target(tgt)), memory, tgt_mask=mask))


class Deaf(FrozenMemory):
    deaf = True


class Frozen(Masked):
    """All but the head runs under ``no_grad``."""

    def hidden(self, ids):
        with torch.no_grad():
            return super().hidden(ids)


class FrozenAlone(Frozen, Alone):
    pass


class FrozenPooled(Pooled):
    """The token vectors are read under ``no_grad``."""

    def forward(self, input_ids):
        with torch.no_grad():
            x = self.tokens(input_ids[:, : self.most])
        return self.head(x.mean(1))


def dtype_of(model):
    return next(model.parameters()).dtype


def test_no_gradient_through_a_frozen_part_says_nothing_about_what_outputs_see():
    assert context_use(probe_of(Frozen())).unseen == 0
    with pytest.raises(CheckFailed, match="no output depends on any token but its own"):
        context_use(probe_of(FrozenAlone()))
    config = {"task": "classification", "vocab_size": models.VOCAB}
    assert context_use(probe_of(FrozenPooled(), config)).unseen == 0
    with pytest.raises(CheckFailed, match="tokens have no influence"):
        context_use(probe_of(FrozenPooled(16), config))


def test_no_gradient_through_a_frozen_encoder_says_nothing_about_its_use():
    assert encoder_use(probe_of(FrozenMemory())).unseen == 0
    with pytest.raises(CheckFailed, match="does not depend on source token"):
        encoder_use(probe_of(Deaf()))


def test_an_encoder_sees_both_sides():
    assert bidirectionality(probe_of(Both(), ENCODER)).unseen == 0


class Memory(Both):
    """Three learned vectors in front of the text, cut off in front of or behind the outputs."""

    cut = slice(3, None)

    def __init__(self):
        super().__init__()
        self.memory = torch.nn.Parameter(torch.randn(3, 32))

    def forward(self, input_ids):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.size(1)))
        x = torch.cat([self.memory.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, causal=False)
        return self.head(self.norm(x))[:, self.cut]


def test_outputs_of_other_places():
    model = Memory()
    bidirectionality(probe_of(model, ENCODER))
    model.cut = slice(0, -3)
    with pytest.raises(CheckFailed, match="depends most on token t-3") as caught:
        bidirectionality(probe_of(model, ENCODER))
    assert caught.value.where == "(model)"


def test_a_causal_mask_in_an_encoder():
    with pytest.raises(CheckFailed, match="no output depends on a later token") as caught:
        bidirectionality(probe_of(Masked(), ENCODER))
    assert caught.value.where == "blocks.0.attention"
    assert "--tb-task=causal_lm" in caught.value.message


class TaggerForTokenClassification(Masked):
    """A head for each token on a decoder, or on an encoder with a causal mask left on."""


@pytest.mark.parametrize("kind", ["bloom", "llama"])
def test_a_decoder_with_a_head_for_each_token_looks_back(kind):
    pytest.importorskip("transformers.models.auto.modeling_auto")
    config = {"model_type": kind, "vocab_size": models.VOCAB}
    with pytest.raises(NotApplicable, match=f"{kind} is a decoder with a head for each token"):
        bidirectionality(probe_of(TaggerForTokenClassification(), config))
    with pytest.raises(CheckFailed, match="no output depends on a later token"):
        bidirectionality(
            probe_of(TaggerForTokenClassification(), {**config, "model_type": "bert"})
        )
    with pytest.raises(CheckFailed, match="no output depends on a later token"):
        bidirectionality(probe_of(Masked(), {**config, "task": "masked_lm"}))


def test_a_causal_mask_in_one_layer_of_an_encoder():
    with pytest.raises(CheckFailed, match="sees no later position") as caught:
        bidirectionality(probe_of(OneCausal(), ENCODER))
    assert caught.value.where == "blocks.1.attention"


LENGTH = 6
FULL = torch.ones(LENGTH, LENGTH, dtype=torch.bool)


@pytest.mark.parametrize(
    ("seen", "name", "reach"),
    [
        (FULL.tril(), "all", 5),
        (FULL.tril(-1), "shifted", 5),
        (FULL.tril() & FULL.triu(), "alone", 0),
        (FULL.tril().triu(-2), "band", 2),
        (FULL.tril() & (torch.arange(LENGTH) % 2 == 0), "holes", 5),
    ],
)
def test_causal_patterns(seen, name, reach):
    pattern = causal_pattern(seen)
    assert (pattern.name, pattern.reach) == (name, reach)


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (FULL, "all"),
        (FULL.tril(), "past"),
        (FULL.triu(), "future"),
        (FULL.tril().triu(), "alone"),
        (FULL.tril(2).triu(-2), "band"),
        (FULL[:, :-1], "all"),  # an output longer than the text
    ],
)
def test_patterns_of_encoders(seen, name):
    assert full_pattern(seen).name == name


class Steps(nn.Module):
    """A cell that is stepped over a text; ``carried`` says whether its state goes along."""

    def __init__(self, carried):
        super().__init__()
        self.tokens, self.head = nn.Embedding(models.VOCAB, 32), nn.Linear(32, models.VOCAB)
        self.cell, self.carried = nn.GRUCell(32, 32), carried

    def forward(self, input_ids):
        state, states = None, []
        for x in self.tokens(input_ids).unbind(1):
            after = self.cell(x, state)
            state = after if self.carried else state
            states.append(after)
        return self.head(torch.stack(states, 1))


def test_a_state_that_is_not_carried():
    context_use(probe_of(Steps(carried=True)))
    with pytest.raises(CheckFailed, match="no output depends on any token but its own"):
        context_use(probe_of(Steps(carried=False)))


class Channels(models.Patches):
    """Reads some channels of an image, in grey where it is told to."""

    def __init__(self, *read):
        super().__init__()
        self.read = list(read)

    def forward(self, x):
        grey = x.mean(1, keepdim=True).expand_as(x)
        return super().forward(x[:, self.read] if self.read else grey)


def test_every_channel_of_an_image_counts():
    for read in [(0, 1, 2), (2, 1, 0), ()]:
        context_use(probe_of(Channels(*read)))
    words = r"1 of 3 channels have no influence \(number 2\)"
    with pytest.raises(CheckFailed, match=words) as caught:
        context_use(probe_of(Channels(0, 1, 1)))
    assert caught.value.where in ("(model)", "patch")


class FrozenPatches(models.Patches):
    """What reads the image runs under ``no_grad``; ``cut``: half of it is lost before."""

    cut = False

    def forward(self, x):
        if self.cut:
            x = x * (torch.arange(x.shape[-1]) < x.shape[-1] // 2)
        with torch.no_grad():
            features = super().forward(x)
        return features * 2


def test_an_image_that_frozen_features_read_is_seen():
    config = {"task": "vision_classification", "image_size": 32, "num_channels": 3}
    assert context_use(probe_of(FrozenPatches(), config)).unseen == 0
    model = FrozenPatches()
    model.cut = True
    with pytest.raises(CheckFailed, match="patches of .* pixels have no influence"):
        context_use(probe_of(model, config))


class Either(nn.Module):
    """Attention to what it is given beside the text, or to the text."""

    def __init__(self, dim=32):
        super().__init__()
        self.query, self.both, self.out = (nn.Linear(dim, n * dim) for n in (1, 2, 1))

    def forward(self, x, memory=None):
        keys, values = self.both(x if memory is None else memory).chunk(2, -1)
        scores = self.query(x) @ keys.mT / 6
        if memory is None:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        return self.out(scores.softmax(-1) @ values)


class Turns(models.Translator):
    """Attention to the text, to the encoder, and a linear layer by turns in one list; ``forgets``
    is the element that is not given what the encoder read."""

    def __init__(self, depth=2, forgets=None):
        super().__init__()
        self.forgets = forgets
        turn = Either, Either, lambda: nn.Linear(32, 32)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(32), make()]) for _ in range(depth) for make in turn
        )

    def forward(self, src, tgt):
        memory = self.transformer.encoder(self.place(self.source(src)))
        x = self.place(self.target(tgt))
        for index, (norm, part) in enumerate(self.layers):
            given = (memory,) if index % 3 == 1 and index != self.forgets else ()
            x = x + part(norm(x), *given)
        return self.head(x)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_list_may_hold_attention_to_the_text_and_to_the_encoder_by_turns(depth):
    assert encoder_use(probe_of(Turns(depth))).unseen == 0


def test_one_of_the_turns_is_not_given_what_the_encoder_read():
    with pytest.raises(CheckFailed, match=r"layers.1.1, which is built like it, is") as caught:
        encoder_use(probe_of(Turns(2, forgets=4)))
    assert caught.value.where == "layers.4.1"
