"""What a model's configuration and structure declare about it, without running it."""

from __future__ import annotations

import importlib
import inspect
import linecache
import re
import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.task import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY = (
    "vocab_size", "n_vocab", "vocabulary_size", "src_vocab_size", "num_tokens", "n_tokens",
    "ntoken", "num_embeddings",
)  # fmt: skip
LENGTH = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length",
    "max_sequence_length", "seq_length", "sequence_length", "seq_len", "block_size", "n_ctx",
    "context_length", "context_size", "ctx_len", "max_len", "max_target_positions",
)  # fmt: skip
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "depth")
CHANNELS = ("num_channels", "in_channels", "in_chans", "channels")
IMAGE = ("image_size", "img_size", "input_size")
_PARTS = ("text_config", "decoder", "encoder", "text_encoder", "vision_config")

# Head suffixes of `architectures` (transformers' own naming) and the task that they stand for.
_HEADS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForTokenClassification": "masked_lm",
    "ForQuestionAnswering": "masked_lm",
    "ForConditionalGeneration": "seq2seq",
    "ForSequenceClassification": "classification",
    "ForNextSentencePrediction": "classification",
    "ForImageClassification": "vision_classification",
}
# A decoder class whose configuration says that it attends in both directions.
_BOTH_WAYS = (("is_decoder", False), ("causal", False), ("is_causal", False), ("attn_type", "bi"))


def declared(config: ModelConfig, keys: tuple[str, ...]) -> Any:
    """The first of ``keys`` in the configuration or in its parts (text, decoder, encoder)."""
    for level in _levels(config):
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
    for level in _levels(config):
        for key in level:
            if key.endswith(("_token_id", "_token_index", "_token_ids")):
                value = level.get(key)
                values = value if isinstance(value, list | tuple) else [value]
                found.update(v for v in values if isinstance(v, int))
    return found


def declares_image(model: nn.Module, config: ModelConfig, names: set[str]) -> bool:
    """Whether the input is an image: by the name, by the configuration, else by the modules."""
    if names & {"pixel_values", "images", "pixels", "img"}:
        return not names & {"input_ids"}
    if names & {"input_ids", "tokens", "token_ids", "idx"}:
        return False
    if config.first(*IMAGE, "patch_size") is not None:
        return True
    convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
    return convolves and not any(isinstance(m, nn.Embedding) for m in model.modules())


def declared_task(model: nn.Module, config: ModelConfig, option: str | None) -> TaskSpec | None:
    """The task that an option, config.json or ``architectures`` declares, else ``None``."""
    if option is not None:
        return TaskSpec(option, "declared by --tb-task")
    named = config.get("task")
    if isinstance(named, str):
        return TaskSpec(named, "config.json")
    head = _head(model, config)
    if head is None:
        return None
    task = next((task for suffix, task in _HEADS.items() if head.endswith(suffix)), None)
    if task == "causal_lm" and config.get("is_encoder_decoder") is True:
        task = None
    if task in {"causal_lm", None}:
        for key, value in _BOTH_WAYS:
            if _given(config, key) == value and config.get("is_encoder_decoder") is not True:
                return TaskSpec("masked_lm", f"config: {key}={value!r}")
    task = task or _registered_task(config)
    return None if task is None else TaskSpec(task, f"architectures: {head}")


def _registered_task(config: ModelConfig) -> str | None:
    """For a model without a head: the language model that transformers registers for its type."""
    if "transformers" not in sys.modules:
        return None
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    kind = config.get("model_type")
    if config.get("is_encoder_decoder") is True:
        return None
    for task, registry in (
        ("causal_lm", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("masked_lm", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    ):
        if kind in registry:
            return task
    return None


def is_read(model: nn.Module, name: str) -> bool:
    """Whether a submodule is read anywhere in the source that defines the module around it.

    Assigning it (``self.norm2 = ...``) is not reading. Where the source cannot be had, or the
    submodule has no name of its own (an element of a list), the answer is yes.
    """
    above, _, own = name.rpartition(".")
    if not own.isidentifier():
        return True
    for kind in type(model.get_submodule(above)).__mro__[:-1]:
        if kind is nn.Module:
            break
        if "forward" not in vars(kind):
            continue
        forward = inspect.unwrap(vars(kind)["forward"])
        source = "".join(linecache.getlines(forward.__code__.co_filename))
        if not source or "getattr(" in source or "children(" in source or "_modules" in source:
            return True
        if re.search(rf"\.{own}\b(?!\s*(:[^=\n]+)?=[^=])", source) or f'"{own}"' in source:
            return True
    return False


def _head(model: nn.Module, config: ModelConfig) -> str | None:
    """The architecture that a Hugging Face configuration names, or the class of such a model."""
    named = config.get("architectures")
    if isinstance(named, list | tuple) and named and isinstance(named[0], str):
        return named[0]
    return type(model).__name__ if config.get("model_type") is not None else None


def _given(config: ModelConfig, key: str) -> Any:
    value = config.get(key)
    return value if isinstance(value, bool | str) else None


def _levels(config: ModelConfig) -> Iterator[ModelConfig]:
    yield config
    for part in _PARTS:
        value = config.get(part)
        if value is not None and not isinstance(value, str | int | float | list | tuple):
            yield ModelConfig(value)
