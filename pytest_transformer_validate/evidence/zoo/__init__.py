"""Small healthy transformers, written as users write them, and how each one is built.

Every model has its own file, imports only torch and may be read, run or changed by itself. The
key names in the configs differ between models as they do in the world.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """A model that every check has to pass.

    ``module`` is the file's stem in this folder, ``factory`` its class or ``build_model``,
    ``config`` what a config.json beside it would hold (``"task"`` only where the structure cannot
    tell), ``task`` what has to be found.
    """

    name: str
    module: str
    factory: str
    config: Mapping[str, Any]
    task: str = "causal_lm"

    @property
    def path(self) -> Path:
        """The source file."""
        return Path(__file__).parent / f"{self.module}.py"

    def load(self) -> ModuleType:
        """The imported module."""
        return importlib.import_module(f"{__name__}.{self.module}")

    def build(self, seed: int = 0) -> torch.nn.Module:
        """A new instance with weights drawn from ``seed``."""
        return construct(getattr(self.load(), self.factory), self.config, seed)


def construct(
    factory: Callable[..., Any], config: Mapping[str, Any], seed: int
) -> torch.nn.Module:
    """Call a class or ``build_model`` as a source does: arguments come from the config by name.

    A parameter called ``config`` gets the whole config. The caller's random state is untouched.
    """
    parameters = inspect.signature(factory).parameters
    given = {key: config[key] for key in parameters if key in config}
    if "config" in parameters:
        given = {"config": dict(config)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module = factory(**given)
    return model


@dataclass
class _Table:
    rows: dict[str, Healthy] = field(default_factory=dict)

    def add(
        self, name: str, factory: str, config: dict[str, Any], task: str = "causal_lm"
    ) -> None:
        self.rows[name] = Healthy(
            name=name, module=name, factory=factory, config=config, task=task
        )


_table = _Table()
_table.add(
    "mha_decoder",
    "TransformerDecoderLM",
    {"vocab_size": 127, "d_model": 32, "nhead": 4, "num_layers": 2, "max_seq_len": 48},
)
_table.add(
    "sdpa_gpt",
    "GPT",
    {"vocab_size": 199, "n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64},
)
_table.add(
    "nanogpt",
    "build_model",
    {"vocab_size": 101, "n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64},
)
_table.add(
    "llama",
    "LlamaForCausalLM",
    {
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
)
_table.add(
    "alibi",
    "AlibiLM",
    {"vocab_size": 113, "dim": 32, "depth": 3, "heads": 4, "max_seq_len": 48},
)
_table.add(
    "bert",
    "BertForMaskedLM",
    {
        "task": "masked_lm",
        "vocab_size": 173,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    },
    "masked_lm",
)
_table.add(
    "seq2seq",
    "Seq2SeqTransformer",
    {
        "vocab_size": 131,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_length": 40,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    },
    "seq2seq",
)
_table.add(
    "text_classifier",
    "TextClassifier",
    {"vocab_size": 157, "num_labels": 5, "embed_dim": 32, "num_layers": 2, "max_len": 48},
    "classification",
)
_table.add(
    "simple_classifier",
    "SentimentModel",
    {"vocab_size": 167, "maxlen": 40, "embed_dim": 32, "num_heads": 2, "num_classes": 2},
    "classification",
)
_table.add(
    "vit",
    "VisionTransformer",
    {"image_size": 32, "patch_size": 8, "num_channels": 3, "num_classes": 10, "dim": 48},
    "vision_classification",
)
_table.add(
    "moe",
    "MoETransformer",
    {
        "vocab_size": 139,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "d_ff": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "max_seq_len": 48,
    },
)
_table.add(
    "torch_encoder",
    "TransformerEncoderModel",
    {"task": "masked_lm", "vocab_size": 149, "d_model": 32, "nhead": 4, "max_len": 40},
    "masked_lm",
)
_table.add(
    "torch_causal_lm",
    "build_model",
    {"vocab_size": 109, "emsize": 32, "nhead": 2, "d_hid": 64, "nlayers": 2, "max_seq_len": 35},
)
_table.add(
    "sliding_window",
    "SlidingWindowLM",
    {
        "vocab_size": 181,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "sliding_window": 8,
        "max_position_embeddings": 64,
    },
)
_table.add(
    "paired_layers",
    "PairedDecoder",
    {"num_tokens": 139, "dim": 32, "depth": 2, "heads": 4, "max_len": 48},
)
_table.add(
    "conv_gpt",
    "ConvGPT",
    {"vocab_size": 97, "dim": 32, "depth": 2, "heads": 4, "kernel_size": 4, "max_seq_len": 40},
)
_table.add(
    "recurrent",
    "HybridLM",
    {"vocab_size": 103, "width": 32, "num_layers": 2, "num_heads": 4, "max_seq_len": 48},
)
_table.add(
    "builder_attention", "CustomTransformer", {"vocab_size": 128, "d_model": 32, "max_seq_len": 32}
)
_table.add(
    "builder_residual",
    "CustomTransformer",
    {
        "version": "1.0",
        "model_name": "CustomTransformer",
        "nodes": [
            {"type": "input", "params": {"vocab_size": 160, "seq_length": 32}},
            {"type": "mhsa", "params": {"d_model": 32, "num_heads": 4}},
        ],
    },
)
_table.add(
    "cached_gpt",
    "CachedGPT",
    {"vocab_size": 107, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
)
_table.add(
    "llama_start_pos",
    "Transformer",
    {
        "vocab_size": 137,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "max_batch_size": 8,
        "max_seq_len": 48,
    },
)
_table.add(
    "window_cache",
    "WindowCacheLM",
    {
        "vocab_size": 191,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "sliding_window": 10,
        "max_position_embeddings": 64,
    },
)
_table.add(
    "cached_seq2seq",
    "CachedSeq2Seq",
    {
        "vocab_size": 163,
        "d_model": 32,
        "heads": 4,
        "num_layers": 2,
        "max_position_embeddings": 48,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    },
    "seq2seq",
)
_table.add(
    "masked_gpt",
    "MaskedGPT",
    {"vocab_size": 107, "d_model": 32, "n_heads": 4, "n_layers": 2, "n_positions": 48},
)
_table.add(
    "pad_classifier",
    "LastTokenClassifier",
    {"vocab_size": 151, "num_classes": 3, "width": 32, "max_len": 40, "pad_id": 0},
    "classification",
)
_table.add(
    "pad_translator",
    "Translator",
    {
        "src_vocab_size": 119,
        "tgt_vocab_size": 133,
        "max_len": 48,
        "src_pad_idx": 1,
        "trg_pad_idx": 1,
    },
    "seq2seq",
)
_table.add(
    "rotary_tied",
    "RotaryLM",
    {
        "vocab_size": 163,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
)
_table.add(
    "stacked_experts",
    "StackedExperts",
    {
        "vocab_size": 127,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_experts": 6,
        "experts_per_token": 2,
        "max_position": 48,
    },
)
_table.add(
    "annotated",
    "EncoderDecoder",
    {"src_vocab": 121, "tgt_vocab": 113, "N": 2, "d_model": 32, "d_ff": 64, "h": 4, "max_len": 48},
    "seq2seq",
)
_table.add(
    "given_mask",
    "MaskedDecoder",
    {"vocab_size": 137, "dim": 32, "depth": 2, "heads": 4, "context": 48},
)
_table.add(
    "torch_translation",
    "Seq2SeqTransformer",
    {
        "src_vocab_size": 107,
        "tgt_vocab_size": 151,
        "emb_size": 32,
        "nhead": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "maxlen": 40,
    },
    "seq2seq",
)
_table.add(
    "relative_encoder",
    "RelativeEncoder",
    {
        "task": "masked_lm",
        "vocab_size": 167,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "relative_attention_num_buckets": 25,
        "tie_word_embeddings": True,
    },
    "masked_lm",
)
_table.add(
    "trained_gpt",
    "TrainedGPT",
    {"vocab_size": 139, "dim": 32, "heads": 4, "layers": 2, "max_len": 48},
)
_table.add(
    "served_decoder",
    "ServedDecoder",
    {
        "vocab_size": 157,
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 6,
        "num_kv_heads": 2,
    },
)
_table.add(
    "summarizer",
    "Summarizer",
    {"vocab_size": 131, "d_model": 32, "nhead": 4, "num_layers": 2, "max_len": 48},
    "seq2seq",
)
_table.add(
    "local_encoder",
    "LocalEncoder",
    {
        "task": "masked_lm",
        "vocab_size": 149,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "local_attention": 8,
        "max_position_embeddings": 64,
    },
    "masked_lm",
)
_table.add(
    "complex_rotary",
    "ComplexRotaryLM",
    {
        "vocab_size": 167,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "max_seq_len": 48,
    },
)
_table.add(
    "length_tagger",
    "LengthTagger",
    {"task": "masked_lm", "vocab_size": 151, "num_tags": 41, "max_len": 40},
    "masked_lm",
)
_table.add(
    "length_classifier",
    "LengthClassifier",
    {"vocab_size": 137, "num_classes": 4, "max_len": 40},
    "classification",
)

ZOO: dict[str, Healthy] = _table.rows
