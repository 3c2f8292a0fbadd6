"""Mistakes by which a row's result depends on how many rows there are."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import Mutant

_depends = partial(Mutant, check="batch_size_invariance")

MUTANTS = (
    _depends(
        name="logits_by_batch",
        family="batch_size_in_the_arithmetic",
        parent="sdpa_gpt",
        where=("(model)",),
        why="a mean over the batch that was meant for the loss",
        edits=(('{"logits": self.head(x)}', '{"logits": self.head(x) / x.size(0)}'),),
    ),
    _depends(
        name="pooled_by_all_rows",
        family="batch_size_in_the_arithmetic",
        parent="text_classifier",
        where=("pool",),
        why="the number of kept tokens is counted over the batch",
        edits=(("weights.sum(dim=1).clamp(min=1.0)", "weights.sum().clamp(min=1.0)"),),
    ),
    _depends(
        name="weights_by_batch",
        family="batch_size_in_the_arithmetic",
        parent="bert",
        where=("encoder.0.attention",),
        why="attention weights divided by the first axis, which was heads once",
        edits=(("context = probs @ value", "context = probs @ value / len(probs)"),),
    ),
    _depends(
        name="router_by_tokens",
        family="batch_size_in_the_arithmetic",
        parent="moe",
        where=("layers.0.moe",),
        why="a load-balancing factor by the number of tokens in the batch, in the forward",
        edits=(("return out.view_as(x)", "return out.view_as(x) * (64 / len(tokens)) ** 0.01"),),
    ),
    _depends(
        name="single_row_without_mask",
        family="another_path_for_one_row",
        parent="llama",
        where=("layers.0.self_attn",),
        why="a decoding path for one row skips the scale",
        edits=(
            (
                "out = weights @ v.repeat_interleave(groups, 1)",
                "if batch == 1:\n"
                "            weights = scores.masked_fill(~mask, -1e4).mul(1.01).softmax(-1)\n"
                "        out = weights @ v.repeat_interleave(groups, 1)",
            ),
        ),
    ),
    _depends(
        name="single_row_pooled_twice",
        family="another_path_for_one_row",
        parent="simple_classifier",
        where=("(model)",),
        why="squeeze drops the row axis, and the mean is taken over features",
        edits=(
            (
                "x = self.dropout(x.mean(dim=1))",
                "x = self.dropout(x.squeeze().mean(dim=-2)).expand(len(x), x.size(-1))",
            ),
            (
                "x = self.dropout(torch.relu(self.hidden(x)))",
                "x = self.dropout(torch.relu(self.hidden(x) / (1 + (len(x) == 1))))",
            ),
        ),
    ),
    _depends(
        name="image_batch_scaled",
        family="batch_size_in_the_arithmetic",
        parent="vit",
        where=("patches",),
        why="pixels normalised by the size of the batch",
        edits=(
            (
                "x = self.proj(pixel_values)",
                "x = self.proj(pixel_values / len(pixel_values) ** 0.5)",
            ),
        ),
    ),
    _depends(
        name="single_row_in_half_precision",
        family="another_path_for_one_row",
        parent="bert",
        where=("encoder.*.attention",),
        why="a fast path for serving, where texts come one by one; its rounding is 1e-3",
        edits=(
            (
                "context = probs @ value",
                "context = probs @ value\n"
                "        if len(hidden) == 1:\n"
                "            context = (probs.bfloat16() @ value.bfloat16()).to(value.dtype)",
            ),
        ),
    ),
)
