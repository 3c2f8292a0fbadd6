"""Tiny models of the architectures of the installed transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_transformer_validate.evidence.architectures import (
    MAPPINGS,
    SAMPLE,
    Architecture,
    NotBuildable,
    architectures,
    build,
    sample,
)
from pytest_transformer_validate.evidence.shrink import (
    VOCABULARY,
    Sizes,
    tiny_config,
)
from pytest_transformer_validate.evidence.survey import survey_row

pytest.importorskip("transformers")


def pair(task: str, model_type: str) -> Architecture:
    return next(a for a in architectures(task) if a.model_type == model_type)


@pytest.mark.parametrize("task", MAPPINGS)
def test_every_task_has_architectures(task: str) -> None:
    found = architectures(task)
    assert len(found) > 20
    assert {a.task for a in found} == {task}
    assert len({a.model_type for a in found}) == len(found)


def test_without_a_task_all_are_listed() -> None:
    assert architectures() == [a for task in MAPPINGS for a in architectures(task)]


def test_the_sample_is_complete_and_covers_every_task() -> None:
    assert len(SAMPLE) == len(set(SAMPLE)) == len(sample()) >= 60
    assert {task for task, _ in SAMPLE} == set(MAPPINGS)


@pytest.mark.parametrize("architecture", sample(), ids=str)
def test_a_sample_builds_and_passes_every_check(architecture: Architecture) -> None:
    row = survey_row(architecture)
    assert not row.problem
    assert not row.alarms, [record.message for record in row.alarms]
    assert len([record for record in row.records if record.status == "passed"]) >= 7


@pytest.mark.parametrize("architecture", sample()[::3] + sample()[1::3], ids=str)
def test_a_sample_passes_tier_2(architecture: Architecture) -> None:
    row = survey_row(architecture, tier=2)
    assert not row.alarms, [record.message for record in row.alarms]
    assert len([record for record in row.records if record.status == "passed"]) >= 4


def test_the_seed_decides_the_weights() -> None:
    architecture = pair("causal_lm", "llama")
    first, same, other = (build(architecture, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    build(pair("masked_lm", "bert"), seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_what_needs_more_than_plain_inputs_is_not_buildable_for_a_reason() -> None:
    with pytest.raises(NotBuildable, match=r"^\w+(Error|Buildable): .+"):
        build(pair("causal_lm", "musicgen"))


def test_an_unknown_class_is_not_buildable() -> None:
    with pytest.raises(NotBuildable, match="NoSuchModel"):
        build(Architecture("causal_lm", "nothing", "NoSuchModel"))


def test_a_mixture_of_layers_keeps_every_kind() -> None:
    config: Any = build(pair("causal_lm", "jamba")).config
    assert set(config.layer_types) == {"linear_attention", "full_attention"}


def test_shrunk_sizes_agree() -> None:
    config: Any = build(pair("causal_lm", "mamba2")).config
    assert config.num_heads * config.head_dim == config.expand * config.hidden_size
    config = build(pair("masked_lm", "reformer")).config
    assert config.axial_pos_shape == (8, 8)
    assert sum(config.axial_pos_embds_dim) == config.hidden_size


def test_parts_of_a_composite_are_shrunk_and_overridden() -> None:
    from transformers import CLIPConfig

    config = tiny_config(CLIPConfig, Sizes(), {"vision_config": {"patch_size": 4}})
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 64
    assert (config.vision_config.patch_size, config.vision_config.image_size) == (4, 32)
    assert 0 <= config.text_config.eos_token_id < VOCABULARY


def test_special_ids_lie_inside_the_vocabulary() -> None:
    config: Any = build(pair("classification", "glm")).config
    assert all(0 <= i < VOCABULARY for i in (*config.eos_token_id, config.pad_token_id))
