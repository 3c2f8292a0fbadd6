"""A tiny random model of any architecture of the installed transformers.

The pairs of a task and a model type come from the auto mappings of transformers; the sizes come
from ``shrink``. Whether a configuration is usable is found out by building and calling it: sizes
are tried in the order of a short list until one works.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.evidence.shrink import (
    LABELS,
    VOCABULARY,
    Sizes,
    shrink_special_ids,
    tiny_config,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

MAPPINGS = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "vision_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
MOST_PARAMETERS = 3_000_000
_LENGTHS = (11, 48)

_TEXT_SIZES = (
    Sizes(),
    Sizes(fill=True),
    Sizes(layers=4),
    Sizes(hidden=96),
    Sizes(hidden=128, feed_forward=256),
    Sizes(per_token=1),
)
# Large enough that the last stage of a pyramid still has several tokens to attend to.
_IMAGE_SIZES = (
    Sizes(image=128, patch=32, window=4),
    Sizes(image=128, patch=16, window=4, stage_depth=2),
    Sizes(image=128, patch=16, window=4, stage_depth=3),
    Sizes(image=64, patch=16),
)

# What no name can tell: fields whose default does not make a model that runs.
_EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "canine": {"vocab_size": VOCABULARY},
    "causal_lm:reformer": {"is_decoder": True},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
    },
    "efficientnet": {"hidden_dim": 640},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen4_exp_text": {"indexer_kv_heads": 1},
    "xmod": {"default_language": "en_XX"},
}

# Few enough for every run of the tests: all tasks, and attention of every common kind.
_SAMPLE = {
    "causal_lm": "gpt2 llama gemma2 gemma3_text mixtral bloom mistral mamba mamba2 opt qwen2 "
    "qwen3 qwen3_moe qwen3_next deepseek_v3 phi phi3 falcon gpt_neo gpt_neox gptj gpt_oss "
    "olmo2 cohere2 mpt codegen stablelm xglm bart jamba zamba2 minimax nemotron "
    "recurrent_gemma",
    "masked_lm": "bert roberta modernbert electra deberta-v2 albert distilbert mpnet longformer "
    "fnet squeezebert",
    "seq2seq": "bart t5 marian pegasus led m2m_100 switch_transformers",
    "classification": "bert gpt2 llama roberta xlnet mt5 funnel canine",
    "vision_classification": "vit swin beit convnext dinov2 resnet segformer mobilevit",
}
SAMPLE = tuple((task, name) for task, names in _SAMPLE.items() for name in names.split())


class NotBuildable(Exception):
    """The architecture has no tiny model that runs on plain inputs; the text says why."""


@dataclass(frozen=True)
class Architecture:
    """A class of transformers for a task: ``causal_lm``, ``gpt2``, ``GPT2LMHeadModel``."""

    task: str
    model_type: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.task}:{self.model_type}"


def architectures(task: str | None = None) -> list[Architecture]:
    """Every architecture of the installed transformers, of one task or of all five."""
    from transformers.models.auto import modeling_auto

    found = []
    for name in MAPPINGS if task is None else (task,):
        for model_type, classes in getattr(modeling_auto, MAPPINGS[name]).items():
            first = classes if isinstance(classes, str) else classes[0]
            found.append(Architecture(name, model_type, first))
    return found


def sample() -> list[Architecture]:
    """The architectures of ``SAMPLE`` that the installed transformers has."""
    return [a for a in architectures() if (a.task, a.model_type) in SAMPLE]


def build(architecture: Architecture, seed: int = 0) -> torch.nn.Module:
    """A tiny model with weights drawn under ``seed``, in eval mode.

    Raises NotBuildable where no configuration of at most ``MOST_PARAMETERS`` parameters builds
    and runs on ``example_inputs``; its text is the first exception.
    """
    with _quiet():
        return _construct(architecture, _sizes(architecture), seed)


def example_inputs(
    architecture: Architecture, model: torch.nn.Module, length: int = 11
) -> dict[str, Any]:
    """Plain inputs for ``model``: two rows of ``length`` ids, or two images, under its names."""
    import torch

    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    reads_ids = getattr(model, "main_input_name", "input_ids") == "input_ids"
    if architecture.task == "vision_classification" and not reads_ids:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None) or 64
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (2, getattr(vision, "num_channels", 3), height, width)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) or VOCABULARY
    low, high = vocabulary // 4, vocabulary // 2
    ids = torch.randint(low, high, (2, length), generator=generator)
    inputs: dict[str, Any] = {"input_ids": ids}
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    if architecture.task == "seq2seq":
        inputs["decoder_input_ids"] = ids.flip(1)
    elif config.is_encoder_decoder and isinstance(config.eos_token_id, int):
        ids[:, -1] = config.eos_token_id
    return inputs


@functools.cache
def _sizes(architecture: Architecture) -> Sizes:
    """The first sizes that make a model that runs."""
    vision = architecture.task == "vision_classification"
    first: Exception | None = None
    for sizes in _IMAGE_SIZES if vision else _TEXT_SIZES:
        try:
            _try(architecture, sizes)
        except Exception as error:  # noqa: BLE001 - configurations and models raise anything
            first = first or error
        else:
            return sizes
    raise NotBuildable(f"{type(first).__name__}: {first}") from first


def _try(architecture: Architecture, sizes: Sizes) -> None:
    import torch

    with torch.device("meta"):
        shape = _construct(architecture, sizes, 0)
    parameters = sum(p.numel() for p in shape.parameters())
    if parameters > MOST_PARAMETERS:
        raise NotBuildable(f"{parameters} parameters")
    model = _construct(architecture, sizes, 0)
    with torch.no_grad():
        for length in _LENGTHS:
            model(**example_inputs(architecture, model, length))


def _construct(architecture: Architecture, sizes: Sizes, seed: int) -> torch.nn.Module:
    import torch
    import transformers

    model_class = getattr(transformers, architecture.class_name)
    config = _config(architecture, model_class.config_class, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = model_class(config)
    return model.eval()


def _config(architecture: Architecture, config_class: type[Any], sizes: Sizes) -> Any:
    overrides = dict(_EXTRA.get(config_class.model_type) or _EXTRA.get(str(architecture), {}))
    if architecture.task in {"classification", "vision_classification"}:
        overrides["num_labels"] = LABELS
    config = tiny_config(config_class, sizes, overrides)
    config.architectures = [architecture.class_name]
    if config.is_encoder_decoder and not hasattr(config, "decoder_start_token_id"):
        config.decoder_start_token_id = 0
    padded = architecture.task == "classification" or sizes.fill
    for part in (config, config.get_text_config()):
        if padded and getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
        shrink_special_ids(part)
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor log lines about defaults that nobody chose."""
    from transformers.utils import logging as log

    verbosity = log.get_verbosity()
    log.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
