"""What position_sensitivity says, decides and excuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.position import position_sensitivity
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.invariance import (
    follows_rows_alone,
    not_by_distance,
    same_vectors,
)
from tests import models
from tests.models import probe_of

EPS = torch.finfo(torch.float32).eps


class Unordered(models.Decoder):
    """Positions are looked up and dropped."""

    def hidden(self, ids):
        self.positions(torch.arange(ids.size(1)))
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class WithoutPositions(nn.Module):
    """No positions on purpose: order is known through the causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.VOCAB, 32)
        self.blocks = nn.ModuleList(models.Block() for _ in range(2))
        self.head = nn.Linear(32, models.VOCAB)

    def forward(self, input_ids):
        x = self.tokens(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Coincide(models.Decoder):
    def hidden(self, ids):
        steps = torch.arange(ids.size(1)).clamp(max=40)
        x = self.tokens(ids) + self.positions(steps)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_order_is_known_from_what_enters():
    measured = position_sensitivity(probe_of(models.Decoder()))
    assert (measured.known, measured.module) == ("tokens", "blocks.0.attention")


def test_positions_that_are_never_added():
    with pytest.raises(CheckFailed, match=r"the model has positions \(positions\)") as caught:
        position_sensitivity(probe_of(Unordered()))
    assert caught.value.where == "positions"


@pytest.mark.parametrize("frozen", [False, True])
def test_positions_that_start_at_zero_are_learned_unless_they_are_frozen(frozen):
    model = models.Decoder()
    nn.init.zeros_(model.positions.weight).requires_grad_(not frozen)
    if not frozen:
        assert position_sensitivity(probe_of(model)).known == "tokens"
        return
    with pytest.raises(CheckFailed, match="or are frozen at zero"):
        position_sensitivity(probe_of(model))
    model.requires_grad_(False)  # a base whose weights are to be loaded
    assert position_sensitivity(probe_of(model)).known == "tokens"


class Past(nn.Module):
    """Adds the mean of all tokens so far: in its last row no order is seen."""

    def forward(self, x):
        weights = torch.ones(x.size(1), x.size(1)).tril()
        return x + (weights / weights.sum(-1, keepdim=True)).to(x) @ x


def test_behind_a_mean_of_the_past_a_later_module_is_asked():
    model = models.Decoder()
    model.blocks.insert(0, Past())
    measured = position_sensitivity(probe_of(model))
    assert (measured.known, measured.module) == ("tokens", "blocks.1.attention")
    model = Unordered()
    model.blocks.insert(0, Past())
    with pytest.raises(CheckFailed, match=r"the model has positions \(positions\)"):
        position_sensitivity(probe_of(model))


class RotaryTable(nn.Module):
    """Never called: its class says what it is for."""


class Frequencies(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(4))


class Kept(nn.Module):
    """A tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.pos_embedding = torch.ones(4, 32)


@pytest.mark.parametrize(
    ("made", "promise"),
    [
        (RotaryTable, "turn, a RotaryTable"),
        (Frequencies, "turn.inv_freq"),
        (Kept, "turn.pos_embedding"),
    ],
)
def test_what_promises_positions(made, promise):
    model = WithoutPositions()
    model.turn = made()
    with pytest.raises(CheckFailed, match=rf"the model has positions \({promise}\)") as caught:
        position_sensitivity(probe_of(model))
    assert caught.value.where == "turn"


def test_no_positions_on_purpose():
    measured = position_sensitivity(probe_of(WithoutPositions(), {"n_positions": 48}))
    assert measured.known == "mask"
    assert any("no position information" in note for note in measured.notes)


class SwitchedOff(WithoutPositions):
    """Rotations are there for those who ask for them."""

    use_rope = False

    def forward(self, input_ids):
        rotary: dict = {}
        if self.use_rope:
            rotary["angles"] = torch.ones(input_ids.size(1))
        x = self.tokens(input_ids)
        for block in self.blocks:
            x = block(x, **rotary)
        return self.head(x)


def test_a_variable_that_begins_empty_promises_no_positions():
    assert position_sensitivity(probe_of(SwitchedOff())).known == "mask"


def test_positions_that_coincide_at_full_length():
    with pytest.raises(CheckFailed, match="positions 40 and 41 are given the same") as caught:
        position_sensitivity(probe_of(Coincide()))
    assert caught.value.where == "positions"


class Clamped(models.Decoder):
    """A formula, that bounds no length, of positions that stand still from 20 on."""

    def __init__(self, last):
        super().__init__()
        self.last, self.positions = last, None
        self.rates = nn.Buffer(0.7 ** torch.arange(32.0))

    def hidden(self, ids):
        places = torch.arange(ids.size(1)).clamp(max=self.last)
        x = self.tokens(ids) + torch.outer(places, self.rates).sin()
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_positions_that_coincide_where_nothing_bounds_the_length():
    position_sensitivity(probe_of(Clamped(10**6)))
    with pytest.raises(CheckFailed, match="positions 20 and 21 are given the same vector"):
        position_sensitivity(probe_of(Clamped(20)))


def test_single_tokens_have_no_order():
    model = nn.Sequential(nn.Embedding(models.VOCAB, 32), nn.Linear(32, models.VOCAB))
    with pytest.raises(NotApplicable, match="nothing in the model mixes positions"):
        position_sensitivity(probe_of(model, {"task": "causal_lm"}))


def test_a_coarse_dtype_is_asked_in_float64():
    assert position_sensitivity(probe_of(models.Decoder().bfloat16())).known == "tokens"


STEPS = torch.arange(12.0)
CAUSAL = torch.full((12, 12), float("-inf")).triu(1)
DISTANCE = STEPS[:, None] - STEPS


@pytest.mark.parametrize(
    "scores",
    [
        torch.zeros(12, 12),
        -0.5 * DISTANCE,
        -0.5 * STEPS.expand(12, 12),
        torch.cos(DISTANCE) * (1 + STEPS[:, None]).log(),
    ],
    ids=["none", "by distance", "bias by key", "temperature by row"],
)
def test_scores_that_follow_the_distance(scores):
    assert not_by_distance((scores + CAUSAL)[None], EPS) < 1e-4
    assert not_by_distance(scores[None], EPS) < 1e-4


def test_scores_that_do_not():
    absolute = torch.cos(STEPS).expand(12, 12)
    assert not_by_distance((absolute + CAUSAL)[None], EPS) > 0.1


def test_the_first_vectors_may_differ():
    vectors = torch.ones(20, 4)
    vectors[:3] = torch.randn(3, 4)
    assert same_vectors(vectors) is None
    twice = torch.randn(20, 4)
    twice[7] = twice[5]
    assert same_vectors(twice) == (5, 7)
    assert same_vectors(twice.repeat(8, 1) + torch.arange(160.0)[:, None]) is None


class Rotated(models.Attention):
    """A window of four tokens, so that order is seen even where keys do not turn."""

    keys = True

    def rotary(self, x):
        angles = torch.outer(torch.arange(x.size(-2)), 0.5 ** torch.arange(4))
        a, b = x.chunk(2, -1)
        return torch.cat(
            (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1
        )

    def forward(self, x, causal=True, mask=None):
        b, t, d = x.shape
        q, k, v = (s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        q, k = self.rotary(q), self.rotary(k) if self.keys else k
        far = torch.arange(t)[:, None] - torch.arange(t)
        scores = (q @ k.mT).masked_fill((far < 0) | (far > 3), float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


def test_keys_that_are_not_rotated_behind_a_window():
    model = WithoutPositions()
    for block in model.blocks:
        block.attention = Rotated(32, 4)
    position_sensitivity(probe_of(model))
    for block in model.blocks:
        block.attention.keys = False
    with pytest.raises(CheckFailed, match="follow the position that asks") as caught:
        position_sensitivity(probe_of(model))
    assert caught.value.where == "blocks.0.attention"


class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, y, x):
        q, k = (s.unflatten(-1, (4, 8)).transpose(1, 2) for s in (self.q(y), self.k(x)))
        later = torch.ones(x.shape[1], x.shape[1]).triu(1) > 0
        return (q @ k.mT).masked_fill(later, float("-inf")).softmax(-1).mean(1) @ x


class Reader(nn.Module):
    """A block that begins with another vector looks at what those before made of the text."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(32))
        self.own, self.cross = Rotated(32, 4), Cross()

    def forward(self, x):
        y = torch.cat([self.first.expand(x.shape[0], 1, 32), x[:, :-1]], 1)
        y = y + self.own(y)
        return y + self.cross(y, x)


def test_a_decoder_that_begins_with_another_vector_looks_at_its_encoder():
    model = WithoutPositions()
    for block in model.blocks:
        block.attention = Rotated(32, 4)
    model.blocks.append(Reader())
    position_sensitivity(probe_of(model))


class Turned(models.Attention):
    """Nothing but the name of its frequencies says what they are for."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.register_buffer("inv_freq", 0.5 ** torch.arange(4), persistent=False)

    def turn(self, x):
        angles = torch.outer(torch.arange(x.size(-2)), self.inv_freq)
        a, b = x.chunk(2, -1)
        return torch.cat(
            (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1
        )

    def forward(self, x, causal=True, mask=None):
        b, t, d = x.shape
        q, k, v = (s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        far = torch.arange(t)[:, None] - torch.arange(t)
        scores = (self.turn(q) @ k.mT).masked_fill((far < 0) | (far > 3), float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


def test_inverse_frequencies_are_a_promise_of_rotation():
    model = WithoutPositions()
    for block in model.blocks:
        block.attention = Turned(32, 4)
    with pytest.raises(CheckFailed, match="inv_freq, the scores of equal tokens follow"):
        position_sensitivity(probe_of(model))


class Halves(models.Attention):
    """Tables with the angles of pairs that stand side by side, for halves that do not."""

    def __init__(self, width, heads, paired=False):
        super().__init__(width, heads)
        angles = torch.outer(torch.arange(64), 0.5 ** torch.arange(4))
        angles = angles.repeat(1, 2) if paired else angles.repeat_interleave(2, -1)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self, x, causal=True, mask=None):
        b, t, d = x.shape
        q, k, v = (s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        q, k = (
            s * self.cos_cached[:t]
            + torch.cat([-s[..., 4:], s[..., :4]], -1) * self.sin_cached[:t]
            for s in (q, k)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


@pytest.mark.parametrize("paired", [True, False])
def test_tables_of_angles_are_a_promise_of_rotation(paired):
    model = WithoutPositions()
    for block in model.blocks:
        block.attention = Halves(32, 4, paired)
    if paired:
        assert position_sensitivity(probe_of(model)).not_by_distance < 1e-4
        return
    with pytest.raises(CheckFailed, match="with tables of cos and sin, scores differ") as caught:
        position_sensitivity(probe_of(model))
    assert caught.value.where == "blocks.0.attention"


class Tabled(Rotated):
    """With angles from a buffer."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        angles = torch.outer(torch.arange(64), 0.5 ** torch.arange(4))
        self.register_buffer("rotary_cos", angles.cos(), persistent=False)
        self.register_buffer("rotary_sin", angles.sin(), persistent=False)

    def rotary(self, x):
        cos, sin = (table[: x.size(-2)] for table in (self.rotary_cos, self.rotary_sin))
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


@pytest.mark.parametrize("keys", [True, False])
def test_angles_that_are_rounded_to_the_dtype_of_the_model(keys):
    model = WithoutPositions()
    for block in model.blocks:
        block.attention = Tabled(32, 4)
        block.attention.keys = keys
    model.bfloat16()
    if keys:
        assert 1e-3 < position_sensitivity(probe_of(model)).not_by_distance < 0.03
        return
    with pytest.raises(CheckFailed):
        position_sensitivity(probe_of(model))


def test_scores_of_rows():
    rows = torch.arange(6.0).cos()[:, None].expand(2, 6, 6)
    assert follows_rows_alone(rows, EPS)
    assert follows_rows_alone(rows.masked_fill(torch.ones(6, 6).triu(1) > 0, float("-inf")), EPS)
    assert follows_rows_alone(torch.stack([rows[0].mT, rows[1]]), EPS), "one head of two"
    assert not follows_rows_alone(rows.mT, EPS)
    assert not follows_rows_alone(torch.ones(2, 6, 6), EPS)
    assert not follows_rows_alone(torch.arange(6.0)[:, None].expand(2, 6, 6), EPS)
    first = torch.where(torch.arange(6) == 0, 0.0, float("-inf"))
    assert not follows_rows_alone(rows + first, EPS), "one key in sight"


class Cut(nn.Module):
    """An image classifier that cuts its images by hand."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(48, 32), nn.Linear(32, 7)
        self.positions = nn.Parameter(torch.randn(1, 16, 32))
        self.block = models.Block()

    def cut(self, x):
        return x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3)

    def forward(self, pixel_values):
        x = self.embed(self.cut(pixel_values).reshape(len(pixel_values), 16, 48))
        return self.head(self.block(x + self.positions, causal=False).mean(1))


class CutByView(Cut):
    def cut(self, x):
        return x


@pytest.mark.parametrize("config", [{"patch_size": 4}, {"patch_size": 8}, {}])
def test_patches_that_are_squares(config):
    sizes = {"image_size": 16, "num_channels": 3}
    position_sensitivity(probe_of(Cut(), sizes | config))
    if config.get("patch_size") != 4:  # nothing says what a patch is
        position_sensitivity(probe_of(CutByView(), sizes | config))


def test_patches_that_are_cut_by_view():
    config = {"image_size": 16, "num_channels": 3, "patch_size": 4}
    with pytest.raises(CheckFailed, match="a patch of an image is a square") as caught:
        position_sensitivity(probe_of(CutByView(), config))
    assert caught.value.where == "(model)"
    assert "a box of 3 x 16 pixels" in caught.value.message


class Convolved(Cut):
    """Patches are cut by a convolution; ``moved`` says how channels come behind them."""

    def __init__(self, moved, norm=None):
        super().__init__()
        self.embed, self.moved = nn.Conv2d(3, 32, 4, 4), moved
        self.patches, self.norm = nn.Identity(), norm or nn.Identity()

    def forward(self, pixel_values):
        x = self.norm(self.embed(pixel_values)).flatten(2)
        x = x.mT if self.moved else x.reshape(len(x), 16, 32)
        return self.head(self.block(self.patches(x) + self.positions, causal=False).mean(1))


class AttendsFirst(Convolved):
    """The first module behind the patches mixes them."""

    def __init__(self):
        super().__init__(moved=True)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, pixel_values):
        x = self.embed(pixel_values).flatten(2).mT + self.positions
        return self.head(self.encoder(x).mean(1))


def test_channels_that_are_moved_by_reshape():
    config = {"image_size": 16, "num_channels": 3}
    position_sensitivity(probe_of(Convolved(moved=True), config))
    position_sensitivity(probe_of(Convolved(True, nn.GroupNorm(1, 32)), config))
    position_sensitivity(probe_of(AttendsFirst(), config))
    with pytest.raises(CheckFailed, match="stand in a box of 16 x 16 pixels") as caught:
        position_sensitivity(probe_of(Convolved(moved=False), config))
    assert caught.value.where == "(model)"


class Kinds(Cut):
    """Seven patches along a side, as it keeps, and one position for all of them."""

    def __init__(self):
        super().__init__()
        self.patch_size = (4.0, 4.0)
        self.positions = nn.Parameter(torch.randn(1, 49, 32))

    def forward(self, pixel_values):
        x = pixel_values.unflatten(3, (7, 4)).unflatten(2, (7, 4)).permute(0, 2, 4, 3, 5, 1)
        x = self.embed(x.reshape(len(x), 49, 48)) + self.positions[:, :1]
        return self.head(self.block(x, causal=False).mean(1))


def test_patches_of_the_side_that_is_kept_change_places():
    with pytest.raises(CheckFailed, match="when patches of 4 x 4 pixels change places"):
        position_sensitivity(probe_of(Kinds(), {"image_size": 28, "num_channels": 3}))


class Summary(models.Decoder):
    """A classifier that reads a token of its own in front, and knows no order."""

    def __init__(self):
        super().__init__()
        self.first, self.labels = nn.Parameter(torch.randn(1, 1, 32)), nn.Linear(32, 5)

    def forward(self, input_ids):
        x = self.tokens(input_ids) + self.positions.weight.mean(0)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, causal=False)
        return self.labels(x[:, 0])


def test_an_output_of_a_whole_text_has_an_order():
    with pytest.raises(CheckFailed, match=r"the model has positions \(positions\)"):
        position_sensitivity(probe_of(Summary()))


def test_a_compiled_model_is_followed_although_it_ran_before():
    probe = probe_of(torch.compile(models.Decoder(), backend="eager"))
    with probe.running("order", grad=True) as subject:
        subject(probe.batch(1, probe.subject.sizes[1], "order"))
    assert probe.order.by_tokens("text", "_orig_mod.blocks.0.attention", "eval").relative > 0
