"""What a model's configuration and structure declare about it, without running it."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_transformer_validate.errors import SpecError, TaskError
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.subject.signature import forward_of
from pytest_transformer_validate.task import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY = (
    "vocab_size", "n_vocab", "vocabulary_size", "src_vocab_size", "num_tokens", "n_tokens",
    "ntoken", "num_embeddings",
)  # fmt: skip
TARGET_VOCABULARY = (
    "tgt_vocab_size", "trg_vocab_size", "target_vocab_size", "decoder_vocab_size",
)  # fmt: skip
PADDING = (
    "pad_token_id", "pad_id", "pad_idx", "padding_idx", "pad_index", "pad_token",
    "src_pad_idx", "src_pad_id", "source_pad_idx",
)  # fmt: skip
IMAGE = ("image_size", "img_size", "input_size")
_MASK_IDS = ("mask_token_id", "mask_idx", "mask_id", "mask_token", "mask_index")
_SEES = re.compile(r"ViT|Vision|Image")  # in the name of a class
_IDS = {
    "input_ids", "tokens", "token_ids", "idx", "ids", "input_tokens", "src_tokens", "src_ids",
    "encoder_input_ids",
}  # fmt: skip
_PARTS = ("text_config", "decoder", "encoder", "text_encoder", "vision_config")

# Heads in `architectures` (transformers' own naming) and the task that they stand for.
_HEADS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "EncoderModel": "masked_lm",
    "ForTokenClassification": "masked_lm",
    "ForQuestionAnswering": "masked_lm",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "classification",
    "ForNextSentencePrediction": "classification",
    "ForImageClassification": "vision_classification",
}
# What the class alone declares where nothing else does: no decoder is called so.
_ENCODER = "ForMaskedLM"
# What says the same of a class that nothing else speaks of, and what says the opposite.
# MLM is a word of its own: an NGramLM is none.
_ENCODERS = re.compile(
    r"bert|(?-i:MLM|Mlm|(?<![a-z])mlm)$|mask(ed)?_?(lm|language_?model(l?ing)?)$", re.IGNORECASE
)
_DECODERS = re.compile(r"gpt|causal|decod|generat|lmhead", re.IGNORECASE)
# Origin of a task that is known by the type of the model alone, which may have a head of its own.
BY_TYPE = "model_type"
# A decoder class whose configuration says that it attends in both directions.
_BOTH_WAYS = (("is_decoder", False), ("causal", False), ("is_causal", False), ("attn_type", "bi"))


def declared(config: ModelConfig, keys: tuple[str, ...]) -> Any:
    """The first of ``keys`` in the configuration or in its parts (text, decoder, encoder)."""
    for level in levels(config):
        value = level.first(*keys)
        if value is not None:
            return value
    return None


def declared_size(config: ModelConfig, keys: tuple[str, ...]) -> int | None:
    """Like ``declared``, for a positive whole number; anything else counts as not declared."""
    value = declared(config, keys)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def special_ids(config: ModelConfig) -> set[int]:
    """Token ids that the configuration gives a meaning (padding, end, image placeholders...)."""
    found: set[int] = set()
    for level in levels(config):
        for key in level:
            if key.endswith(("_token_id", "_token_index", "_token_ids", "pad_idx", "pad_id")):
                value = level.get(key)
                values = value if isinstance(value, list | tuple) else [value]
                found.update(v for v in values if isinstance(v, int))
    return found


def declares_image(
    model: nn.Module, config: ModelConfig, names: set[str], task: TaskSpec | None
) -> bool:
    """Whether the input is an image: by its name, by the declared task, by the configuration,
    else by the modules."""
    if names & {"pixel_values", "images", "pixels", "img"}:
        return not names & {"input_ids"}
    if names & _IDS:
        return False
    if task is not None:
        return not task.reads_tokens
    convolves = any(isinstance(m, nn.Conv2d | nn.Unfold) for m in model.modules())
    if config.first(*IMAGE) is not None:
        return True
    if config.get("patch_size") is not None:  # of an image, or of bytes
        return convolves or not _has_vocabulary(model, config)
    embeds = any(isinstance(m, nn.Embedding) for m in model.modules())
    if _SEES.search(type(model).__name__):
        return convolves or not embeds
    return convolves and not embeds


def _has_vocabulary(model: nn.Module, config: ModelConfig) -> bool:
    """Whether a vocabulary is declared, and a table has a row for each of its ids."""
    size = declared_size(config, VOCABULARY)
    tables = (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    return size is not None and any(size <= rows for rows in tables)


def declared_task(model: nn.Module, config: ModelConfig, option: str | None) -> TaskSpec | None:
    """The task that an option, config.json or ``architectures`` declares, else ``None``."""
    if option is not None:
        return TaskSpec(option, "declared by --tb-task")
    named = config.get("task")
    if isinstance(named, str):
        try:
            return TaskSpec(named, "config.json")
        except SpecError as error:
            raise TaskError(f'"task" in the configuration: {error}') from error
    head = _head(model, config)
    return None if head is None else _task_of(head, model, config)


def _task_of(head: str, model: nn.Module, config: ModelConfig) -> TaskSpec | None:
    task = next((task for part, task in _HEADS.items() if part in head), None)
    translates = config.get("is_encoder_decoder") is True
    if task == "seq2seq" and not translates and not _decodes(model):
        task = "causal_lm"
    if task == "causal_lm" and translates:
        task = None
    if task in {"causal_lm", None} and not translates:
        for key, value in _BOTH_WAYS:
            if _given(config, key) == value and _follows(model, key, value):
                return TaskSpec("masked_lm", f"config: {key}={value!r}")
    if task is None:
        return _registered_task(config)
    by = "architectures" if config.get("architectures") or config.get("model_type") else "class"
    return TaskSpec(task, f"{by}: {head}")


def _registered_task(config: ModelConfig) -> TaskSpec | None:
    """For a model without a head: the language model that transformers registers for its type."""
    if config.get("is_encoder_decoder") is True:
        return None
    kind = config.get("model_type")
    task = next(iter(_registered(kind)), None)
    return None if task is None else TaskSpec(task, f"{BY_TYPE}: {kind}")


def decoder_type(config: ModelConfig, task: TaskSpec) -> str | None:
    """The ``model_type`` of a decoder that has a head for each token: of one that transformers
    registers as a causal language model and as no encoder, its head alone says what it is for."""
    kind = config.get("model_type")
    by_head = task.task_type == "masked_lm" and task.origin.startswith("architectures")
    return str(kind) if by_head and _registered(kind) == ["causal_lm"] else None


def named_like_an_encoder(model: nn.Module) -> bool:
    """Whether a class is called like the encoders that fill in masked tokens."""
    name = type(model).__name__
    return bool(_ENCODERS.search(name)) and not _DECODERS.search(name)


def kept_mask(model: nn.Module) -> str | None:
    """The attribute under which a model keeps the id that stands in place of a token to be filled
    in; ``None`` where it keeps none."""
    kept = ((name, vars(model).get(name)) for name in _MASK_IDS)
    named_alike = bool(_DECODERS.search(type(model).__name__))
    return None if named_alike else next((n for n, value in kept if type(value) is int), None)


def encoder_inside(model: nn.Module) -> str | None:
    """The class of the Hugging Face model that a wrapper calls, where it declares that it looks
    in both directions; of several, all have to."""
    parts = list(_whole_models(model))
    tasks = [declared_task(part, ModelConfig(part.config), None) for part in parts]
    encodes = all(task is not None and task.task_type == "masked_lm" for task in tasks)
    return type(parts[0]).__name__ if parts and encodes else None


def _whole_models(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with a configuration that names a type of model."""
    for child in model.children():
        if isinstance(getattr(getattr(child, "config", None), "model_type", None), str):
            yield child
        else:
            yield from _whole_models(child)


def _registered(kind: object) -> list[str]:
    """The language models that transformers has for a type."""
    if "transformers" not in sys.modules:
        return []
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    registries = {
        "causal_lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked_lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    return [task for task, registry in registries.items() if kind in registry]


def _head(model: nn.Module, config: ModelConfig) -> str | None:
    """The class with a head that a Hugging Face model is or is made from, whatever the checkpoint
    was saved as; else the architecture that its configuration names, or its class, or one that
    is named like such an encoder."""
    own, named = type(model).__name__, config.get("architectures")
    saved_as = named[0] if isinstance(named, list | tuple) and named else None
    if config.get("model_type") is None and not isinstance(saved_as, str):
        return own if own.endswith(_ENCODER) else None
    kinds = (kind.__name__ for kind in type(model).__mro__ if issubclass(kind, nn.Module))
    headed = next((kind for kind in kinds if any(part in kind for part in _HEADS)), None)
    return headed or (saved_as if isinstance(saved_as, str) else own)


def _decodes(model: nn.Module) -> bool:
    return "decoder_input_ids" in inspect.signature(forward_of(model)).parameters


def _follows(model: nn.Module, key: str, value: object) -> bool:
    """Whether the modules follow the key: one that none of them carries changes nothing."""
    if key != "is_decoder":
        return True
    return any(getattr(module, key, None) is value for module in model.modules())


def _given(config: ModelConfig, key: str) -> Any:
    value = config.get(key)
    return value if isinstance(value, bool | str) else None


def levels(config: ModelConfig) -> Iterator[ModelConfig]:
    """The configuration and its parts."""
    yield config
    for part in _PARTS:
        value = config.get(part)
        if value is not None and not isinstance(value, str | int | float | list | tuple):
            yield ModelConfig(value)
