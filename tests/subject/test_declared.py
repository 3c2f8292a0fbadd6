from __future__ import annotations

import pytest
from torch import nn

from pytest_transformer_validate.errors import TaskError
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.subject.declared import (
    declared_size,
    declared_task,
    declares_image,
    encoder_inside,
    named_like_an_encoder,
    special_ids,
)
from tests.models import Decoder


@pytest.fixture(scope="module")
def encoder():
    model = Decoder()
    model.is_decoder = False
    return model


@pytest.mark.parametrize(
    ("name", "encodes"),
    [
        ("BERT", True),
        ("NomicBertModel", True),
        ("ProteinMLM", True),
        ("tiny_mlm", True),
        ("TinyMlm", True),
        ("NGramLM", False),
        ("MaskedLanguageModel", True),
        ("GPT", False),
        ("BertGenerationDecoder", False),
        ("LM", False),
    ],
)
def test_names_of_encoders(name, encodes):
    assert named_like_an_encoder(type(name, (nn.Module,), {})()) is encodes


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (
            {"architectures": ["LlavaForConditionalGeneration"]},
            "causal_lm (architectures: LlavaForConditionalGeneration)",
        ),
        (
            {"architectures": ["PerceiverForImageClassificationLearned"]},
            "vision_classification (architectures: PerceiverForImageClassificationLearned)",
        ),
        ({"task": "lm"}, "causal_lm (config.json)"),
        ({"architectures": ["GPT2LMHeadModel"]}, "causal_lm (architectures: GPT2LMHeadModel)"),
        ({"architectures": ["BertForMaskedLM"]}, "masked_lm (architectures: BertForMaskedLM)"),
        (
            {"architectures": ["UMT5EncoderModel"], "is_encoder_decoder": True},
            "masked_lm (architectures: UMT5EncoderModel)",
        ),
        (
            {"architectures": ["BertLMHeadModel"], "is_decoder": False},
            "masked_lm (config: is_decoder=False)",
        ),
        (
            {"architectures": ["XLNetLMHeadModel"], "attn_type": "bi"},
            "masked_lm (config: attn_type='bi')",
        ),
        (
            {"architectures": ["BertLMHeadModel"], "is_decoder": True},
            "causal_lm (architectures: BertLMHeadModel)",
        ),
        (
            {
                "architectures": ["T5ForConditionalGeneration"],
                "is_encoder_decoder": True,
                "is_decoder": False,
            },
            "seq2seq (architectures: T5ForConditionalGeneration)",
        ),
        (
            {"architectures": ["ViTForImageClassification"]},
            "vision_classification (architectures: ViTForImageClassification)",
        ),
    ],
)
def test_task_from_declarations(encoder, config, task):
    assert str(declared_task(encoder, ModelConfig(config), None)) == task


def test_a_key_that_no_module_follows_decides_nothing():
    config = ModelConfig({"architectures": ["GPTNeoXForCausalLM"], "is_decoder": False})
    assert declared_task(Decoder(), config, None).task_type == "causal_lm"


def test_the_option_wins():
    found = declared_task(Decoder(), ModelConfig({"task": "lm"}), "classification")
    assert str(found) == "classification (declared by --tb-task)"


def test_nothing_declared():
    assert declared_task(Decoder(), ModelConfig({"vocab_size": 9}), None) is None


def test_a_class_that_is_named_like_an_encoder_is_one():
    class TinyForMaskedLM(Decoder):
        pass

    found = declared_task(TinyForMaskedLM(), ModelConfig({"vocab_size": 9}), None)
    assert str(found) == "masked_lm (class: TinyForMaskedLM)"


@pytest.mark.parametrize("saved_as", [None, ["BertForMaskedLM"], ["Reward"]])
def test_the_head_that_a_class_is_made_from_decides(saved_as):
    class LlamaForSequenceClassification(Decoder):
        pass

    class Reward(LlamaForSequenceClassification):
        pass

    config = ModelConfig({"model_type": "llama", "architectures": saved_as})
    found = declared_task(Reward(), config, None)
    assert str(found) == "classification (architectures: LlamaForSequenceClassification)"


class Wrapper(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)


def test_an_encoder_inside_of_a_wrapper_is_one():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=8))
    llama = transformers.LlamaModel(transformers.LlamaConfig(**sizes, intermediate_size=8))
    assert encoder_inside(Wrapper(bert, nn.Linear(8, 3))) == "BertModel"
    assert encoder_inside(nn.DataParallel(bert)) == "BertModel"
    assert encoder_inside(Wrapper(llama)) is None
    assert encoder_inside(Wrapper(bert, llama)) is None
    assert encoder_inside(Decoder()) is None


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(TaskError, match="did you mean causal_lm"):
        declared_task(Decoder(), ModelConfig({"task": "casual_lm"}), None)


@pytest.mark.parametrize("value", [0, -1, True, "12", 1.5, None])
def test_only_a_positive_whole_number_is_a_size(value):
    assert declared_size(ModelConfig({"vocab_size": value}), ("vocab_size",)) is None


def test_sizes_and_ids_of_a_part():
    config = ModelConfig({"text_config": {"vocab_size": 7, "bos_token_id": 2}, "pad_token_id": 1})
    assert declared_size(config, ("vocab_size",)) == 7
    assert special_ids(config) == {1, 2}


BYTES = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
PATCHES = nn.Sequential(nn.Linear(48, 8), nn.Embedding(16, 8))
CONVOLVED = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Embedding(256, 8))


@pytest.mark.parametrize(
    ("model", "config", "name", "image"),
    [
        (BYTES, {"vocab_size": 256, "patch_size": 4}, "ids", False),
        (BYTES, {"vocab_size": 256, "patch_size": 4}, "x", False),
        (BYTES, {"patch_size": 4}, "ids", False),
        (BYTES, {"vocab_size": 256, "patch_size": 4}, "images", True),
        (BYTES, {"vocab_size": 256, "patch_size": 4, "image_size": 16}, "x", True),
        (PATCHES, {"patch_size": 4}, "x", True),
        (PATCHES, {"patch_size": 4, "vocab_size": 256}, "x", True),
        (CONVOLVED, {"patch_size": 4, "vocab_size": 256}, "x", True),
    ],
)
def test_a_patch_is_one_of_bytes_where_a_table_holds_the_vocabulary(model, config, name, image):
    assert declares_image(model, ModelConfig(config), {name}, None) is image
