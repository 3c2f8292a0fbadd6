"""TaskSpec: one definition of a task for the checks and for the trainer."""

from __future__ import annotations

import json

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.task import TASKS, TaskSpec, get_default_task_specs

TEXT = ("input_ids", "attention_mask")


@pytest.mark.parametrize("task", TASKS)
def test_a_spec_survives_json(task):
    spec = TaskSpec(task, label_smoothing=0.1, special_tokens={"pad": 0})
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(TaskSpec(task, label_smoothing=0.1, special_tokens={"pad": 0}))


@pytest.mark.parametrize(
    ("task", "family", "fields", "metrics"),
    [
        (
            "lm",
            "decoder_only",
            ("input_ids", "attention_mask"),
            ("loss", "perplexity", "accuracy"),
        ),
        (
            "text_classification",
            "encoder_only",
            ("input_ids", "attention_mask"),
            ("loss", "accuracy"),
        ),
        ("vision_classification", "encoder_only", ("pixel_values",), ("loss", "accuracy")),
    ],
)
def test_what_is_left_out_follows_from_the_task(task, family, fields, metrics):
    spec = TaskSpec(task)
    assert (spec.model_family, spec.input_fields, spec.metrics) == (family, fields, metrics)
    assert spec.modality == ("vision" if task.startswith("vision") else "text")
    assert spec.shifts == (task == "lm")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task_type": "causal"}, "did you mean causal_lm"),
        ({"task_type": "lm", "model_family": "decoder"}, "decoder_only or encoder_only"),
        ({"task_type": "lm", "modality": "vision"}, "must be text, given 'vision'"),
        ({"task_type": "lm", "loss_type": "mse"}, "must be cross_entropy"),
        ({"task_type": "lm", "label_smoothing": 1.0}, "from 0 to below 1"),
        ({"task_type": "lm", "inputs": []}, "has no 'inputs'"),
    ],
)
def test_a_wrong_spec_says_what_is_allowed(given, said):
    with pytest.raises(SpecError, match=said):
        TaskSpec.from_dict(given)


def test_the_default_specs_have_their_names():
    specs = get_default_task_specs()
    assert list(specs) == ["lm_tiny", "cls_tiny", "seq2seq_tiny", "vision_tiny"]
    assert specs["vision_tiny"].output_schema == {"num_classes": 4}
    assert TaskSpec.language_modeling(vocab_size=7).additional_config == {"vocab_size": 7}
