"""Architectures of transformers that break what their task promises, and why.

Each was traced to a line of that code; none of it steers a check. A declaration that no longer
fails is stale and fails itself.
"""

DEVIATIONS: dict[str, dict[str, str]] = {
    "causal_lm:git": {
        "kv_cache[padded]": "GitModel.forward puts columns for image patches in front of the mask "
        "of a cached step, also where no image was given",
    },
    "causal_lm:moshi": {
        "kv_cache[long]": "the cache is cut to the sliding window; the mask of the whole text "
        "(create_causal_mask) has no window",
    },
    "causal_lm:rwkv": {
        "kv_cache": "RwkvSelfAttention and RwkvFeedForward shift one token with a state (B, D) "
        "that broadcasts to (B, B, D)",
    },
    "causal_lm:xlstm": {
        "kv_cache[long]": "without use_cache, a text longer than max_inference_chunksize keeps "
        "its states in an xLSTMCache of the default dtype bfloat16",
    },
    "masked_lm:tapas": {
        "length_limit": "TapasEmbeddings.forward takes the smaller of a position and "
        "max_position_embeddings - 1",
    },
    "classification:tapas": {
        "length_limit": "TapasEmbeddings.forward takes the smaller of a position and "
        "max_position_embeddings - 1",
    },
    "seq2seq:fsmt": {
        "kv_cache": "FSMTModel.forward makes no causal mask with use_cache=True, whatever the "
        "number of decoder tokens",
    },
}
