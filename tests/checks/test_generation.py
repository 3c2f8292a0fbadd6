"""What generate_equivalence says, and which generate it can call."""

from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate.checks.tier2.generation import generate_equivalence
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of


class Greedy(models.Decoder):
    """The loop of forwards and argmax; ``shift`` is a mistake in it."""

    shift = 0

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            logits = self(idx)[:, -1 - self.shift]
            idx = torch.cat([idx, logits.argmax(-1, keepdim=True)], 1)
        return idx


def test_a_loop_of_forwards_is_right() -> None:
    found = generate_equivalence(probe_of(Greedy()))
    assert found.value == 0.0
    assert found.logits is not None
    assert found.logits <= found.limit.value
    assert found.texts == 11
    assert found.tokens == 55


def test_the_first_step_that_differs_is_named() -> None:
    model = Greedy()
    model.shift = 1
    with pytest.raises(CheckFailed, match=r"new token 1 of 5 \(row \d\) is the first") as caught:
        generate_equivalence(probe_of(model))
    assert caught.value.where == "(model)"
    assert caught.value.measurement.step == 0
    assert "the logits are right and the choice is not" in caught.value.message


class NewOnly(Greedy):
    def generate(self, prompt, num_tokens, temperature=1.0, top_k=None):
        return super().generate(prompt, num_tokens)[:, prompt.size(1) :].tolist()


class Short(Greedy):
    def generate(self, idx, max_new_tokens):
        return super().generate(idx, max_new_tokens)[:, :-1]


class Foreign(Greedy):
    def generate(self, idx, max_new_tokens):
        return super().generate(idx, max_new_tokens).roll(1, 1)


class Sampled(Greedy):
    """Sampling that no argument turns off."""

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            chosen = torch.multinomial(self(idx)[:, -1].softmax(-1), 1)
            idx = torch.cat([idx, chosen], 1)
        return idx


class Cold(Greedy):
    """Sampling that a low temperature turns into a choice."""

    def generate(self, idx, steps, temperature=1.0):
        for _ in range(steps):
            chosen = torch.multinomial((self(idx)[:, -1] / temperature).softmax(-1), 1)
            idx = torch.cat([idx, chosen], 1)
        return idx


class LostText(Sampled):
    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            chosen = torch.multinomial(self(idx[:, -1:])[:, -1].softmax(-1), 1)
            idx = torch.cat([idx, chosen], 1)
        return idx


def test_new_tokens_alone_as_lists_will_do() -> None:
    assert generate_equivalence(probe_of(NewOnly())).tokens == 55


def test_a_low_temperature_is_a_choice() -> None:
    assert not generate_equivalence(probe_of(Cold())).notes


def test_of_a_draw_the_logits_are_compared() -> None:
    found = generate_equivalence(probe_of(Sampled()))
    assert "it draws its tokens: only the logits are compared" in found.notes
    with pytest.raises(CheckFailed, match="the logits inside of generate are off by"):
        generate_equivalence(probe_of(LostText()))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Short, "4 new tokens for 5 asked for"), (Foreign, "do not begin with the 11 given ones")],
)
def test_what_is_not_the_text_asked_for(kind, said) -> None:
    with pytest.raises(CheckFailed, match=said):
        generate_equivalence(probe_of(kind()))


class OfText(Greedy):
    def generate(self, prompt: str, max_new_tokens: int) -> str:
        raise AssertionError


class Asking(Greedy):
    def generate(self, idx, max_new_tokens, tokenizer):
        raise AssertionError


class Raising(Greedy):
    def generate(self, idx, max_new_tokens):
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (models.Decoder, "the model has no generate"),
        (OfText, "takes no ids"),
        (Asking, "asks for tokenizer"),
        (Raising, "generate raises RuntimeError: not today"),
    ],
)
def test_what_cannot_be_called_is_skipped_with_the_reason(kind, reason) -> None:
    with pytest.raises(NotApplicable, match=reason):
        generate_equivalence(probe_of(kind()))


class Ties(Greedy):
    """Two logits are always equal: either may be chosen."""

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return torch.cat([logits[..., :-1], logits[..., -2:-1]], -1)

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            logits = self(idx)[:, -1].flip(-1)
            idx = torch.cat([idx, models.VOCAB - 1 - logits.argmax(-1, keepdim=True)], 1)
        return idx


def test_equal_logits_may_be_chosen_either_way() -> None:
    model = Ties()
    with torch.no_grad():
        model.head.bias[-2] = 10
    assert generate_equivalence(probe_of(model)).value == 0.0


def test_transformers_generate_with_padding_and_its_configuration_back() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=48,
        vocab_size=61, max_position_embeddings=48,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.repetition_penalty = 2.0
    kept = model.generation_config
    probe = probe_of(model, config)
    found = generate_equivalence(probe)
    assert found.value == 0.0
    assert found.texts == 16
    assert [plan.padded for plan in probe.generation.plans()] == [False, False, False, True]
    assert model.generation_config is kept
    assert kept.repetition_penalty == 2.0


class Cropping(Greedy):
    """Reads no more tokens than it has positions: the last ones, or, by mistake, the first."""

    part = slice(-48, None)

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            logits = self(idx[:, self.part])[:, -1]
            idx = torch.cat([idx, logits.argmax(-1, keepdim=True)], 1)
        return idx


def test_a_text_longer_than_the_maximum_is_read_at_its_end() -> None:
    model = Cropping()
    assert probe_of(model).generation.reads_the_end() is True
    generate_equivalence(probe_of(model))
    model.part = slice(None, 48)
    with pytest.raises(CheckFailed, match="longer than the maximum the last tokens"):
        generate_equivalence(probe_of(model))
    assert probe_of(Greedy()).generation.reads_the_end() is None  # raises


class Crashing(Greedy):
    """Raises ``error`` behind the first forward, or in front of it."""

    error: Exception
    early = False

    def generate(self, idx, max_new_tokens):
        if not self.early:
            self(idx)
        raise self.error


@pytest.mark.parametrize("error", [IndexError("past"), RuntimeError("shapes"), NameError("k")])
def test_a_crash_is_the_models_own(error) -> None:
    model = Crashing()
    model.error = error
    with pytest.raises(type(error), match=str(error)):
        generate_equivalence(probe_of(model))


def test_a_generate_that_is_inherited_beside_another_forward_is_skipped() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 90}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)

    class ValueHead(transformers.GPT2LMHeadModel):
        def forward(self, input_ids, attention_mask=None, **_):
            return super().forward(input_ids, attention_mask=attention_mask).logits

    with pytest.raises(NotApplicable, match="generate raises RuntimeError"):
        generate_equivalence(probe_of(ValueHead(config), config))


@pytest.mark.parametrize(
    ("error", "early"),
    [
        (ValueError("one text at a time"), False),
        (AssertionError("no"), False),
        (AttributeError("'NoneType' object has no attribute 'decode'"), False),
        (RuntimeError("a tokenizer reads text"), True),
    ],
)
def test_a_refusal_is_skipped_with_its_text(error, early) -> None:
    model = Crashing()
    model.error, model.early = error, early
    with pytest.raises(NotApplicable, match="generate raises"):
        generate_equivalence(probe_of(model))
