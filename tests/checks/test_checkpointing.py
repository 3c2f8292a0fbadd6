"""What checkpointing_equivalence says, and when it is information."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_transformer_validate.checks.tier2.checkpointing import checkpointing_equivalence
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of


class Checkpointed(models.Decoder):
    """Checkpoints behind an attribute; ``how`` is what checkpoint is told."""

    def __init__(self, **how) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.drop = nn.Dropout(0.2)
        self.how = {"use_reentrant": False, **how}

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(self.run, block, x, **self.how)
            else:
                x = self.run(block, x)
        return self.norm(x)

    def run(self, block, x):
        return self.drop(block(x))


def test_dropout_is_drawn_alike_both_times() -> None:
    model = Checkpointed()
    found = checkpointing_equivalence(probe_of(model))
    assert found.value == 0.0
    assert found.way == "grad_checkpointing"
    assert found.parts == ("blocks.0", "blocks.1", "drop")
    assert not found.notes
    assert model.grad_checkpointing is False
    assert all(p.grad is None for p in model.parameters())


def test_random_numbers_that_are_not_kept() -> None:
    with pytest.raises(CheckFailed, match="must not change a gradient") as caught:
        checkpointing_equivalence(probe_of(Checkpointed(preserve_rng_state=False)))
    assert caught.value.where == "blocks.1"
    assert "preserve_rng_state" in caught.value.message


class Masked(models.Decoder):
    """An encoder that hands its mask on, or does not where it checkpoints."""

    hands_on = True

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def forward(self, input_ids, attention_mask=None):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.size(1)))
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                given = mask if self.hands_on else None
                x = checkpoint(block, x, False, given, use_reentrant=False)
            else:
                x = block(x, False, mask)
        return self.head(self.norm(x))


def test_a_mask_that_is_not_handed_on() -> None:
    model = Masked()
    assert checkpointing_equivalence(probe_of(model, task="masked_lm")).value == 0.0
    model.hands_on = False
    with pytest.raises(CheckFailed, match="must not change the loss") as caught:
        checkpointing_equivalence(probe_of(model, task="masked_lm"))
    assert caught.value.where == "blocks.0.attention"


def test_a_model_that_checkpoints_from_the_start_is_compared_with_itself_without() -> None:
    model = Checkpointed(preserve_rng_state=False)
    model.grad_checkpointing = True
    with pytest.raises(CheckFailed, match="must not change a gradient"):
        checkpointing_equivalence(probe_of(model))
    assert model.grad_checkpointing is True


class Frozen(Checkpointed):
    def forward(self, input_ids):
        with torch.no_grad():
            return super().forward(input_ids)


def test_without_a_backward_there_is_nothing_to_repeat() -> None:
    with pytest.raises(NotApplicable, match="there is no training step to repeat: RuntimeError"):
        checkpointing_equivalence(probe_of(Frozen()))


def test_a_checkpoint_that_runs_nothing_backwards() -> None:
    class Cut(Checkpointed):
        def hidden(self, ids):
            x = self.tokens(ids)
            for block in self.blocks:
                if self.grad_checkpointing:
                    x = checkpoint(block, x.detach(), use_reentrant=True)
                else:
                    x = block(x)
            return self.norm(x)

    with pytest.raises(CheckFailed, match="is not there in one of the two"):
        checkpointing_equivalence(probe_of(Cut(use_reentrant=True)))


class Fixed(Checkpointed):
    """Trains on texts of one length only, as axial positions do."""

    def hidden(self, ids):
        if self.training and ids.size(1) != 48:
            raise ValueError("training takes 48 tokens")
        return super().hidden(ids)


def test_a_length_that_training_refuses_is_no_fault_of_checkpoints() -> None:
    with pytest.raises(NotApplicable, match="no training step to repeat: ValueError: training ta"):
        checkpointing_equivalence(probe_of(Fixed()))


class Unsupported(models.Decoder):
    supports_gradient_checkpointing = False

    def forward(self, input_ids):
        assert not self.training
        return super().forward(input_ids)


def test_what_a_model_does_not_support_is_said_before_anything_runs() -> None:
    with pytest.raises(NotApplicable, match="does not support gradient checkpointing"):
        checkpointing_equivalence(probe_of(Unsupported()))


class Raising(Checkpointed):
    def run(self, block, x):
        if self.grad_checkpointing:
            raise KeyError("cache")
        return super().run(block, x)


def test_checkpoints_of_its_own_that_raise_are_the_models_fault() -> None:
    with pytest.raises(KeyError, match="cache"):
        checkpointing_equivalence(probe_of(Raising()))


def test_a_flag_without_effect_is_said() -> None:
    model = models.Decoder()
    model.gradient_checkpointing = False
    with pytest.raises(NotApplicable, match="nothing is computed again: no memory is saved"):
        checkpointing_equivalence(probe_of(model))


def test_without_checkpoints_of_its_own_it_is_information() -> None:
    found = checkpointing_equivalence(probe_of(models.Decoder()))
    assert found.value == 0.0
    assert found.way == "blocks"
    assert found.notes[0].startswith("information: the model has no checkpointing of its own")


class Counting(models.Block):
    """What a block does depends on how often it ran: nobody said that it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, causal=True, mask=None):
        self.calls += self.training
        return super().forward(x * (1 + self.calls), causal, mask)


def test_blocks_that_cannot_be_repeated_are_information_too() -> None:
    model = models.Decoder()
    model.blocks = nn.ModuleList([Counting(), Counting()])
    found = checkpointing_equivalence(probe_of(model))
    assert found.value > 1
    assert "moves gradients by" in found.notes[0]
    assert [block.calls for block in model.blocks] == [0, 0]
    assert all("forward" not in vars(block) for block in model.blocks)


def test_transformers_models_are_told_by_their_method() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=48,
        vocab_size=61, attention_dropout=0.1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    found = checkpointing_equivalence(probe_of(model, config))
    assert found.value == 0.0
    assert found.way.endswith("checkpointing_enable()")
    assert found.parts[:1] == ("model.layers.0",) or "model.layers.0.self_attn" in found.parts
    assert not model.model.layers[0].gradient_checkpointing
