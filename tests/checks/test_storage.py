"""Tied weights, checkpoints and tensors that stay behind."""

from __future__ import annotations

import copy
import functools
import sys
import types

import pytest
import torch
from torch import nn

from pytest_transformer_validate import validate
from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.elsewhere import Mixed, Pretence
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models

CHECKS = {check.name: check.function for check in all_checks()}


def probe_of(model: nn.Module, config=None, rebuild=None) -> Probe:
    return Probe(Subject(model, config), rebuild=rebuild)


def seeded(build):
    def rebuild(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build()

    return rebuild


class Tied(models.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, models.VOCAB, bias=False)
        self.head.weight = self.tokens.weight


def test_a_real_tie_passes_declared_or_not():
    assert CHECKS["weight_tying"](probe_of(Tied())).shared
    measured = CHECKS["weight_tying"](probe_of(Tied(), {"tie_weights": True}))
    assert measured.declared == "tie_weights=True"
    assert {measured.table, measured.head} == {"tokens.weight", "head.weight"}


def test_a_tie_is_the_word_of_the_configuration():
    with pytest.raises(CheckFailed, match="the key is not read"):
        CHECKS["weight_tying"](probe_of(Tied(), {"tie_word_embeddings": False}))
    with pytest.raises(CheckFailed, match="are different tensors") as caught:
        CHECKS["weight_tying"](probe_of(models.Decoder(), {"tie_word_embeddings": True}))
    assert caught.value.where == "head"
    with pytest.raises(NotApplicable, match="nothing says otherwise"):
        CHECKS["weight_tying"](probe_of(models.Decoder(), {"tie_encoder_decoder": True}))
    CHECKS["weight_tying"](probe_of(models.Decoder(), {"tie_word_embeddings": False}))


class Trunk(models.Decoder):
    """A part that brings a configuration of its own, whose keys are about what it ``lists``."""

    def __init__(self, config, lists):
        super().__init__()
        self.config, self._tied_weights_keys = config, lists


class OwnHead(nn.Module):
    """A head of its own on a trunk, or the trunk's head."""

    def __init__(self, lists=None, own=True):
        super().__init__()
        self.config = types.SimpleNamespace(tie_word_embeddings=True)
        self.trunk = Trunk(self.config, lists)
        self.score = nn.Linear(32, models.VOCAB) if own else self.trunk.head

    def forward(self, input_ids):
        return self.score(self.trunk.hidden(input_ids))


def test_the_configuration_of_a_trunk_is_not_about_another_head():
    with pytest.raises(NotApplicable, match="nothing says otherwise"):
        CHECKS["weight_tying"](probe_of(OwnHead()))
    with pytest.raises(NotApplicable, match="nothing says otherwise"):
        CHECKS["weight_tying"](probe_of(OwnHead(lists=["head.weight"])))
    with pytest.raises(CheckFailed, match="are different tensors"):
        CHECKS["weight_tying"](probe_of(OwnHead(lists=["head.weight"], own=False)))


def test_a_tie_is_the_word_of_a_flag_that_is_on():
    model = models.Decoder()
    model.tie_word_embeddings = False
    with pytest.raises(NotApplicable, match="nothing says otherwise"):
        CHECKS["weight_tying"](probe_of(model))
    model.tie_word_embeddings = True
    with pytest.raises(CheckFailed, match="declared: tie_word_embeddings=True") as caught:
        CHECKS["weight_tying"](probe_of(model))
    assert caught.value.where == "head"


def test_one_table_for_both_is_tied():
    assert CHECKS["weight_tying"](probe_of(models.Indexed())).shared


def test_a_copy_and_two_parameters_are_no_tie():
    model = Tied()
    model.head.weight = nn.Parameter(model.tokens.weight.detach().clone())
    with pytest.raises(CheckFailed, match="the same numbers in two places"):
        CHECKS["weight_tying"](probe_of(model))
    model.head.weight = nn.Parameter(model.tokens.weight.data)
    with pytest.raises(CheckFailed, match="two parameters over the same memory"):
        CHECKS["weight_tying"](probe_of(model))


def test_a_tie_that_the_models_own_copy_or_conversion_ends_is_found():
    class Copies(Tied):
        def __deepcopy__(self, memo):
            twin = type(self)()
            twin.head.weight = nn.Parameter(twin.tokens.weight.detach().clone())
            return twin

    with pytest.raises(CheckFailed, match=r"one tensor until copy\.deepcopy"):
        CHECKS["weight_tying"](probe_of(Copies()))

    class Converts(Tied):
        def _apply(self, fn, recurse=True):
            super()._apply(fn, recurse)
            self.head.weight = nn.Parameter(self.tokens.weight.detach().clone())
            return self

    with pytest.raises(CheckFailed, match=r"one tensor until \.to\(dtype\)"):
        CHECKS["weight_tying"](probe_of(Converts()))


def test_a_padded_head_may_hold_the_table():
    class Padded(models.Decoder):
        def forward(self, input_ids):
            return (self.hidden(input_ids) @ self.tokens.weight.t())[..., :90]

    assert CHECKS["weight_tying"](probe_of(Padded())).shared


class Drawn(models.Decoder):
    """A random projection that no checkpoint keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(32), persistent=False)

    def hidden(self, ids):
        return super().hidden(ids) + self.noise


def test_what_is_drawn_and_not_kept_is_found_in_an_instance_that_is_built_again():
    with pytest.raises(CheckFailed, match="logits differ by") as caught:
        CHECKS["round_trip"](probe_of(Drawn(), rebuild=seeded(Drawn)))
    assert caught.value.measurement.fresh == "built again"
    measured = CHECKS["round_trip"](probe_of(Drawn()))
    assert any("loaded into a copy" in note for note in measured.notes)


class Turned(models.Decoder):
    """Token vectors turned by a table of complex numbers."""

    def __init__(self, *, persistent: bool = False) -> None:
        super().__init__()
        table = torch.polar(torch.ones(16), torch.arange(1.0, 17))
        self.register_buffer("table", table, persistent=persistent)

    def hidden(self, ids):
        pairs = torch.view_as_complex(super().hidden(ids).unflatten(-1, (16, 2)).contiguous())
        return torch.view_as_real(pairs * self.table).flatten(-2)


@pytest.mark.parametrize("persistent", [False, True])
def test_complex_buffers_come_back_in_an_instance_that_is_built_again(persistent):
    build = functools.partial(Turned, persistent=persistent)
    probe = probe_of(build(), rebuild=seeded(build))
    assert CHECKS["round_trip"](probe).fresh == "built again"
    batch = probe.batch(2, 5)
    wide = probe.in_float64().forward(batch).logits
    assert float((wide - probe.forward(batch).logits).abs().max()) < 1e-4
    assert probe.subject.model.table.dtype is torch.complex64
    with pytest.raises(NotApplicable, match="table is complex"):
        CHECKS["precision"](probe, "bfloat16")
    wide, own = probe.precision.double(0)
    assert float((wide - own).abs().max()) < 1e-4


class Rotary(models.Decoder):
    """Token vectors turned by frequencies that stay in float32 where the weights do not."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)
        self.register_buffer("inv_freq", 1e4 ** -torch.linspace(0, 1, 32), persistent=False)

    def hidden(self, ids):
        angles = torch.arange(ids.shape[1])[:, None] * self.inv_freq
        return super().hidden(ids) * angles.cos().to(torch.bfloat16)


def test_what_stays_in_float32_beside_weights_in_half_precision_is_not_rounded():
    measured = CHECKS["round_trip"](probe_of(Rotary(), rebuild=seeded(Rotary)))
    assert measured.fresh == "built again"
    whole = Rotary().to(torch.bfloat16)
    assert CHECKS["round_trip"](probe_of(whole, rebuild=seeded(Rotary))).fresh == "built again"


def test_a_model_that_keeps_its_configuration_is_built_from_it():
    class Keeps(Drawn):
        def __init__(self, config) -> None:
            super().__init__()
            self.config = config

    with pytest.raises(CheckFailed, match="built from its configuration"):
        CHECKS["round_trip"](probe_of(Keeps({"vocab_size": models.VOCAB})))


def test_a_model_that_was_changed_after_it_was_built_is_judged_on_a_copy():
    class Keeps(models.Decoder):
        def __init__(self, config) -> None:
            super().__init__()
            self.config = config
            self.scale = 1.0

        def hidden(self, ids):
            return super().hidden(ids) * self.scale

    model = Keeps({"vocab_size": models.VOCAB})
    model.scale = 3.0
    assert CHECKS["round_trip"](probe_of(model)).fresh == "a copy"


def test_a_key_that_is_dropped_is_named():
    class Drops(models.Decoder):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            kept = {k: v for k, v in state_dict.items() if not k.startswith("norm")}
            return super().load_state_dict(kept, strict=False)

    with pytest.raises(CheckFailed, match=r"not restored: norm.weight, norm.bias") as caught:
        CHECKS["round_trip"](probe_of(Drops()))
    assert caught.value.where == "norm"


def test_a_buffer_that_the_first_forward_makes_is_an_unexpected_key():
    class Late(models.Decoder):
        def hidden(self, ids):
            self.register_buffer("mask", torch.ones(ids.size(1)))
            return super().hidden(ids)

    with pytest.raises(CheckFailed, match='Unexpected key.*"mask"'):
        CHECKS["round_trip"](probe_of(Late(), rebuild=seeded(Late)))


def test_the_model_is_left_as_it_was():
    model = Drawn()
    before = copy.deepcopy(model.state_dict())
    CHECKS["round_trip"](probe_of(model))
    CHECKS["registered_tensors"](probe_of(model))
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(type(p) is nn.Parameter for p in model.parameters())


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("by", torch.full((32,), 0.3))
        self.register_buffer("kept", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


class Scaled(models.Decoder):
    def __init__(self, *, scripted: bool = False) -> None:
        super().__init__()
        self.scale = torch.jit.script(Scale()) if scripted else Scale()

    def hidden(self, ids):
        return self.scale(super().hidden(ids))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("check", ["precision", "registered_tensors", "round_trip"])
def test_the_very_tensors_are_given_back(check, scripted):
    model = Scaled(scripted=scripted)
    probe = probe_of(model)

    def held():
        tensors = (*model.named_parameters(), *model.named_buffers())
        return {n: (id(t), t.data_ptr(), t.dtype, t.tolist()) for n, t in tensors}

    before = held()
    for case in [("bfloat16",), ("float64",)] if check == "precision" else [()]:
        CHECKS[check](probe, *case)
    after = held()
    if scripted:  # whose buffers are another object whenever they are asked for
        before, after = ({n: t[1:] for n, t in each.items()} for each in (before, after))
    assert after == before


def test_a_class_is_built_again_by_validate():
    class NotKept(models.Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.noise = torch.randn(32)

        def forward(self, input_ids):
            return self.head(self.hidden(input_ids) + self.noise.to(input_ids.device))

    result = validate(NotKept, checks="round_trip")
    assert result[0].status == "failed"
    assert result[0].numbers["fresh"] == "built again"


class Table(models.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(64, 32)

    def hidden(self, ids):
        return super().hidden(ids) + self.table[: ids.size(1)]


def test_a_plain_tensor_stays_behind():
    with pytest.raises(CheckFailed, match="meets table, which stays on the CPU"):
        CHECKS["registered_tensors"](probe_of(Table()))


def test_a_device_that_is_given_to_the_constructor_is_where_the_model_is_built():
    class Told(models.Decoder):
        def __init__(self, device="cpu"):
            super().__init__()
            self.device = device

        def hidden(self, ids):
            steps = torch.arange(ids.size(1)).to(self.device)
            return self.norm(self.blocks[0](self.tokens(ids) + self.positions(steps)))

    class Fixed(Told):
        def __init__(self):
            super().__init__("cpu")

    CHECKS["registered_tensors"](probe_of(Told()))
    with pytest.raises(CheckFailed, match="the forward makes on the CPU"):
        CHECKS["registered_tensors"](probe_of(Fixed()))


device = "cpu"  # as scripts have it: "cuda" if torch.cuda.is_available() else "cpu"


def test_a_device_that_is_a_setting_of_the_file_or_the_configuration_is_set():
    class OfTheFile(models.Decoder):
        def hidden(self, ids):
            steps = torch.arange(ids.size(1), device=device)
            return self.norm(self.blocks[0](self.tokens(ids) + self.positions(steps)))

    class Configured(models.Decoder):
        def __init__(self, config):
            super().__init__()
            self.config, self.device = config, config["device"]

        def hidden(self, ids):
            steps = torch.arange(ids.size(1), device=self.config["device"]).to(self.device)
            return self.norm(self.blocks[0](self.tokens(ids) + self.positions(steps)))

    class OfTheMachine(models.Decoder):
        def __init__(self):
            super().__init__()
            self.device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")

        def hidden(self, ids):
            steps = torch.arange(ids.size(1), device=self.device)
            return self.norm(self.blocks[0](self.tokens(ids) + self.positions(steps)))

    class Forgets(OfTheFile):
        def hidden(self, ids):
            return super().hidden(ids) + torch.zeros(ids.size(1), 1)

    config = {"device": torch.device("cpu")}
    for model in (OfTheFile(), Configured(config), OfTheMachine()):
        measured = CHECKS["registered_tensors"](probe_of(model))
        assert measured.stays is None
        assert not measured.notes
    assert (device, config["device"]) == ("cpu", torch.device("cpu"))
    with pytest.raises(CheckFailed, match="the forward makes on the CPU"):
        CHECKS["registered_tensors"](probe_of(Forgets()))


def test_a_plain_tensor_that_is_moved_by_the_model_does_not():
    class Moves(Table):
        def hidden(self, ids):
            return models.Decoder.hidden(self, ids) + self.table[: ids.size(1)].to(ids.device)

    class MovesInTo(Table):
        def _apply(self, fn, recurse=True):
            super()._apply(fn, recurse)
            self.table = fn(self.table)
            return self

    for kind in (Moves, MovesInTo):
        measured = CHECKS["registered_tensors"](probe_of(kind()))
        assert measured.held == ("table",)
        assert not measured.notes


def test_numbers_and_indices_on_the_cpu_may_meet_any_tensor():
    class Mixes(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids) * torch.tensor(2.0)
            return x[torch.arange(ids.size(0))] / max(x.tolist()[0][0][0], 9)

    assert not CHECKS["registered_tensors"](probe_of(Mixes())).notes


def test_code_that_names_no_device_is_noted_and_other_code_fails():
    class CpuOnly(models.Block):
        def forward(self, x, causal=True, mask=None):
            mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool).tril()
            return super().forward(x, mask=mask)

    class Forgets(models.Block):
        def forward(self, x, causal=True, mask=None):
            mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool).tril()
            return super().forward(x + torch.zeros(1, device=x.device), mask=mask)

    model = models.Decoder()
    model.blocks[1] = CpuOnly()
    assert any(
        "written for the CPU" in n for n in CHECKS["registered_tensors"](probe_of(model)).notes
    )
    model = models.Decoder()
    model.blocks[1] = Forgets()
    model.blocks[1].attention = _Attention(32, 4)
    with pytest.raises(CheckFailed, match="without device=x.device") as caught:
        CHECKS["registered_tensors"](probe_of(model))
    assert caught.value.where == "blocks.1.attention"


class _Attention(models.Attention):
    """Names the device, as the code of a portable model does."""

    def forward(self, x, causal=True, mask=None):
        assert x.device is not None
        return super().forward(x, causal, mask)


def test_a_state_that_is_made_on_the_cpu_is_found_by_torch_itself():
    class Recurrent(models.Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(32, 32, batch_first=True)

        def hidden(self, ids):
            x = super().hidden(ids) + torch.zeros(1, device=ids.device)
            return self.gru(x, torch.zeros(1, len(ids), 32))[0]

    with pytest.raises(CheckFailed, match="without device=x.device"):
        CHECKS["registered_tensors"](probe_of(Recurrent()))


def test_parameters_in_a_list_are_found():
    class Listed(models.Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.gains = [nn.Parameter(torch.ones(32))]

        def hidden(self, ids):
            return super().hidden(ids) * self.gains[0].to(ids.device)

    with pytest.raises(CheckFailed, match=r"gains\[0\] asks for a gradient"):
        CHECKS["registered_tensors"](probe_of(Listed()))


class Listed(models.Decoder):
    """Blocks in a plain list; a teacher in one, whose results are not trained through."""

    def __init__(self, hides):
        super().__init__()
        self.teacher = [models.Block()]
        if hides:
            blocks = list(self.blocks)
            del self.blocks
            self.blocks = {"both": blocks}

    def hidden(self, ids):
        places = torch.arange(ids.size(1), device=ids.device)
        x = self.tokens(ids) + self.positions(places)
        with torch.no_grad():
            x = x + 0 * self.teacher[0].to(ids.device)(x)
        for block in self.blocks["both"] if isinstance(self.blocks, dict) else self.blocks:
            x = block(x)
        return self.norm(x)


def test_layers_in_a_plain_list_are_found_where_they_are_trained():
    healthy = Listed(hides=False)
    CHECKS["registered_tensors"](probe_of(healthy))
    assert healthy.teacher[0].norm1.weight.device.type == "cpu"
    with pytest.raises(CheckFailed, match=r"blocks\['both'\]\[0\]") as caught:
        CHECKS["registered_tensors"](probe_of(Listed(hides=True)))
    assert "nn.ModuleList" in str(caught.value)


def test_the_pretence_computes_and_refuses():
    layer = nn.GRU(4, 4, batch_first=True)
    x = torch.randn(2, 3, 4)
    expected = layer(x)[0]
    with torch.no_grad(), Pretence({}):
        there = copy.deepcopy(layer).to("meta")
        result = there(x.to("meta"))[0]
        assert result.device.type == "meta"
        assert torch.allclose(result.numbers, expected)
        with pytest.raises(Mixed):
            there(x.to("meta"))[0] + x


def test_nothing_here_imports_the_compiler():
    loaded = "torch._dynamo" in sys.modules
    CHECKS["registered_tensors"](probe_of(models.Decoder()))
    assert loaded or "torch._dynamo" not in sys.modules


def test_a_checkpoint_is_loaded_with_the_implementation_of_attention_that_the_model_runs():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": models.VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.FalconConfig(**sizes, num_attention_heads=4, alibi=True)
    config._attn_implementation = "eager"  # its sdpa scales the slopes in another way
    model = transformers.FalconForCausalLM(config).eval()
    measured = CHECKS["round_trip"](probe_of(model, config))
    assert measured.ways[-1] == "save_pretrained"


class Adapted(nn.Module):
    """A linear layer with a branch of a low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.up(self.down(x))
        return out


def test_a_model_with_adapters_is_not_loaded_by_the_class_that_has_none():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, vocab_size=models.VOCAB, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    attention = model.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj)
    measured = CHECKS["round_trip"](probe_of(model, config))
    assert "save_pretrained" not in measured.ways
    assert "no place for model.layers.0.self_attn.q_proj" in measured.notes[0]


def test_a_configuration_that_counts_more_layers_than_there_are_is_found():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, vocab_size=models.VOCAB, num_attention_heads=2)
    model = transformers.BertForMaskedLM(config).eval()
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    with pytest.raises(CheckFailed, match="Missing key"):
        CHECKS["round_trip"](probe_of(model, config))

    def build() -> nn.Module:
        again = transformers.BertForMaskedLM(config).eval()
        again.bert.encoder.layer = again.bert.encoder.layer[:1]
        return again

    with pytest.raises(CheckFailed, match="from_pretrained"):
        CHECKS["round_trip"](probe_of(model, config, seeded(build)))
