"""A model whose code lies beside its config, as repositories of the Hub have it."""

from __future__ import annotations

CONFIGURATION = """
from transformers import PreTrainedConfig

class TinyConfig(PreTrainedConfig):
    model_type = "tiny-of-a-test"

    def __init__(self, vocab_size=20, width=8, **rest):
        self.vocab_size = vocab_size
        self.width = width
        super().__init__(**rest)
"""

MODELING = """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_tiny import TinyConfig
from .parts.head import Head

class TinyPreTrained(PreTrainedModel):
    config_class = TinyConfig

class Tiny(TinyPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, config.width)
        self.head = Head(config.width, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, **rest):
        from .parts.late import scale
        return CausalLMOutput(logits=self.head(self.embed(input_ids)) * scale)
"""

HEAD = """
import torch

class Head(torch.nn.Linear):
    pass
"""

CONFIG = {
    "model_type": "tiny-of-a-test",
    "architectures": ["Tiny"],
    "auto_map": {
        "AutoConfig": "configuration_tiny.TinyConfig",
        "AutoModel": "modeling_tiny.TinyPreTrained",
        "AutoModelForCausalLM": "modeling_tiny.Tiny",
    },
    "vocab_size": 20,
    "width": 8,
    "trust_remote_code": True,
}

CODE = {
    "configuration_tiny.py": CONFIGURATION,
    "modeling_tiny.py": MODELING,
    "parts/head.py": HEAD,
    "parts/late.py": "scale = 2.0\n",
}
FILES = {"config.json": CONFIG, **CODE}
