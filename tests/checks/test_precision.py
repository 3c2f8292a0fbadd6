"""The model in another precision, against its error model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.checks.tier1.stability import output_stability
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of

PRECISION = next(check.function for check in all_checks() if check.name == "precision")


@pytest.mark.parametrize("case", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kind", [models.Decoder, models.OneHot, models.Patches])
def test_healthy_models_pass(kind, case):
    measured = PRECISION(probe_of(kind()), case)
    assert measured.value <= measured.limit.value


class Sines(models.Decoder):
    """Sinusoidal positions, computed in ``kind`` at every call."""

    def __init__(self, kind=None) -> None:
        super().__init__(length=512)
        self.kind = kind
        del self.positions

    def hidden(self, ids):
        x = self.tokens(ids)
        steps = torch.arange(ids.size(1), device=ids.device).to(self.kind or x.dtype)
        rates = 10000.0 ** (-torch.arange(0, 32, 2, device=ids.device) / 32)
        angles = steps[:, None] * rates.to(steps.dtype)
        x = x + torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_positions_in_half_precision_are_found_where_they_collide():
    config = {"max_seq_len": 512}
    PRECISION(probe_of(Sines(torch.float32), config), "bfloat16")
    with pytest.raises(CheckFailed, match="positions or angles are computed in half") as caught:
        PRECISION(probe_of(Sines(), config), "bfloat16")
    assert caught.value.measurement.length == 512


class Casts(models.Decoder):
    """Casts to ``dtype`` in front of its blocks, as it does by its configuration."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config

    def hidden(self, ids):
        x = super().hidden(ids)
        kind = torch.float32 if self.config["fixed"] else self.config["dtype"]
        return x + self.blocks[0](x.to(kind)).to(x.dtype)


@pytest.mark.parametrize("case", ["bfloat16", "float16", "float64"])
def test_a_dtype_of_the_configuration_is_set_as_whoever_converts_the_model_does(case):
    config = {"dtype": torch.float32, "fixed": False}
    PRECISION(probe_of(Casts(config)), case)
    assert config["dtype"] is torch.float32
    fails = CheckFailed if case == "bfloat16" else NotApplicable
    with pytest.raises(fails, match="dtype"):
        PRECISION(probe_of(Casts({**config, "fixed": True})), case)


def test_an_overflow_is_told_from_numbers_that_are_too_large():
    class Overflows(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            return x + torch.tensor(-1e9).to(x) * torch.zeros_like(x)

    with pytest.raises(CheckFailed, match="NaN or infinity where float32 is finite"):
        PRECISION(probe_of(Overflows()), "float16")

    class Large(models.Decoder):
        def forward(self, input_ids):
            return self.head(self.hidden(input_ids)) * 1e6

    with pytest.raises(NotApplicable, match="float16 ends at 65504"):
        PRECISION(probe_of(Large()), "float16")


class Louder(nn.Module):
    def forward(self, x):
        return 120 * x


class Squared(nn.Module):
    """A root mean square of numbers that are squared in the dtype of the model."""

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class LouderSquared(Squared):
    """The loud numbers are no module's result."""

    def forward(self, x):
        return super().forward(120 * x)


@pytest.mark.parametrize("parts", [(Louder, Squared), (LouderSquared,)])
def test_an_overflow_that_moved_weights_alone_make_is_none(parts):
    model = models.Decoder()
    for block in model.blocks:
        block.mlp.extend(part() for part in parts)
    measured = PRECISION(probe_of(model), "float16")
    assert "as it is; moved weights" in measured.notes[0]


def test_what_does_not_run_is_a_skip_with_the_text():
    class Wide(models.Decoder):
        def hidden(self, ids):
            return super().hidden(ids).float()

    with pytest.raises(NotApplicable, match="does not run in bfloat16: RuntimeError"):
        PRECISION(probe_of(Wide()), "bfloat16")


def test_what_torch_has_not_in_bfloat16_is_no_mixture_of_dtypes():
    class Turns(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids).to(self.head.weight.dtype)
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)))).flatten(-2)

    with pytest.raises(NotApplicable, match="does not run in bfloat16: RuntimeError"):
        PRECISION(probe_of(Turns()), "bfloat16")


def test_numbers_that_cancel_are_found_in_float64():
    class Cancels(nn.LayerNorm):
        def forward(self, x):
            x = x + 1000
            spread = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2
            return (x - x.mean(-1, keepdim=True)) / (spread.abs() + 1e-3).sqrt()

    model = models.Decoder()
    model.blocks[0].norm1 = Cancels(32)
    with pytest.raises(CheckFailed, match="numbers that nearly cancel"):
        PRECISION(probe_of(model), "float64")


def test_the_default_eps_of_a_norm_is_no_error_of_float32():
    class Small(models.Decoder):
        """Normalises vectors of the size of that eps."""

        def __init__(self):
            super().__init__()
            self.small = nn.RMSNorm(32)

        def hidden(self, ids):
            x = super().hidden(ids)
            return x + self.small(1e-4 * x) + nn.functional.rms_norm(1e-4 * x, (32,))

    PRECISION(probe_of(Small()), "float64")


class Functional(nn.Module):
    """The parameters of another model, which is called with them and is no part of this one."""

    def __init__(self, model):
        super().__init__()
        self.names = [name for name, _ in model.named_parameters()]
        self.numbers = nn.ParameterList(model.parameters())
        self.skeleton = [copy.deepcopy(model).to("meta")]

    def forward(self, input_ids):
        given = dict(zip(self.names, self.numbers, strict=True))
        return torch.func.functional_call(self.skeleton[0], given, (input_ids,))


def test_code_without_modules_is_allowed_the_rounding_of_its_products():
    model = models.Decoder()
    one, two = (probe_of(m).precision.half("bfloat16", 0) for m in (model, Functional(model)))
    assert max(one.emulated) / 2 < max(two.emulated) < max(one.emulated)


def test_a_float32_mask_does_not_spoil_float64():
    class Masked(models.Decoder):
        def hidden(self, ids):
            t = ids.size(1)
            mask = torch.full((t, t), float("-inf"), device=ids.device).triu(1)
            x = self.tokens(ids) + self.positions(torch.arange(t, device=ids.device))
            for block in self.blocks:
                x = block(x, mask=mask)
            return self.norm(x)

    PRECISION(probe_of(Masked()), "float64")


class Mixed(models.Decoder):
    """The trunk is in bfloat16, the rest is not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks.bfloat16()

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        x = x.bfloat16()
        for block in self.blocks:
            x = block(x)
        return self.norm(x.float())


@pytest.mark.parametrize("case", ["bfloat16", "float64"])
def test_a_model_in_several_dtypes_is_not_converted(case):
    with pytest.raises(NotApplicable, match="several dtypes: bfloat16, float32"):
        PRECISION(probe_of(Mixed()), case)


class Served(models.Decoder):
    forward = torch.inference_mode()(models.Decoder.forward)


def test_a_forward_in_inference_mode():
    assert PRECISION(probe_of(Served()), "bfloat16").value <= 8


class Distances(models.Decoder):
    """Distances are added to the scores of torch's own layer, by its mask."""

    def __init__(self, everywhere=False):
        super().__init__()
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)])
        self.everywhere = everywhere

    def hidden(self, ids):
        steps = torch.arange(ids.size(1))
        bias = 0.5 * (steps - steps[:, None]) - float(self.everywhere)
        bias = bias.to(self.head.weight.dtype).masked_fill(steps > steps[:, None], float("-inf"))
        return self.blocks[0](self.tokens(ids) + self.positions(steps), bias)


def test_a_bias_that_the_fast_path_takes_for_a_mask_is_named():
    with pytest.raises(CheckFailed, match="likely: a bias .* is handed to torch's own layers"):
        PRECISION(probe_of(Distances()), "float64")
    with pytest.raises(CheckFailed, match="likely: a bias .* is handed to torch's own layers"):
        output_stability(probe_of(Distances(everywhere=True)))
