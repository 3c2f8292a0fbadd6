"""Padding and masks: what is judged, what is spared and why, what a failure says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of

CHECKS = {check.name: check.function for check in all_checks()}
ENCODER = {"task": "masked_lm", "pad_token_id": 0}
CLASSES = {"task": "classification", "pad_token_id": 0}


def padding(model, case, config=None):
    return CHECKS["padding"](probe_of(model, config), case)


def effect(model, config=None):
    return CHECKS["mask_effect"](probe_of(model, config))


class Masked(models.Decoder):
    """An encoder, or with ``causal`` a decoder, that takes the mask called ``attention_mask``."""

    causal = False

    def seen(self, ids, attention_mask):
        """(B, 1, T, T) or (B, 1, 1, T), True where a query may look."""
        keep = torch.ones_like(ids) if attention_mask is None else attention_mask
        seen = keep[:, None, None, :] == 1
        if self.causal:
            seen = seen & torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).tril()
        return seen

    def places(self, ids, attention_mask):
        return torch.arange(ids.size(1))

    def trunk(self, ids, attention_mask):
        x = self.tokens(ids) + self.positions(self.places(ids, attention_mask))
        for block in self.blocks:
            x = block(x, mask=self.seen(ids, attention_mask))
        return self.norm(x)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.trunk(input_ids, attention_mask))


class MaskedCausal(Masked):
    causal = True


class FollowsMask(MaskedCausal):
    """Positions are counted over real tokens."""

    def places(self, ids, attention_mask):
        keep = torch.ones_like(ids) if attention_mask is None else attention_mask
        return (keep.long().cumsum(1) - 1).clamp(min=0)


class Pooled(Masked):
    """A classifier; ``pool`` says how."""

    def pool(self, x, keep):
        return (x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)

    def forward(self, input_ids, attention_mask=None):
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.head(self.pool(self.trunk(input_ids, attention_mask), keep.float()))[:, :5]


class Last(Pooled):
    def pool(self, x, keep):
        return x[torch.arange(len(x)), keep.long().sum(1) - 1]


class EndByMask(Pooled):
    """The last real token by the mask, or by the padding id; layers are given no mask, and look
    back, or (``both``) at all tokens; ``deaf``: the mask is not looked at."""

    both = deaf = counts = False

    def forward(self, input_ids, attention_mask=None):
        own = input_ids != 0
        keep = own if attention_mask is None or self.deaf else attention_mask
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.size(1)))
        for block in self.blocks:
            x = block(x, causal=not self.both)
        steps = keep.long() * torch.arange(input_ids.size(1))
        last = keep.long().sum(1) - 1 if self.counts else steps.argmax(1)
        return self.head(x[torch.arange(len(x)), last])[:, :5]


class EndByCount(EndByMask):
    counts = True


HEALTHY = {
    "encoder": (Masked, ENCODER),
    "decoder": (MaskedCausal, None),
    "mean over the mask": (Pooled, CLASSES),
    "last real token": (Last, CLASSES),
    "last real token of a decoder": (EndByMask, CLASSES),
    "as many tokens of a decoder": (EndByCount, CLASSES),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("case", ["content", "right"])
def test_padding_that_changes_nothing(name, case):
    model, config = HEALTHY[name]
    measured = padding(model(), case, config)
    assert measured.argument == "attention_mask"
    assert measured.value <= measured.limit.value
    assert measured.comparisons >= 2


@pytest.mark.parametrize("name", HEALTHY)
def test_a_mask_that_works(name):
    model, config = HEALTHY[name]
    measured = effect(model(), config)
    assert measured.value > 1e-3
    assert measured.ones <= measured.ones_limit


def test_a_mask_that_tells_where_a_text_ends_has_to_be_heard():
    both, deaf = EndByMask(), EndByMask()
    both.both = deaf.deaf = True
    with pytest.raises(CheckFailed, match="outputs? of"):
        padding(both, "right", CLASSES)
    with pytest.raises(CheckFailed, match="accepted and not used"):
        effect(deaf, CLASSES)


def test_left_padding_needs_positions():
    assert padding(FollowsMask(), "left").value < 1e-5
    with pytest.raises(NotApplicable, match="forward takes no position_ids"):
        padding(MaskedCausal(), "left")
    with pytest.raises(NotApplicable, match="only decoders are padded on the left"):
        padding(Masked(), "left", ENCODER)


class Positions(MaskedCausal):
    """Takes positions; ``used`` says whether it reads them."""

    used = True

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        self.given = position_ids if self.used else None
        return super().forward(input_ids, attention_mask)

    def places(self, ids, attention_mask):
        return super().places(ids, attention_mask) if self.given is None else self.given


class IgnoresPositions(Positions):
    used = False


def test_positions_that_are_given_are_read():
    assert padding(Positions(), "left").value < 1e-5
    with pytest.raises(CheckFailed, match="positions count the padding") as caught:
        padding(IgnoresPositions(), "left")
    assert caught.value.where == "positions"


class OneHead(Masked):
    def seen(self, ids, attention_mask):
        seen = super().seen(ids, attention_mask).repeat(1, 4, 1, 1)
        seen[:, 2] = True
        return seen


class ByOr(MaskedCausal):
    def seen(self, ids, attention_mask):
        keep = torch.ones_like(ids) if attention_mask is None else attention_mask
        later = torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).tril()
        return later | (keep[:, None, None, :] == 1)


class EqualRows(Masked):
    def seen(self, ids, attention_mask):
        if attention_mask is not None and (attention_mask.sum(1) == attention_mask[0].sum()).all():
            attention_mask = None
        return super().seen(ids, attention_mask)


class FirstRow(Masked):
    def seen(self, ids, attention_mask):
        if attention_mask is not None and bool(attention_mask[0].all()):
            attention_mask = None
        return super().seen(ids, attention_mask)


LEAKS = {
    "one head of four": (OneHead, ENCODER, "not applied in at least one layer, head"),
    "causal or real": (ByOr, None, "combined by or"),
    "equally long rows": (EqualRows, ENCODER, "dropped where all rows are equally long"),
    "full first row": (FirstRow, ENCODER, "where the first row has no padding"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_ids_under_the_mask_that_are_seen(leak):
    model, config, words = LEAKS[leak]
    with pytest.raises(CheckFailed, match=words) as caught:
        padding(model(), "content", config)
    assert caught.value.where == "blocks.0.attention"


def test_a_failure_says_rule_numbers_place_cause_and_way_out():
    with pytest.raises(CheckFailed) as caught:
        padding(OneHead(), "content", ENCODER)
    lines = caught.value.message.splitlines()
    assert lines[0] == "outputs of real tokens must not depend on what stands under the mask"
    assert "stood where attention_mask says padding; the mask as such" in lines[1]
    assert lines[2] == "first module to differ: blocks.0.attention"
    assert lines[-1].startswith("intended? declare it")


class MeanOfAll(Pooled):
    def pool(self, x, keep):
        return x.mean(1)


class DividesByLength(Pooled):
    def pool(self, x, keep):
        return (x * keep[..., None]).sum(1) / x.size(1)


class OneBehind(Last):
    def pool(self, x, keep):
        return x[torch.arange(len(x)), keep.long().sum(1).clamp(max=x.size(1) - 1)]


@pytest.mark.parametrize("model", [MeanOfAll, DividesByLength, OneBehind])
def test_pooling_that_reads_padding(model):
    with pytest.raises(CheckFailed, match="a text padded on the right must give"):
        padding(model(), "right", CLASSES)


class Labels(nn.Module):
    """(B, 5, D): what each of five labels looks at, past the mask or not."""

    def __init__(self, hides):
        super().__init__()
        self.hides, self.look = hides, nn.Linear(32, 5)

    def forward(self, x, keep):
        scores = self.look(x)
        if self.hides:
            scores = scores.masked_fill(keep[..., None] == 0, -1e9)
        return scores.softmax(1).mT @ x


class ByLabel(Pooled):
    def __init__(self, hides=True):
        super().__init__()
        self.labels = Labels(hides)

    def pool(self, x, keep):
        return self.labels(x, keep).mean(1)


@pytest.mark.parametrize("case", ["content", "right"])
def test_labels_that_look_at_a_text_are_no_pooling_of_neighbours(case):
    padding(ByLabel(), case, CLASSES)
    with pytest.raises(CheckFailed, match="must not depend on what|padded on the right") as caught:
        padding(ByLabel(hides=False), case, CLASSES)
    assert caught.value.where == "labels"


class LastByNumber(Pooled):
    """The number of tokens is taken for the place of the last one, whatever the mask hides."""

    def seen(self, ids, attention_mask):
        return super().seen(ids, ids != 0 if attention_mask is None else attention_mask)

    def pool(self, x, keep):
        return x[torch.arange(len(x)), keep.long().sum(1) - 1]


def test_a_last_token_that_is_counted_and_not_looked_for():
    with pytest.raises(CheckFailed, match="must not depend on what stands under the mask"):
        padding(LastByNumber(), "content", CLASSES)


class LastColumn(Pooled):
    """Reads the last column and has no absolute positions: such models are padded on the left."""

    def trunk(self, ids, attention_mask):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask=self.seen(ids, attention_mask))
        return self.norm(x)

    def pool(self, x, keep):
        return x[:, -1]


def test_a_classifier_that_is_padded_on_the_left():
    with pytest.raises(NotApplicable, match="pad on the left"):
        padding(LastColumn(), "right", CLASSES)


class LastColumnOfPlaces(LastColumn):
    """Reads the last column, and counts positions from the left unless told otherwise."""

    def trunk(self, ids, attention_mask, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(ids.size(1)).expand_as(ids)
        return super().trunk(ids, attention_mask) + self.positions(position_ids)

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.trunk(input_ids, attention_mask, position_ids)
        return self.head(self.pool(x, keep))[:, :5]


@pytest.mark.parametrize("case", ["content", "right"])
def test_a_classifier_that_is_padded_on_the_left_counts_from_there(case):
    with pytest.raises(CheckFailed, match="must not depend on what|padded on the right"):
        padding(LastColumnOfPlaces(), case, CLASSES)


class Stretched(Masked):
    """Positions are spread over the whole length of a text unless they are given."""

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        if position_ids is None:
            position_ids = torch.linspace(0, 40, input_ids.size(1)).long()
        x = self.tokens(input_ids) + self.positions(position_ids)
        for block in self.blocks:
            x = block(x, mask=self.seen(input_ids, attention_mask))
        return self.head(self.norm(x))


def test_an_encoder_is_padded_on_the_right_whatever_positions_would_help():
    with pytest.raises(CheckFailed, match="a text padded on the right must give"):
        padding(Stretched(), "right", {"task": "masked_lm"})


class Convolves(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3, padding=1)

    def trunk(self, ids, attention_mask):
        x = super().trunk(ids, attention_mask)
        return x + self.conv(x.transpose(1, 2)).transpose(1, 2)


class ConvolvesAndLeaks(Convolves, OneHead):
    pass


@pytest.mark.parametrize("case", ["content", "right"])
def test_a_convolution_over_the_edge_is_spared_and_nothing_else(case):
    spared = padding(Convolves(), case, ENCODER)
    assert [note.partition(",")[0] for note in spared.notes] == [
        "a convolution reads over the edge of the padding"
    ]
    assert spared.value <= spared.limit.value
    with pytest.raises(CheckFailed) as caught:
        padding(ConvolvesAndLeaks(), case, ENCODER)
    assert caught.value.where == "blocks.0.attention"


class Bigrams(Masked):
    """Each token is read together with the next one, as ids."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Pairs()


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.next = nn.Embedding(models.VOCAB, 32), nn.Embedding(models.VOCAB, 32)

    def forward(self, ids):
        return self.own(ids) + self.next(ids.roll(-1, 1))


class BigramsAndLeak(Bigrams, OneHead):
    pass


class Trigrams(Bigrams):
    """Vectors of neighbours, side by side: these ids stay, and other vectors are read."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Beside()


class Beside(Pairs):
    def forward(self, ids):
        return self.own(ids) + self.next(ids).roll(-1, 1)


class EndByPadding(Masked):
    """Reads the last token that is no padding, by its id; a decoder would read ids shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.shifted = nn.Embedding(models.VOCAB, 32)

    def forward(self, input_ids, attention_mask=None):
        x = self.trunk(input_ids, attention_mask)
        x = x + self.shifted(nn.functional.pad(input_ids[:, :-1], (1, 0), value=1)).cumsum(1)
        last = (input_ids != 0).sum(1) - 1
        return self.head(x[torch.arange(len(x)), last])[:, :5]


class Centred(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = MeanFree(models.VOCAB, 32)


class MeanFree(nn.Embedding):
    def forward(self, ids):
        x = super().forward(ids)
        return x - x.mean(1, keepdim=True)


def test_ids_that_are_read_with_their_neighbours():
    spared = padding(Bigrams(), "content", ENCODER)
    assert spared.value == 0
    assert spared.notes == (
        "ids are read with others (n-grams, ids shifted inside), where no mask reaches; the ids "
        "stay, other vectors are read",
    )
    with pytest.raises(NotApplicable, match="ids are read with others"):
        padding(Trigrams(), "content", ENCODER)
    with pytest.raises(CheckFailed) as caught:
        padding(Centred(), "content", ENCODER)
    assert caught.value.where == "tokens"


def test_a_leak_behind_ids_that_are_read_with_their_neighbours():
    with pytest.raises(CheckFailed) as caught:
        padding(BigramsAndLeak(), "content", ENCODER)
    assert caught.value.where == "blocks.0.attention"


def test_a_classifier_that_reads_its_ids_shifted_up_to_the_padding():
    measured = padding(EndByPadding(), "content", CLASSES | {"num_labels": 5})
    assert measured.value == 0
    assert "the ids stay, other vectors are read" in measured.notes[0]


class Counts(MaskedCausal):
    """Reads how many tokens there are, never which."""

    def seen(self, ids, attention_mask):
        if attention_mask is not None:
            steps = torch.arange(ids.size(1))
            attention_mask = (steps < attention_mask.sum(1, keepdim=True)).long()
        return super().seen(ids, attention_mask)


def test_a_mask_that_is_counted():
    with pytest.raises(NotApplicable, match="the number of real tokens"):
        padding(Counts(), "content")


class ById(Masked):
    """Finds padding by its id."""

    def forward(self, tokens):
        return super().forward(tokens, (tokens != 0).long())


class ByIdForgetful(ById):
    def trunk(self, ids, attention_mask):
        x = super().trunk(ids, attention_mask)
        return self.blocks[1](x, causal=False)


def test_padding_that_is_found_by_its_id():
    measured = padding(ById(), "right", ENCODER)
    assert measured.argument is None
    for case in (lambda: padding(ById(), "content", ENCODER), lambda: effect(ById(), ENCODER)):
        with pytest.raises(NotApplicable, match="takes no mask .*: it looks for the padding id"):
            case()
    with pytest.raises(CheckFailed, match="with its padding id"):
        padding(ByIdForgetful(), "right", ENCODER)


class ByLength(models.Decoder):
    """Divides by the length of the text, and knows no padding."""

    def hidden(self, ids):
        return super().hidden(ids) / ids.size(1)


def test_what_fills_up_a_text_where_no_id_is_for_padding():
    with pytest.raises(CheckFailed, match="padded to 11 with one id .none is known"):
        padding(ByLength(), "right")


class ByOtherId(ById):
    """Hides the id that is called ``hidden``, and knows another one."""

    hidden = 1

    def forward(self, tokens):
        return Masked.forward(self, tokens, (tokens != self.hidden).long())


def test_a_padding_id_that_is_hard_coded():
    with pytest.raises(CheckFailed, match="hard-coded as 1") as caught:
        padding(ByOtherId(), "right", ENCODER)
    assert caught.value.where == "(model)"
    told_by_table = ByOtherId()
    told_by_table.tokens.padding_idx = 0
    with pytest.raises(CheckFailed, match="declared padding id 0"):
        padding(told_by_table, "right", {"task": "masked_lm"})


@pytest.mark.parametrize("name", ["eos_token_id", "sep_token_id", "mask_token_id"])
def test_an_id_that_means_something_else_is_not_taken_for_padding(name):
    with pytest.raises(NotApplicable):
        padding(ByOtherId(), "right", {**ENCODER, name: 1})


def test_an_id_that_is_compared_and_not_hidden_is_not_taken_for_padding():
    class Marks(Masked):
        def forward(self, tokens):
            return Masked.forward(self, tokens) + (tokens == 1).float()[..., None]

    with pytest.raises(NotApplicable):
        padding(Marks(), "right", ENCODER)


def test_a_model_that_knows_no_padding():
    with pytest.raises(NotApplicable, match="takes no mask"):
        effect(models.Decoder())
    assert padding(models.Decoder(), "right").value < 1e-5


class Torch(Masked):
    """``src_key_padding_mask``: True hides."""

    def forward(self, src, src_key_padding_mask=None):
        hides = src_key_padding_mask
        return super().forward(src, None if hides is None else ~hides)


class Keeps(Masked):
    """``mask``: True keeps."""

    def forward(self, x, mask=None):
        return super().forward(x, mask)


class Hides(Masked):
    """``mask``: True hides."""

    def forward(self, x, mask=None):
        return super().forward(x, None if mask is None else ~mask)


@pytest.mark.parametrize(
    ("model", "reading"), [(Torch, "True hides"), (Keeps, "True keeps"), (Hides, "True hides")]
)
def test_what_true_means_is_measured(model, reading):
    measured = effect(model(), ENCODER)
    assert any(reading in note for note in measured.notes)
    assert padding(model(), "content", ENCODER).value == 0.0
    assert padding(model(), "right", ENCODER).value < 1e-5


class TorchInverted(Masked):
    """``src_key_padding_mask``, which hides where it is True, read as what keeps."""

    def forward(self, src, src_key_padding_mask=None):
        return super().forward(src, src_key_padding_mask)


class TorchRequired(TorchInverted):
    def forward(self, src, src_key_padding_mask):
        return super().forward(src, src_key_padding_mask)


@pytest.mark.parametrize("model", [TorchInverted, TorchRequired])
def test_a_mask_that_means_the_opposite_of_its_name(model):
    with pytest.raises(CheckFailed, match="torch documents True as padding") as caught:
        effect(model(), ENCODER)
    assert caught.value.where == "blocks.0.attention"
    assert padding(model(), "content", ENCODER).value == 0.0


class BertRequired(Masked):
    """``input_mask``, which has 1 at real tokens, as a number added to the scores."""

    scale, inverted = -1e4, False

    def seen(self, ids, keep):
        hides = (keep if self.inverted else 1 - keep)[:, None, None, :]
        return hides.float() * self.scale

    def forward(self, input_ids, input_mask):
        return super().forward(input_ids, input_mask.long())


class BertOptional(BertRequired):
    def forward(self, input_ids, input_mask=None):
        keep = torch.ones_like(input_ids) if input_mask is None else input_mask
        return super().forward(input_ids, keep)


@pytest.mark.parametrize("model", [BertRequired, BertOptional])
def test_a_mask_whose_name_says_what_is_real(model):
    own = model()
    assert padding(own, "content", ENCODER).value == 0.0
    effect(own, ENCODER)
    own.inverted = True
    with pytest.raises(CheckFailed, match="input_mask is read the other way .* 1 at real tokens"):
        effect(own, ENCODER)
    own.inverted, own.scale = False, -1.0
    with pytest.raises(CheckFailed, match="must not depend on what stands under the mask"):
        padding(own, "content", ENCODER)


class Extended(Masked):
    """``mask`` (B, 1, 1, T), added to the scores."""

    leaks = False

    def seen(self, ids, mask):
        return torch.zeros(1, 1, 1, 1) if mask is None else mask

    def trunk(self, ids, mask):
        x = super().trunk(ids, mask)
        return self.norm(self.blocks[1](x, causal=False)) if self.leaks else x

    def forward(self, ids, mask=None):
        return super().forward(ids, mask)


class ExtendedRequired(Extended):
    def forward(self, ids, mask):
        return Masked.forward(self, ids, mask)


class FourAxes(Extended):
    """``attention_mask`` (B, 1, 1, T) of ones and zeros, required."""

    def seen(self, ids, mask):
        assert mask.dim() == 4
        return mask.bool()

    def forward(self, input_ids, attention_mask):
        return Masked.forward(self, input_ids, attention_mask)


@pytest.mark.parametrize("model", [Extended, ExtendedRequired, FourAxes])
@pytest.mark.parametrize("case", ["content", "right"])
def test_masks_of_four_axes_and_those_that_are_added(model, case):
    own = model()
    measured = padding(own, case, ENCODER)
    assert (measured.argument, measured.value <= measured.limit.value) == ("mask", True)
    effect(own, ENCODER)
    own.leaks = True
    with pytest.raises(CheckFailed, match="must not depend on what|padded on the right"):
        padding(own, case, ENCODER)


@pytest.mark.parametrize("name", ["x_mask", "enc_mask", "text_mask", "attention_masks"])
def test_an_optional_mask_of_the_text(name):
    source = f"def forward(self, ids, {name}=None): return Masked.forward(self, ids, {name})"
    scope = {"Masked": Masked}
    exec(source, scope)
    measured = padding(type("Named", (Masked,), {"forward": scope["forward"]})(), "right", ENCODER)
    assert measured.argument == "mask"


class Inverted(Masked):
    def seen(self, ids, attention_mask):
        keep = torch.ones_like(ids) if attention_mask is None else 1 - attention_mask
        return keep[:, None, None, :] == 1


class Scores(Masked):
    """Adds the mask to the scores; hiding everything leaves the softmax as it is."""

    def seen(self, ids, attention_mask):
        keep = torch.ones_like(ids) if attention_mask is None else attention_mask
        return keep[:, None, None, :].float() * -1e9


@pytest.mark.parametrize("model", [Inverted, Scores])
def test_an_inverted_attention_mask_is_named(model):
    with pytest.raises(CheckFailed, match="is read the other way round") as caught:
        effect(model(), ENCODER)
    assert caught.value.where == "blocks.0.attention"
    with pytest.raises(NotApplicable, match="see mask_effect"):
        padding(model(), "content", ENCODER)


class Ignored(Masked):
    def seen(self, ids, attention_mask):
        return super().seen(ids, attention_mask).any() & super().seen(ids, None)


class OtherPath(Masked):
    def places(self, ids, attention_mask):
        return torch.arange(ids.size(1)) + (attention_mask is not None)


def test_a_mask_that_is_ignored():
    with pytest.raises(CheckFailed, match="accepted and not used") as caught:
        effect(Ignored(), ENCODER)
    assert caught.value.where == "blocks.0.attention"
    with pytest.raises(NotApplicable, match="attention_mask hides nothing: see mask_effect"):
        padding(Ignored(), "content", ENCODER)


def test_the_effect_of_a_mask_is_more_than_its_limit():
    measured = effect(Masked(), ENCODER)
    assert measured.value > measured.limit.value > 0
    assert measured.limit.rule == "at least 256 u"


def test_a_mask_of_ones_changes_nothing():
    with pytest.raises(CheckFailed, match="must give what no mask gives") as caught:
        effect(OtherPath(), ENCODER)
    assert caught.value.where == "positions"
    measured = caught.value.measurement
    assert measured.value == measured.ones > measured.limit.value == measured.ones_limit


class Interface(models.Decoder):
    """Takes what trainers hand over."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return super().forward(input_ids)


class Silent(models.Decoder):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


def test_an_interface_is_no_promise():
    with pytest.raises(NotApplicable, match=r"forward takes by \*\*kwargs"):
        effect(Interface())
    assert padding(Interface(), "right").value < 1e-5
    with pytest.raises(CheckFailed, match="accepted and not used"):
        effect(Silent())


def test_tokens_that_do_not_meet_have_nothing_to_hide():
    class Alone(Masked):
        def trunk(self, ids, attention_mask):
            return self.tokens(ids)

    with pytest.raises(NotApplicable, match="no token reaches another"):
        effect(Alone(), ENCODER)


def test_another_dtype_is_a_note():
    class Subtracts(Masked):
        def forward(self, input_ids, attention_mask=None):
            keep = None if attention_mask is None else 1 - (1 - attention_mask)
            return super().forward(input_ids, keep)

    assert any("a mask of bool raises" in note for note in effect(Subtracts(), ENCODER).notes)


def test_a_mask_that_nothing_is_made_of_is_taken_as_it_comes():
    class Square(models.Decoder):
        """``mask`` is (T, T) here."""

        def forward(self, x, mask=None):
            assert mask is None or (mask.dim() == 2 and mask.size(0) == mask.size(1))
            return super().forward(x)

    with pytest.raises(NotApplicable, match="raised AssertionError"):
        effect(Square())


def test_a_query_that_sees_nothing():
    class Strict(Positions):
        """A query that sees nothing becomes NaN, and whoever looks at it."""

        def trunk(self, ids, attention_mask):
            x = self.tokens(ids) + self.positions(self.places(ids, attention_mask))
            seen = self.seen(ids, attention_mask).expand(len(ids), 1, ids.size(1), ids.size(1))
            for block in self.blocks:
                x = torch.where(seen.any(-1)[:, 0, :, None], block(x, mask=seen), float("nan"))
            return self.norm(x + 0 * x.sum(1, keepdim=True))

    with pytest.raises(NotApplicable, match="a query that may see nothing"):
        padding(Strict(), "left")


def test_what_draws_random_numbers_is_not_called_a_leak():
    class Draws(Masked):
        def trunk(self, ids, attention_mask):
            return nn.functional.dropout(super().trunk(ids, attention_mask), 0.1)

    with pytest.raises(Blocked, match="the same batch twice"):
        padding(Draws(), "right", ENCODER)


@pytest.mark.parametrize("lost", ["src", "memory"])
def test_masks_that_go_together_are_asked_one_by_one(lost):
    class Translates(models.Translator):
        lost = None

        def forward(self, src, tgt, src_key_padding_mask=None, memory_key_padding_mask=None):
            x = self.transformer(
                self.place(self.source(src)),
                self.place(self.target(tgt)),
                tgt_mask=nn.Transformer.generate_square_subsequent_mask(
                    tgt.size(1), dtype=self.head.weight.dtype
                ),
                src_key_padding_mask=None if self.lost == "src" else src_key_padding_mask,
                memory_key_padding_mask=None if self.lost == "memory" else memory_key_padding_mask,
            )
            return self.head(x)

    model = Translates()
    assert effect(model).value > 0
    model.lost = lost
    with pytest.raises(CheckFailed, match=f"{lost}_key_padding_mask alone moves") as caught:
        effect(model)
    assert caught.value.where == "(model)"


def test_a_mask_that_another_one_repeats_is_a_note():
    class Reads(models.Translator):
        def forward(self, src, tgt, attention_mask=None, encoder_attention_mask=None):
            hidden = None if attention_mask is None else attention_mask == 0
            x = self.transformer(
                self.place(self.source(src)),
                self.place(self.target(tgt)),
                tgt_mask=nn.Transformer.generate_square_subsequent_mask(
                    tgt.size(1), dtype=self.head.weight.dtype
                ),
                src_key_padding_mask=hidden,
                memory_key_padding_mask=hidden,
            )
            return self.head(x)

    assert any("no effect of its own" in note for note in effect(Reads()).notes)


def test_a_mask_that_is_heard_in_one_dtype_only():
    class Bool(Masked):
        def forward(self, input_ids, attention_mask=None):
            told = attention_mask is not None and attention_mask.dtype == torch.bool
            return super().forward(input_ids, attention_mask if told else None)

    with pytest.raises(CheckFailed, match="one of bool has"):
        effect(Bool())


def test_the_source_and_the_target_are_padded():
    class Translates(models.Translator):
        def forward(self, src, tgt):
            hidden = src == 0
            mask = nn.Transformer.generate_square_subsequent_mask(
                tgt.size(1), dtype=self.head.weight.dtype
            )
            memory = hidden if self.crosses else None
            x = self.transformer(
                self.place(self.source(src)),
                self.place(self.target(tgt)),
                tgt_mask=mask,
                src_key_padding_mask=hidden,
                memory_key_padding_mask=memory,
            )
            return self.head(x)

    model = Translates()
    model.crosses = True
    assert padding(model, "right", {"pad_token_id": 0}).value < 1e-4
    model.crosses = False
    with pytest.raises(CheckFailed, match="outputs of the decoder moved") as caught:
        padding(model, "right", {"pad_token_id": 0})
    assert caught.value.where == "transformer.decoder.layers.0.multihead_attn"


class Counted(models.Decoder):
    """An encoder whose texts are as long as it is told; ``shown`` more tokens are seen."""

    shown = 0

    def forward(self, input_ids, lengths=None):
        steps = torch.arange(input_ids.size(1))
        if lengths is None:
            lengths = torch.full((len(input_ids),), input_ids.size(1))
        keep = steps[None] < lengths[:, None] + self.shown
        x = self.tokens(input_ids) + self.positions(steps)
        for block in self.blocks:
            x = block(x, mask=keep[:, None, None])
        return self.head(self.norm(x))


class CountedFullText(Counted):
    """Lengths are required, and one text of a batch has to be as long as all are padded to."""

    def forward(self, input_ids, lengths):
        if int(lengths.max()) != input_ids.size(1):
            raise ValueError("the longest text has no padding")
        return super().forward(input_ids, lengths)


class CountedCausal(Counted):
    def forward(self, input_ids, lengths):
        seen = torch.ones(input_ids.size(1), input_ids.size(1), dtype=torch.bool).tril()
        keep = torch.arange(input_ids.size(1))[None] < lengths[:, None] + self.shown
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.size(1)))
        for block in self.blocks:
            x = block(x, mask=keep[:, None, None] & seen)
        return self.head(self.norm(x))


@pytest.mark.parametrize("model", [Counted, CountedFullText])
def test_lengths_are_a_mask(model):
    assert padding(model(), "content", ENCODER).argument == "lengths"
    assert padding(model(), "right", ENCODER).argument == "lengths"
    assert effect(model(), ENCODER).value > 1e-3
    with pytest.raises(NotApplicable, match="pad on the right"):
        padding(model(), "left", ENCODER)


def test_padding_behind_a_text_of_a_given_length_is_not_seen():
    leaks = type("Leaks", (Counted,), {"shown": 1})()
    with pytest.raises(CheckFailed, match=r"where lengths says padding[\s\S]*blocks.0"):
        padding(leaks, "content", ENCODER)
    with pytest.raises(CheckFailed, match="with lengths"):
        padding(leaks, "right", ENCODER)


def test_lengths_that_are_ignored():
    class Ignores(Counted):
        def forward(self, input_ids, lengths):
            return super().forward(input_ids)

    with pytest.raises(CheckFailed, match="masking tokens by lengths moved"):
        effect(Ignores(), ENCODER)


def test_lengths_of_another_row():
    class Mixes(Counted):
        def forward(self, input_ids, lengths):
            return super().forward(input_ids, lengths.roll(1))

    with pytest.raises(CheckFailed, match="where lengths says padding"):
        padding(Mixes(), "content", ENCODER)
    with pytest.raises(CheckFailed, match="their padding was left out"):
        CHECKS["batch_independence"](probe_of(Mixes(), ENCODER))


def test_lengths_of_texts_in_which_padding_is_found_by_its_id():
    class Finds(Counted):
        def forward(self, input_ids, lengths):
            return super().forward(input_ids, input_ids.ne(0).sum(1))

    with pytest.raises(NotApplicable, match="forward looks for the padding id"):
        effect(Finds(), ENCODER)
    assert padding(Finds(), "right", ENCODER).comparisons > 1


def test_lengths_of_a_causal_text():
    assert padding(CountedCausal(), "right").argument == "lengths"
    with pytest.raises(NotApplicable, match="on the right alone, and there nothing looks at it"):
        padding(CountedCausal(), "content")

    class Mixes(CountedCausal):
        def forward(self, input_ids, lengths):
            return super().forward(input_ids, lengths.roll(1))

    with pytest.raises(CheckFailed, match="with lengths"):
        padding(Mixes(), "right")


class Added(Masked):
    """``attn_bias`` is added to the scores."""

    layers = slice(None)

    def forward(self, input_ids, attn_bias=None):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.size(1)))
        told = self.blocks[self.layers]
        for block in self.blocks:
            bias = attn_bias if block in list(told) else None
            x = block(x, mask=torch.zeros(1, 1, 1, 1) if bias is None else bias)
        return self.head(self.norm(x))


def test_a_bias_that_hides_is_a_mask():
    assert padding(Added(), "content", ENCODER).argument == "attn_bias"
    assert padding(Added(), "right", ENCODER).argument == "attn_bias"
    assert effect(Added(), ENCODER).value > 1e-3


def test_a_bias_that_does_not_hide_means_something_else():
    some = type("Some", (Added,), {"layers": slice(1)})()
    for check in (lambda: padding(some, "content", ENCODER), lambda: effect(some, ENCODER)):
        with pytest.raises(NotApplicable, match="forward takes no mask"):
            check()
    with pytest.raises(NotApplicable, match="forward takes no mask"):
        effect(Added())  # a decoder's bias may be its causal mask, too
