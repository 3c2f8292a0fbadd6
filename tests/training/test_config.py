"""TrainingConfig: valid by construction, saved and loaded, compared, built in steps."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training import presets
from pytest_transformer_validate.training.builder import TrainingConfigBuilder
from pytest_transformer_validate.training.config import DEFAULTS, RULES, TrainingConfig
from pytest_transformer_validate.training.config_file import compare_configs, load_config

if TYPE_CHECKING:
    from pathlib import Path

PREDECESSOR = {"epochs": 10, "learning_rate": 5e-5, "batch_size": 4, "random_seed": 42}
PREDECESSOR |= {"deterministic": False, "warmup_ratio": 0.1, "weight_decay": 0.01}
PREDECESSOR |= {"gradient_clip_norm": 1.0, "gradient_accumulation_steps": 1, "use_amp": True}
PREDECESSOR |= {"precision": "bf16-mixed", "compile_mode": None, "compile_fullgraph": False}
PREDECESSOR |= {"compile_dynamic": True, "early_stopping_patience": 5, "validation_split": 0.1}
PREDECESSOR |= {"strategy": "auto", "devices": "auto", "num_nodes": 1, "use_wandb": False}
PREDECESSOR |= {"checkpoint_dir": "./checkpoints", "save_every_n_epochs": 5}
PREDECESSOR |= {"keep_best_only": False, "export_bundle": False, "export_dir": "exports"}
PREDECESSOR |= {"task_name": "lm_tiny", "resume_from_checkpoint": None, "run_name": None}
PREDECESSOR |= {"wandb_project": None, "wandb_entity": None, "notes": "", "config_version": "5.0"}
PREDECESSOR |= {"max_train_samples": None, "max_val_samples": None}
PREDECESSOR |= {"export_formats": ("onnx", "torchscript")}
# What a saved config of the predecessor holds beside: facts about its model and data.
FACTS = {"model_name": "Gpt", "model_type": "gpt", "vocab_size": 50257, "max_seq_len": 128}
FACTS |= {"d_model": 64, "num_layers": 2, "num_heads": 4, "d_ff": 256, "dropout": 0.1}
FACTS |= {"dataset_name": "wikitext", "dataset_split": "train", "dataset_subset": "raw"}
FACTS |= {"eval_dataset_id": "a", "created_at": "2025-11-22T06:54:55"}


@pytest.mark.parametrize(("name", "value"), PREDECESSOR.items())
def test_defaults_are_those_of_the_predecessor(name, value):
    assert getattr(TrainingConfig(), name) == value


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_keeps_its_own_rule(name):
    assert RULES[name].accepts(DEFAULTS[name])


def test_groups_and_flat_names_are_the_same_settings():
    config = TrainingConfig(learning_rate=1e-3, epochs=2)
    assert (config.optim.learning_rate, config.loop.epochs) == (1e-3, 2)
    assert (config.learning_rate, config.epochs) == (1e-3, 2)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"max_grad_norm": 0.5}, "gradient_clip_norm", 0.5),
        ({"accumulate_grad_batches": 4}, "gradient_accumulation_steps", 4),
        ({"checkpoint_frequency": 2}, "save_every_n_epochs", 2),
        ({"precision": 32}, "precision", "32-true"),
        ({"precision": "16"}, "precision", "16-mixed"),
        ({"precision": "bf16"}, "precision", "bf16-mixed"),
        ({"strategy": "fsdp_native"}, "strategy", "fsdp"),
    ],
)
def test_other_names_mean_the_same(given, name, value):
    assert getattr(TrainingConfig(**given), name) == value


def test_two_names_of_one_setting_are_refused():
    with pytest.raises(ConfigError, match="another name of gradient_clip_norm"):
        TrainingConfig(max_grad_norm=1.0, gradient_clip_norm=2.0)


def test_all_faults_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(epochs=0, learning_rate=float("nan"), learning_rat=1, precision="8")
    assert isinstance(caught.value, ValueError)
    text = str(caught.value)
    assert "epochs: must be a whole number from 1 on, given 0" in text
    assert "learning_rate: must be a number above 0, given nan" in text
    assert "learning_rat: unknown setting; did you mean learning_rate?" in text
    assert "precision: must be one of '32-true'" in text
    assert len(caught.value.faults) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": True},
        {"epochs": 1.5},
        {"use_amp": 1},
        {"devices": 0},
        {"validation_split": 0.6},
        {"random_seed": -1},
        {"export_formats": ["pdf"]},
        {"run_name": ""},
        {"gradient_clip_norm": -1.0},
        {"compile_mode": "fast"},
    ],
)
def test_values_outside_of_their_rule_are_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        TrainingConfig(**given)


def test_a_config_does_not_change():
    config = TrainingConfig()
    with pytest.raises(AttributeError, match="replace"):
        config.epochs = 3
    assert config.replace(epochs=3).epochs == 3
    assert config.epochs == 10


def test_an_unknown_attribute_names_the_nearest():
    with pytest.raises(AttributeError, match="did you mean batch_size"):
        _ = TrainingConfig().batchsize


def test_it_is_pickled_and_compared():
    config = TrainingConfig(epochs=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(config.replace())
    assert repr(config) == "TrainingConfig(epochs=3)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compile_fullgraph": True}, "compile_fullgraph=True"),
        ({"wandb_project": "p"}, "wandb_project='p'"),
        ({"export_dir": "out"}, "export_dir='out'"),
        ({"num_nodes": 2}, "num_nodes=2"),
        ({"early_stopping_patience": None, "early_stopping_mode": "max"}, "early_stopping_mode"),
        ({"use_amp": False, "precision": "16-mixed"}, "precision='16-mixed'"),
    ],
)
def test_settings_without_effect_are_named(given, said):
    (line,) = TrainingConfig(**given).without_effect()
    assert line.startswith(said)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"compile_fullgraph": True, "compile_mode": "default"},
        {"use_wandb": True, "wandb_project": "p"},
        {"num_nodes": 2, "strategy": "ddp"},
        {"use_amp": False},
        {"early_stopping_metric": "val/accuracy", "early_stopping_mode": "max"},
    ],
)
def test_settings_with_effect_are_not(given):
    assert not list(TrainingConfig(**given).without_effect())


class TestFiles:
    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        config = TrainingConfig(epochs=3, export_formats=["onnx"], notes="née")
        assert TrainingConfig.load(config.save(tmp_path / "deep" / "c.json")) == config

    def test_the_name_is_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert TrainingConfig().save().match("config_????????_??????.json")

    def test_an_older_file_is_brought_up(self, tmp_path: Path) -> None:
        old = {"learning_rate": 1e-4, "max_grad_norm": 0.5, "wandb_project": "p"}
        old |= {"vocab_size": 50257, "model_name": "Gpt", "dataset_name": "wikitext"}
        (tmp_path / "c.json").write_text(json.dumps({**old, "config_version": "3.4.0"}))
        config = load_config(tmp_path / "c.json")
        assert (config.gradient_clip_norm, config.use_wandb, config.vocab_size) == (
            0.5,
            True,
            50257,
        )

    def test_every_field_of_the_predecessor_is_loaded(self, tmp_path: Path) -> None:
        old = {**PREDECESSOR, **FACTS, "config_version": "3.4.0", "wandb_entity": "me"}
        (tmp_path / "c.json").write_text(json.dumps(old))
        config = load_config(tmp_path / "c.json")
        assert {name: getattr(config, name) for name in FACTS} == FACTS
        assert config.export_formats == ("onnx", "torchscript")
        assert config.validate() is True

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "no JSON"),
            ("[]", "must be a JSON object, given list"),
            ('{"config_version": "6.1"}', "update pytest-transformer-validate"),
            ('{"config_version": "new"}', "must be like 5.0"),
            ('{"epoch": 1}', "did you mean epochs"),
        ],
    )
    def test_a_wrong_file_says_what_is_wrong(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / "c.json")

    def test_two_configs_are_compared(self) -> None:
        one = TrainingConfig(run_name="a", wandb_entity="me")
        other = TrainingConfig(run_name="b", learning_rate=1e-3, vocab_size=7)
        assert compare_configs(one, other) == {
            "changed": {"learning_rate": (5e-5, 1e-3)},
            "added": {"vocab_size": 7},
            "removed": {"wandb_entity": "me"},
        }


class TestBuilder:
    def test_steps_do_not_change_the_builder(self) -> None:
        start = TrainingConfigBuilder(epochs=2)
        config = (
            start.with_training(learning_rate=1e-3, batch_size=8)
            .with_optimizer(weight_decay=0.0)
            .with_scheduler(warmup_ratio=0.0)
            .with_checkpointing(frequency=1)
            .with_optimization(compile_mode="default", gradient_accumulation_steps=2)
            .build()
        )
        assert (config.epochs, config.batch_size, config.save_every_n_epochs) == (2, 8, 1)
        assert start.build().batch_size == 4

    def test_every_step_of_the_predecessor_takes_its_settings(self) -> None:
        steps = {
            "with_model": {"model_name": "Gpt", "vocab_size": 7, "max_seq_len": 8},
            "with_training": {"epochs": 3, "batch_size": 2, "validation_split": 0.2},
            "with_optimizer": {"learning_rate": 1e-3, "max_grad_norm": 0.5},
            "with_scheduler": {"warmup_ratio": 0.2},
            "with_hardware": {"precision": "32", "strategy": "ddp", "devices": 2},
            "with_logging": {"use_wandb": True, "wandb_project": "p", "run_name": "r"},
            "with_checkpointing": {"checkpoint_dir": "c", "save_every_n_epochs": 2},
            "with_export": {"export_bundle": True, "export_formats": ["onnx"]},
            "with_reproducibility": {"random_seed": 7, "deterministic": True},
            "with_dataset": {"dataset_name": "d", "max_train_samples": 9},
        }
        builder = TrainingConfigBuilder()
        for step, settings in steps.items():
            builder = getattr(builder, step)(**settings)
        config = builder.build()
        given = {name: value for settings in steps.values() for name, value in settings.items()}
        assert config == TrainingConfig(**given, created_at=config.created_at)
        for start in ("quick_prototype", "baseline", "production", "distributed", "low_memory"):
            assert getattr(TrainingConfigBuilder, start)().with_training(epochs=1).build()
        assert TrainingConfigBuilder.from_config(config).quality().build().epochs == 3
        with pytest.raises(AttributeError, match="has no step 'with_luck'"):
            TrainingConfigBuilder().with_luck()

    def test_a_setting_of_another_subject_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="with_model takes"):
            TrainingConfigBuilder().with_model(epochs=3)

    def test_presets_start_a_chain(self) -> None:
        config = TrainingConfigBuilder.low_memory().with_training(epochs=1).build()
        assert (config.epochs, config.batch_size, config.precision) == (1, 2, "16-mixed")

    def test_fast_fills_what_was_not_said(self) -> None:
        config = TrainingConfigBuilder(epochs=9).fast().build()
        assert (config.epochs, config.learning_rate) == (9, 5e-4)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("quick_prototype", {"epochs": 3, "learning_rate": 5e-4, "early_stopping_patience": 2}),
        ("baseline", {"compile_mode": "default", "epochs": 10}),
        ("production", {"epochs": 20, "deterministic": True, "max_seq_len": 256}),
        ("distributed", {"strategy": "ddp", "devices": 4, "save_every_n_epochs": 3}),
        ("low_memory", {"batch_size": 2, "max_train_samples": 10_000, "keep_best_only": True}),
    ],
)
def test_presets_are_functions(preset, settings):
    config = getattr(presets, preset)()
    assert {name: getattr(config, name) for name in settings} == settings
    idle = [line.partition("=")[0] for line in config.without_effect()]
    assert idle == ["export_bundle"] * config.export_bundle
