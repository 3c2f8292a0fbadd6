"""Tokens changed one by one, noise on vectors, and the search for the worst tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier2.perturbation import (
    adversarial_tokens,
    embedding_smoothness,
    token_perturbation,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.measures.perturbation import spearman
from tests.models import Decoder, Patches, probe_of


def zoo_probe(name):
    healthy = ZOO[name]
    return probe_of(healthy.build(), healthy.config)


def test_every_token_is_changed_in_every_way():
    measured = token_perturbation(zoo_probe("bert"))
    assert set(measured.effects) == {"replaced", "left out", "masked"}
    assert {len(effects) for effects in measured.effects.values()} == {11}
    assert all(math.isfinite(e) and e > 0 for kind in measured.effects.values() for e in kind)
    assert "information" in measured.notes[0]
    assert -1 <= measured.agreement <= 1


class Forgetful(Decoder):
    """Reads the second half of a text only."""

    def hidden(self, ids):
        half = ids.size(1) // 2
        x = self.tokens(ids) * (torch.arange(ids.size(1)) >= half)[:, None]
        x = x + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_a_token_that_nothing_reads_has_no_effect():
    replaced = token_perturbation(probe_of(Forgetful())).effects["replaced"]
    assert max(replaced[:5]) < 16 * torch.finfo(torch.float32).eps < min(replaced[5:])


def test_the_end_of_a_text_that_is_pooled_stays():
    healthy = ZOO["text_classifier"]
    probe = probe_of(healthy.build(), {**healthy.config, "eos_token_id": 2})
    assert len(token_perturbation(probe).effects["replaced"]) == 10


def test_patches_of_an_image():
    measured = token_perturbation(probe_of(Patches()))
    assert len(measured.effects["set to zero"]) == 16
    assert measured.grid == 4
    assert min(measured.effects["set to zero"]) > 0


def test_a_smooth_model_has_one_gain():
    measured = embedding_smoothness(probe_of(Decoder()))
    assert measured.value < 1.1
    assert measured.decides == []


class Hashed(Decoder):
    def hidden(self, ids):
        x = super().hidden(ids)
        return x + torch.frac(torch.sin(x.detach() * 12.9898) * 43758.5453)


def test_an_output_made_of_the_last_digits_fails():
    with pytest.raises(CheckFailed, match="must follow small noise") as caught:
        embedding_smoothness(probe_of(Hashed()))
    assert caught.value.measurement.value > 100


def test_the_module_that_jumps_is_named():
    class Jumps(nn.Module):
        def forward(self, x):
            return torch.frac(torch.sin(x * 12.9898) * 43758.5453)

    model = Decoder()
    model.blocks[1].mlp[1] = Jumps()
    with pytest.raises(CheckFailed) as caught:
        embedding_smoothness(probe_of(model))
    assert caught.value.where == "blocks.1.mlp.1"


class Chooses(Decoder):
    """A table read by the largest of many numbers that the last digits decide."""

    def hidden(self, ids):
        x = super().hidden(ids)
        choice = torch.sin(x * 1e7).argmax(-1)
        return x + self.positions(choice)


def test_a_choice_may_jump():
    with pytest.raises(NotApplicable, match="chooses or rounds: argmax"):
        embedding_smoothness(probe_of(Chooses()))


def test_half_precision_has_no_digits_for_small_noise():
    with pytest.raises(NotApplicable, match="half precision"):
        embedding_smoothness(probe_of(Decoder().to(torch.bfloat16)))


class Starting(Decoder):
    """Reads the text through a branch that starts at ``start``, beside a constant."""

    def __init__(self, start):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(start))

    def hidden(self, ids):
        return self.positions.weight[: ids.size(1)] + self.gate * super().hidden(ids)


@pytest.mark.parametrize("start", [0.0, 1e-6, 3e-5])
def test_rounding_is_no_jump(start):
    assert embedding_smoothness(probe_of(Starting(start))).value < 100


def test_noise_that_moves_nothing_does_not_apply():
    class Constant(Decoder):
        def hidden(self, ids):
            return super().hidden(ids) * 0

    with pytest.raises(NotApplicable, match="does not move the output"):
        embedding_smoothness(probe_of(Constant()))


@pytest.mark.parametrize("name", ["nanogpt", "bert", "seq2seq", "text_classifier"])
def test_every_swap_lowers_the_margin(name):
    measured = adversarial_tokens(zoo_probe(name))
    margins = measured.margins
    assert 1 <= len(measured.swaps) == len(margins) - 1 <= 4
    assert margins == sorted(margins, reverse=True)
    assert (measured.value is not None) == (margins[-1] < 0)
    assert len({position for position, _, _ in measured.swaps}) == len(measured.swaps)
    assert all(old != new for _, old, new in measured.swaps)


def test_one_number_a_text_has_no_other_prediction():
    class Regression(Decoder):
        def forward(self, input_ids):
            return self.head(self.hidden(input_ids)).mean(1)[:, :1]

    with pytest.raises(NotApplicable, match="there is no other prediction"):
        adversarial_tokens(probe_of(Regression(), task="classification"))


def test_rank_correlation():
    assert spearman([1.0, 2.0, 9.0], [0.1, 0.2, 0.3]) == 1
    assert spearman([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -1
    assert spearman([1.0, 1.0, 1.0], [3.0, 2.0, 1.0]) is None


@pytest.mark.parametrize("name", ["builder_attention", "builder_residual"])
def test_models_that_are_run_twice_for_one_output(name):
    assert embedding_smoothness(zoo_probe(name)).value < 1.1


def test_outputs_that_belong_to_no_token():
    class Fixed(Decoder):
        """Sixteen outputs, whatever the length of the text."""

        def forward(self, input_ids):
            hidden = self.hidden(input_ids).mean(1, keepdim=True)
            return self.head(hidden + self.positions.weight[:16])

    probe = probe_of(Fixed(), task="masked_lm")
    assert token_perturbation(probe).value == 1
    with pytest.raises(NotApplicable, match="not one a token"):
        adversarial_tokens(probe)
