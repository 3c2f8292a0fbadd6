"""What the numbers that become figures are, by check and field, in words for a person."""

from __future__ import annotations

CAPTIONS: dict[str, dict[str, str]] = {
    "parameter_initialization": {
        "initial_loss": "loss on random labels before training",
    },
    "gradient_flow": {"depth": "gradient norm of each block, first to last"},
    "causality": {
        "effects": "how far each position (across) moves when a token (down) is replaced; red: a "
        "position saw a later token"
    },
    "memory_footprint": {
        "activations": "bytes kept for a backward, by rows x length",
        "by_length": "bytes kept for a backward, by length",
    },
    "inference_speed": {
        "by_length": "ms of the fastest forward, by length",
    },
    "prefix_consistency": {"moved": "how far outputs move in a prefix, by its length"},
    "batch_size_invariance": {"moved": "how far outputs move in a batch, by its rows"},
    "export_equivalence": {"shapes": "how far the exported model is off, by rows x length"},
    "attention_patterns": {"pictures": "attention map", "layers": "heads by layer"},
    "attention_mask": {"cells": "cells of the attention maps that were looked at"},
    "attention_scale": {
        "factors": "scale of the scores, in 1/sqrt(d)",
        "spread": "standard deviation of the scores",
    },
    "attribution": {
        "tokens": "attribution of the output to each token",
        "forbidden": "attribution to tokens that must have none",
    },
    "token_perturbation": {
        "effects": "how far the output moves when a token is changed, by position",
        "slope": "what the gradient says of each token, by position",
    },
    "embedding_smoothness": {
        "scales": "sizes of the noise on the embeddings",
        "gains": "how far the output moves for each",
    },
    "layer_effect": {
        "changes": "how far each layer moves what it is given",
        "sizes": "activation scale after each layer, over that before the first",
        "ranks": "effective rank after each layer",
        "capacity": "effective rank over what it could be",
    },
    "logit_lens": {
        "agreement": "predictions after each layer that are the model's",
        "divergence": "KL from the model's prediction after each layer, nats",
    },
    "one_batch_overfit": {"curves": "loss over steps, by learning rate"},
    "loss_curve": {"losses": "loss over steps"},
}
