"""Checks of tier 3: what they judge, what they leave alone; the model is left as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier3.equality import (
    accumulation_equivalence,
    seeded_training,
)
from pytest_transformer_validate.checks.tier3.fine_tuning import fine_tuning
from pytest_transformer_validate.checks.tier3.learning import loss_curve, one_batch_overfit
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.training import largest_spike, thinned
from pytest_transformer_validate.probe.fitting import Fitting
from pytest_transformer_validate.training.trials import Trials
from tests import models
from tests.models import probe_of

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = (one_batch_overfit, loss_curve, accumulation_equivalence, seeded_training)


def test_the_model_is_left_as_it_is():
    model = models.Decoder()
    before = [(p.clone(), p._version) for p in model.parameters()]
    state = torch.get_rng_state()
    for check in CHECKS:
        check(probe_of(model))
    for parameter, (value, version) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter._version == version
        assert parameter.grad is None
    assert torch.equal(state, torch.get_rng_state())


def test_a_training_is_run_once():
    probe = probe_of(models.Decoder())
    assert Trials(probe).curve(1e-3, 4) is Trials(probe).curve(1e-3, 4)


class Normalised(models.Decoder):
    """Batch norm over rows and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(32)

    def hidden(self, ids):
        return self.batch_norm(super().hidden(ids).transpose(1, 2)).transpose(1, 2)


def test_batch_norms_compute_over_the_rows_on_purpose():
    with pytest.raises(NotApplicable, match="batch norms"):
        accumulation_equivalence(probe_of(Normalised()))


class Centred(models.Decoder):
    """Mixes rows in training, in one module or only in the backward."""

    backward = False

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(32, 32)
        self.mixer.register_forward_hook(self.mix)

    def mix(self, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        if self.backward and output.requires_grad:
            output.register_hook(lambda gradient: gradient / gradient.norm())
        return None if self.backward or not self.training else output - output.mean(0)

    def hidden(self, ids):
        hidden = super().hidden(ids)
        return hidden + self.mixer(hidden)


@pytest.mark.parametrize(
    ("backward", "likely"),
    [
        (False, "in training mode it computes something over the rows"),
        (True, "a backward by hand"),
    ],
)
def test_the_module_where_rows_mix_is_named(backward, likely):
    model = Centred()
    model.backward = backward
    with pytest.raises(CheckFailed, match=f"likely: .*{likely}") as caught:
        accumulation_equivalence(probe_of(model))
    assert caught.value.where == "mixer"
    assert "first module to differ: mixer" in str(caught.value)


class WholeRows(models.Decoder):
    """Takes rows of all its positions alone in training, as axial positions do."""

    def hidden(self, ids):
        if self.training and ids.shape[1] != self.positions.num_embeddings:
            raise ValueError("in training a row has to be whole")
        return super().hidden(ids)


def test_rows_are_as_long_as_training_asks_for():
    for check in CHECKS:
        check(probe_of(WholeRows()))


class NeverTrains(models.Decoder):
    def hidden(self, ids):
        if self.training:
            raise ValueError("not in training")
        return super().hidden(ids)


def test_a_model_that_raises_in_training_is_not_excused():
    with pytest.raises(ValueError, match="not in training"):
        loss_curve(probe_of(NeverTrains()))


class Uncopied(models.Decoder):
    """As one that holds a lock, a file, a process."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle '_thread.lock' object")


def test_a_model_that_cannot_be_copied_is_not_trained_itself():
    with pytest.raises(NotApplicable, match="cannot be copied, and it is not to be changed"):
        one_batch_overfit(probe_of(Uncopied()))


def test_it_is_built_once_more_where_that_works():
    probe = probe_of(Uncopied())
    probe.rebuild = lambda seed: Uncopied()
    assert one_batch_overfit(probe).value < 0.1


class Explodes(models.Decoder):
    """Infinite in training, as 1 / 0 would be."""

    def hidden(self, ids):
        return super().hidden(ids) * (float("inf") if self.training else 1.0)


@pytest.mark.parametrize("check", CHECKS[:2])
def test_a_loss_that_is_no_number_fails_with_the_place(check):
    with pytest.raises(CheckFailed, match="training stopped in optimizer step 1"):
        check(probe_of(Explodes()))


def test_loaded_weights_may_start_anywhere():
    model = models.Decoder()
    nn.init.normal_(model.head.weight, std=5.0)
    probe = probe_of(model)
    probe.weights = "random (seed 0)"
    with pytest.raises(CheckFailed, match="a guess among 101 outputs has ln V"):
        loss_curve(probe)
    probe = probe_of(model)
    probe.weights = "weights.safetensors"
    assert loss_curve(probe).value < 1


class TestFineTuning:
    def data(self, folder: Path, epochs: int = 2) -> Fitting:
        pytest.importorskip("datasets", reason="data files are read by it")
        path = folder / "data.txt"
        path.write_text("the cat sat on the mat\nthe dog ate the cat\n" * 30)
        return Fitting(str(path), epochs=epochs)

    def test_a_model_learns_the_data(self, tmp_path: Path) -> None:
        probe = probe_of(models.Decoder())
        probe.fitting = self.data(tmp_path)
        found = fine_tuning(probe, rate=1e-2)
        assert len(found.val) == 2
        assert found.value < 0.8 * found.start

    def test_one_that_does_not_fails(self, tmp_path: Path) -> None:
        probe = probe_of(models.Decoder())
        probe.fitting = self.data(tmp_path, epochs=1)
        with pytest.raises(CheckFailed, match="the validation loss is .* after 7 steps"):
            fine_tuning(probe, rate=0.3)

    def test_what_evaluation_alone_does_is_the_likely_cause(self, tmp_path: Path) -> None:
        class Cold(models.Decoder):
            def forward(self, input_ids):
                return super().forward(input_ids) * (1 if self.training else -1)

        probe = probe_of(Cold())
        probe.fitting = self.data(tmp_path)
        with pytest.raises(CheckFailed, match="likely: it computes something else in evaluation"):
            fine_tuning(probe, rate=1e-2)

    def test_without_data_it_says_how_to_give_some(self) -> None:
        with pytest.raises(NotApplicable, match="--tb-data=PATH"):
            fine_tuning(probe_of(models.Decoder()))


def test_a_spike_is_measured_against_what_was_before():
    assert largest_spike([4.0] * 9 + [12.0] + [4.0] * 9) == pytest.approx(3.0)
    assert largest_spike([4.0, 3.0, 2.0, 1.0]) == 1.0


def test_curves_keep_their_ends():
    curve = thinned([float(n) for n in range(1_000)])
    assert len(curve) == 64
    assert (curve[0], curve[-1]) == (0.0, 999.0)
    assert curve == sorted(set(curve))
