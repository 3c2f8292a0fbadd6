"""Architectures of transformers that break what their task promises, and why.

Each was traced to that code; none of it steers a check. A declaration that no longer
fails is stale and fails itself.
"""

_GPT_NEO = (
    "GPTNeoSelfAttention does not scale its scores; _init_weights does not make up for it, as the "
    "Mesh TensorFlow model that it was ported from does"
)
_PROPHETNET = (
    "get_predict_relative_pos_embeddings permutes to (B, T, n-gram, H) and reads the rows as "
    "(B, n-gram, H, T)"
)
_MRA = "the attention needs a CUDA kernel; on the CPU it is zeros, in float32"
_T5GEMMA = "the index of the token that is pooled is one too large, and clamped at the end"
_YOSO = "(1 + mask / 10000).int() is 1 where the mask says 0 as where it says 1"
_YOSO_BACKWARD = (
    "YosoCumulation has a backward by hand, which is a lower bound of the derivative on purpose"
)
_RWKV = (
    "RwkvSelfAttention and RwkvFeedForward shift one token with a state (B, D) that broadcasts to "
    "(B, B, D)"
)
_TAPAS = "TapasEmbeddings.forward takes the smaller of a position and max_position_embeddings - 1"

DEVIATIONS: dict[str, dict[str, str]] = {
    "causal_lm:cpmant": {
        "causality": "a prefix LM: prompts are read in both directions",
    },
    "causal_lm:git": {
        "kv_cache[padded]": "GitModel.forward puts columns for image patches in front of the mask "
        "of a cached step, also where no image was given",
    },
    "causal_lm:gpt_neo": {"attention_scale": _GPT_NEO},
    "causal_lm:moshi": {
        "kv_cache[long]": "the cache is cut to the sliding window; the mask of the whole text "
        "(create_causal_mask) has no window",
    },
    "causal_lm:prophetnet": {"causality": _PROPHETNET, "padding[right]": _PROPHETNET},
    "causal_lm:reformer": {
        "generate_equivalence": "ReformerModelWithLMHead.prepare_inputs_for_generation drops "
        "position_ids, which a forward takes: texts padded on the left stand at other positions",
    },
    "causal_lm:rwkv": {"kv_cache": _RWKV, "generate_equivalence": _RWKV},
    "causal_lm:xlstm": {
        "kv_cache[long]": "without use_cache, a text longer than max_inference_chunksize keeps "
        "its states in an xLSTMCache of the default dtype bfloat16",
    },
    "masked_lm:mra": {"gradient_flow": _MRA, "precision[bfloat16]": _MRA},
    "masked_lm:tapas": {"length_limit": _TAPAS},
    "masked_lm:yoso": {
        "mask_effect": _YOSO,
        "attribution": _YOSO_BACKWARD,
        "gradient_flow": _YOSO_BACKWARD,
    },
    "seq2seq:fsmt": {
        "kv_cache": "FSMTModel.forward makes no causal mask with use_cache=True, whatever the "
        "number of decoder tokens",
    },
    "seq2seq:longt5": {
        "precision[float16]": "masks hold -1e10, which is -inf in float16: rows without a token "
        "to see become NaN",
    },
    "seq2seq:prophetnet": {"causality": _PROPHETNET, "padding[right]": _PROPHETNET},
    "classification:doge": {
        "padding[right]": "exp(A * softplus(dt)) is 1 for all keys while A is zeros, and behind "
        "keep_window_size topk chooses among equals otherwise for another length",
    },
    "classification:gpt_neo": {"attention_scale": _GPT_NEO},
    "classification:layoutlmv3": {
        "gradient_flow": "the tables of relative positions are read under no_grad",
    },
    "classification:markuplm": {"gradient_flow": "xpath_unitseq2_embeddings is never called"},
    "classification:mra": {
        "gradient_flow": _MRA,
        "position_sensitivity": _MRA,
        "precision[bfloat16]": _MRA,
    },
    "classification:t5gemma": {"padding[right]": _T5GEMMA},
    "classification:t5gemma2": {"padding[right]": _T5GEMMA},
    "classification:tapas": {"length_limit": _TAPAS},
    "classification:yoso": {
        "mask_effect": _YOSO,
        "attribution": _YOSO_BACKWARD,
        "gradient_flow": _YOSO_BACKWARD,
    },
    "vision_classification:cvt": {
        "attention_scale": "CvtSelfAttention scales by embed_dim**-0.5, the width of all heads, "
        "as the model that it was ported from does",
    },
    "vision_classification:mobilenet_v1": {
        "dropout": "classifier_dropout_prob is 0.999: the part to keep taken for what to drop",
    },
    "vision_classification:swiftformer": {
        "gradient_flow": "a softmax over an axis of size one: w_g has no effect",
    },
}
