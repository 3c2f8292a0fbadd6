from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.settings import read_settings


def test_a_flat_config_is_as_written(write):
    settings = read_settings(write("config.json", {"vocab_size": 9, "other": "x"}))
    assert dict(settings.config) == {"vocab_size": 9, "other": "x"}
    assert settings.config.vocab_size == 9


def test_nodes_are_lifted_where_they_agree(write):
    nodes = [
        {"type": "input", "params": {"vocab_size": 9, "seq_length": 16}},
        {"type": "block", "params": {"d_model": 8, "dropout": 0.1, "task": "lm"}},
        {"type": "block", "params": {"d_model": 8, "dropout": 0.2}},
        {"type": "output"},
    ]
    graph = {"version": 1, "model_name": "Net", "nodes": nodes}
    config = read_settings(write("config.json", graph)).config
    assert config["vocab_size"] == 9
    assert config["d_model"] == 8
    assert config["max_seq_len"] == config["seq_length"] == 16
    assert config["model_name"] == "Net"
    assert "dropout" not in config
    assert "task" not in config


def test_the_top_level_stands(write):
    nodes = [{"params": {"vocab_size": 9, "seq_length": 16}}, {"params": {"max_seq_len": 32}}]
    config = read_settings(write("config.json", {"vocab_size": 7, "nodes": nodes})).config
    assert (config["vocab_size"], config["max_seq_len"]) == (7, 32)


def test_a_disputed_length_is_not_guessed_from_another_key(write):
    params = [{"max_seq_len": 8}, {"max_seq_len": 9}, {"seq_length": 10}]
    config = read_settings(write("config.json", {"nodes": [{"params": p} for p in params]})).config
    assert "max_seq_len" not in config


def test_numbers_of_different_types_do_not_agree(write):
    nodes = [{"params": {"bias": 1}}, {"params": {"bias": True}}]
    assert "bias" not in read_settings(write("config.json", {"nodes": nodes})).config


@pytest.mark.parametrize("value", [0, -1, 1.5, "abc", True, 10**12, [1]])
@pytest.mark.parametrize("key", ["vocab_size", "d_model", "max_seq_len"])
def test_a_size_is_a_positive_whole_number(write, key, value):
    path = write("config.json", {key: value})
    with pytest.raises(SourceError, match=f"key {key}: must be a whole number from 1"):
        read_settings(path)


def test_a_size_in_a_node_is_checked_with_its_place(write):
    path = write("config.json", {"nodes": [{"params": {"vocab_size": "many"}}]})
    with pytest.raises(SourceError, match=r"nodes\[0\]\.params\.vocab_size.*'many'"):
        read_settings(path)


def test_no_size_and_no_layers_are_possible(write):
    read_settings(write("config.json", {"vocab_size": None, "num_layers": 0}))


def test_params_are_an_object(write):
    with pytest.raises(SourceError, match=r"nodes\[0\]\.params"):
        read_settings(write("config.json", {"nodes": [{"params": [1]}]}))


def test_declared_deviations(write):
    declared = {"causality[gradient]": "prefix LM"}
    assert read_settings(write("config.json", {"expect_fail": declared})).expect_fail == declared
    assert read_settings(write("config.json", {"a": 1})).expect_fail == {}


@pytest.mark.parametrize("declared", [["causality"], {"causality": ""}, {"": "x"}, {"a": 1}, None])
def test_a_deviation_has_a_name_and_a_reason(write, declared):
    with pytest.raises(SourceError, match="expect_fail"):
        read_settings(write("config.json", {"expect_fail": declared}))
