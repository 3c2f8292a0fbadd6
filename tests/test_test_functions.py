"""The notebooks' check functions: their names, what they return, and that pytest leaves them."""

from __future__ import annotations

import copy
import inspect
import sys
from types import SimpleNamespace

import pytest
import torch

from pytest_transformer_validate import (
    Result,
    test_functions,
    tier1_critical_validation,
    tier2_advanced_analysis,
)
from pytest_transformer_validate.evidence.zoo import ZOO
from tests.models import VOCAB, Decoder, Patches

CONFIG = {"vocab_size": VOCAB, "max_seq_len": 48, "max_batch_size": 8}
NAMES = [name for name in test_functions.__all__ if name.startswith("test_")]
TABLES = ["test_memory_footprint", "test_parameter_initialization", "test_shape_robustness"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder()


@pytest.mark.parametrize(
    "config",
    [CONFIG, SimpleNamespace(**CONFIG), SimpleNamespace(), None],
    ids=["dict", "namespace", "empty", "none"],
)
def test_a_config_is_anything_with_values(model, config):
    table = test_functions.test_shape_robustness(model, config)
    assert list(table.columns)[:4] == ["Case", "Input Shape", "Output Shape", "Status"]
    assert list(table["status"].unique()) == ["ok"]
    assert set(table["case"]) >= {"single_token", "full_length", "full_batch", "typical"}
    assert (table["Output Shape"] == table["output_shape"]).all()


def test_a_config_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 90}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    table = test_functions.test_shape_robustness(transformers.GPT2LMHeadModel(config), config)
    assert set(table["Status"]) == {"ok"}


def test_a_bad_shape_is_a_status(model):
    class Squeezed(Decoder):
        def forward(self, input_ids):
            return super().forward(input_ids).squeeze()

    table = test_functions.test_shape_robustness(Squeezed(), CONFIG)
    wrong = table[table["Case"] == "single_token"]
    assert wrong["Status"].str.startswith("failed: ").all()
    assert list(table[table["Case"] == "coprime"]["Status"].unique()) == ["ok"]


def test_gradients(model):
    found = test_functions.test_gradient_flow(model, CONFIG)
    assert not found["has_vanishing_gradients"]
    assert not found["has_exploding_gradients"]
    assert 0 < found["min_gradient"] < found["max_gradient"]
    columns = ["parameter", "grad_norm", "grad_mean", "grad_std", "status"]
    assert list(found["parameters"].columns) == columns
    assert len(found["parameters"]) == len(list(model.parameters()))
    assert found["parameters"]["grad_norm"].max() == found["max_gradient"]


def test_a_detached_part_is_vanishing():
    class Detached(Decoder):
        def hidden(self, ids):
            return self.norm(self.blocks[0](self.tokens(ids)).detach())

    found = test_functions.test_gradient_flow(Detached(), CONFIG)
    assert found["has_vanishing_gradients"]
    status = found["parameters"].set_index("parameter")["status"]
    assert status["tokens.weight"] == "no gradient"
    assert status["head.weight"] == "ok"


def test_stability(model):
    found = test_functions.test_output_stability(model, CONFIG, n_samples=20)
    assert list(found) == ["mean", "std", "min", "max", "has_nan", "has_inf", "dynamic_range"]
    assert found["dynamic_range"] == found["max"] - found["min"] > 0
    assert (found["has_nan"], found["has_inf"]) == (False, False)


def test_stability_counts_what_is_no_number(model):
    with torch.no_grad():
        model.head.bias[3] = float("nan")
        model.head.bias[4] = float("inf")
    found = test_functions.test_output_stability(model, CONFIG, 10)
    assert (found["has_nan"], found["has_inf"]) == (True, True)
    assert found["max"] < 100


def test_initialization(model):
    table = test_functions.test_parameter_initialization(model)
    columns = ["parameter", "shape", "mean", "std", "min", "max", "status"]
    assert list(table.columns) == columns
    row = table.set_index("parameter").loc["head.weight"]
    assert tuple(row["shape"]) == (VOCAB, 32)
    assert row["std"] == pytest.approx(float(model.head.weight.detach().std()), rel=1e-3)


def test_initialization_needs_no_forward():
    table = test_functions.test_parameter_initialization(torch.nn.Linear(2, 3))
    assert list(table["parameter"]) == ["weight", "bias"]


def test_memory(model):
    table = test_functions.test_memory_footprint(model, {**CONFIG, "max_batch_size": 16})
    columns = ["batch_size", "seq_len", "memory_mb", "per_sample_mb", "status"]
    assert list(table.columns)[:5] == columns
    assert sorted(table["batch_size"].unique()) == [1, 2, 4, 8, 16]
    assert sorted(table["seq_len"].unique()) == [24, 48]
    assert set(table["status"]) == {"ok"}
    assert (table["memory_mb"] / table["batch_size"] - table["per_sample_mb"]).abs().max() < 1e-9
    assert table["memory_mb"].is_monotonic_increasing or table["memory_mb"].min() > 0


def test_memory_leaves_out_a_batch_that_is_too_large(model):
    table = test_functions.test_memory_footprint(model, CONFIG)
    left_out = table[table["batch_size"] == 16]
    assert set(left_out["status"]) == {"skipped: max_batch_size is 8"}
    assert left_out["memory_mb"].isna().all()


def test_speed(model):
    found = test_functions.test_inference_speed(model, CONFIG, n_trials=5)
    times = ["mean_ms", "std_ms", "median_ms", "p95_ms", "p99_ms"]
    assert list(found) == [*times, "throughput_samples_per_sec"]
    assert 0 < found["median_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["throughput_samples_per_sec"] == pytest.approx(1e3 / found["mean_ms"])


def test_all_of_tier_1(model, capsys):
    result = test_functions.run_all_tier1_tests(model, CONFIG)
    assert isinstance(result, Result)
    assert {record.tier for record in result} == {1}
    assert "tier 1" in capsys.readouterr().out
    assert isinstance(test_functions.run_all_tests(Patches()), Result)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_run_is_a_message(name):
    if name == "test_parameter_initialization":
        pytest.skip("it needs no forward")
    found = getattr(test_functions, name)(torch.nn.Linear(2, 2))
    text = found["error"] if isinstance(found, dict) else found.to_string()
    assert "RuntimeError" in text


def test_an_unknown_task_is_a_message(model):
    found = test_functions.test_inference_speed(model, CONFIG, task_spec="sorcery")
    assert "unknown task 'sorcery'" in found["error"]
    spec = SimpleNamespace(task_type="lm")
    assert "error" not in test_functions.test_inference_speed(model, CONFIG, 1, task_spec=spec)


@pytest.mark.parametrize("name", NAMES)
def test_without_pandas_there_is_the_install_line(name, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = getattr(test_functions, name)(model, CONFIG)
    assert isinstance(found, dict)
    if name in TABLES:
        assert list(found) == ["error"]
    if name in (*TABLES, "test_gradient_flow"):
        assert 'pip install "pytest-transformer-validate[report]"' in found["error"]
    if name == "test_gradient_flow":
        assert found["parameters"][0]["parameter"] == "tokens.weight"


@pytest.mark.parametrize("name", test_functions.__all__)
def test_the_model_is_left_as_it_was(name):
    healthy = ZOO["nanogpt"]
    model = healthy.build(0).train()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    getattr(test_functions, name)(model, dict(healthy.config))
    assert all(value.equal(model.state_dict()[key]) for key, value in before.items())
    assert model.training
    assert model.lm_head.weight.grad.equal(torch.ones_like(model.lm_head.weight))
    assert model.transformer["wte"].weight.grad is None
    assert torch.get_rng_state().equal(state)


def test_the_names_by_tier_are_the_same():
    tiers = (tier1_critical_validation, tier2_advanced_analysis)
    for tier in tiers:
        for name in tier.__all__:
            assert getattr(tier, name) is getattr(test_functions, name)
    named = {name for tier in tiers for name in tier.__all__}
    assert named == set(test_functions.__all__) - {"run_all_tests"}


class Words:
    def encode(self, text):
        return [3 + len(word) for word in text.split()]


@pytest.mark.parametrize(("tokenizer", "length"), [(Words(), 9), (None, 16)])
def test_attention_patterns_hold_a_number_for_each_layer(model, tokenizer, length):
    found = test_functions.test_attention_patterns(model, CONFIG, tokenizer=tokenizer)
    assert list(found) == [
        "num_layers",
        "input_length",
        "collapsed_layers",
        "head_specialization_scores",
        "attention_entropy",
    ]
    assert (found["num_layers"], found["input_length"]) == (2, length)
    assert not found["collapsed_layers"]
    longest = [torch.arange(1, length + 1).log().mean().item()] * 2
    assert found["attention_entropy"] == pytest.approx(longest, rel=0.2)
    assert all(0 < score < 0.2 for score in found["head_specialization_scores"])


def test_attention_patterns_say_that_there_is_no_attention():
    model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 8), torch.nn.Linear(8, VOCAB))
    assert test_functions.test_attention_patterns(model, CONFIG) == {"error": "no attention found"}


@pytest.mark.parametrize(("ids", "length"), [(None, 11), ([5, 6, 7, 8], 4), ("tensor", 4)])
def test_attribution_has_a_number_for_each_token(model, ids, length):
    ids = torch.tensor([[5, 6, 7, 8]]) if ids == "tensor" else ids
    found = test_functions.test_attribution_analysis(model, CONFIG, input_ids=ids)
    names = ["attribution_scores", "convergence_delta", "target_position", "input_tokens"]
    assert list(found) == names
    assert len(found["attribution_scores"]) == len(found["input_tokens"]) == length
    assert found["target_position"] == length - 1
    assert abs(found["convergence_delta"]) < 1e-4
    if ids is not None:
        assert found["input_tokens"] == [5, 6, 7, 8]


def test_attribution_of_an_earlier_position_gives_later_tokens_nothing(model):
    given = {"input_ids": [5, 6, 7, 8], "target_idx": 1}
    scores = test_functions.test_attribution_analysis(model, CONFIG, **given)["attribution_scores"]
    assert scores[0] != 0 != scores[1]
    assert scores[2:] == [0, 0]


def test_attribution_of_an_image_is_rows_of_patches():
    found = test_functions.test_attribution_analysis(Patches())
    assert [len(row) for row in found["attribution_scores"]] == [4, 4, 4, 4]
    assert found["target_position"] is found["input_tokens"] is None


def test_attribution_of_two_texts_is_a_message(model):
    found = test_functions.test_attribution_analysis(model, CONFIG, input_ids=[[5, 6], [7, 8]])
    assert found == {"error": "input_ids must be one text, given 2"}


def test_robustness_has_a_number_for_each_level(model):
    found = test_functions.test_robustness(model, CONFIG, 5, [0.0, 0.1, 3.0])
    assert list(found) == [
        "noise_levels",
        "accuracy_under_noise",
        "output_stability",
        "prediction_flips",
    ]
    assert found["noise_levels"] == [0.0, 0.1, 3.0]
    assert found["accuracy_under_noise"][0] == pytest.approx(1)
    assert found["output_stability"][0] == pytest.approx(1)
    assert found["prediction_flips"][0] == 0
    assert found["accuracy_under_noise"][2] < found["accuracy_under_noise"][1]
    assert found["output_stability"][2] < found["output_stability"][1] < 1
    assert found["prediction_flips"][2] > found["prediction_flips"][1] >= 0


def test_all_of_tier_2(model, capsys):
    result = test_functions.run_all_tier2_tests(model, CONFIG)
    assert isinstance(result, Result)
    assert {record.tier for record in result} == {2}
    assert not result.failures
    assert "tier 2" in capsys.readouterr().out


@pytest.mark.parametrize("name", test_functions.__all__)
def test_what_people_type_is_taken(name):
    parameters = inspect.signature(getattr(test_functions, name)).parameters
    assert list(parameters)[:2] == ["model", "config"]
    assert {"adapter", "task_spec"} <= set(parameters)


IMPORTS = {
    "star": "from pytest_transformer_validate.test_functions import *",
    "names": "from pytest_transformer_validate.tier1_critical_validation import "
    "test_gradient_flow, test_shape_robustness",
    "module": "from pytest_transformer_validate import test_functions as test_these",
}


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
@pytest.mark.parametrize("how", IMPORTS)
def test_pytest_collects_none_of_them(pytester, how, mode):
    pytester.makepyfile(test_mine=f"{IMPORTS[how]}\n\ndef test_own():\n    pass\n")
    arguments = ["-W", "error", f"--import-mode={mode}"]
    done = pytester.runpytest_inprocess("--collect-only", "-q", *arguments)
    assert [line for line in done.outlines if "::" in line] == ["test_mine.py::test_own"]


@pytest.mark.parametrize("pattern", ["*.py", "test_*.py", "*_functions.py *_validation.py"])
def test_pytest_collects_none_of_the_package(pytester, pattern):
    package = inspect.getfile(test_functions)
    pytester.makeini(f"[pytest]\npython_files = {pattern}\npython_functions = test_* run_*\n")
    done = pytester.runpytest_inprocess("--collect-only", "-q", "-W", "error", package)
    assert done.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not [line for line in done.outlines if "::" in line]
    other = inspect.getfile(tier1_critical_validation)
    again = pytester.runpytest_inprocess("--collect-only", "-q", "-W", "error", other)
    assert again.ret == pytest.ExitCode.NO_TESTS_COLLECTED
