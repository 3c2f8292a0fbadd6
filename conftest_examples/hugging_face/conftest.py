"""A Hugging Face model that is built from its config: nothing is fetched.

A directory with config.json is a spec of its own (--tb-model=folder), and so is a model of the Hub
(--tb-model=hf:org/name). The hook is for what neither can say, such as a model made small.
"""


def pytest_tb_models(config):
    return [("tiny-llama", tiny_llama)]


def tiny_llama():
    """Llama as it is, with two narrow layers: built when the first check asks for it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
