"""A generate that gives something else than the model's logits say."""

from __future__ import annotations

from functools import partial

from pytest_transformer_validate.evidence.mutants.surgery import ROOT, Mutant

_generate = partial(Mutant, check="generate_equivalence", where=(ROOT,))
_choice = partial(_generate, family="choice_is_not_the_largest")
_before = partial(_generate, family="generation_reads_another_text")

MUTANTS = (
    _choice(
        name="choice_of_the_token_before",
        parent="trained_gpt",
        why="off by one: logits of the last position but one",
        edits=(
            (
                "logits = self(input_ids[:, -self.max_len :])[:, -1] / temperature",
                "logits = self(input_ids[:, -self.max_len :])[:, -2:][:, 0] / temperature",
            ),
        ),
    ),
    _choice(
        name="choice_of_one_row_for_all",
        parent="served_decoder",
        why="an argmax over the flattened batch",
        edits=(
            (
                'new = output["logits"][:, -1].argmax(dim=-1, keepdim=True)',
                'new = output["logits"][:1, -1].argmax(dim=-1, keepdim=True)\n'
                "            new = new.expand(input_ids.size(0), 1)",
            ),
        ),
    ),
    _choice(
        name="choice_by_size_without_sign",
        parent="summarizer",
        why="a penalty that was tried left the absolute value in",
        edits=(
            (
                "logits[:, -1].argmax(dim=-1, keepdim=True)",
                "logits[:, -1].abs().argmax(dim=-1, keepdim=True)",
            ),
        ),
    ),
    _choice(
        name="one_token_too_few",
        parent="served_decoder",
        why="the first new token is counted, and made before the loop in another version",
        edits=(("for _ in range(max_new_tokens):", "for _ in range(max_new_tokens - 1):"),),
    ),
    _before(
        name="last_token_alone",
        parent="trained_gpt",
        why="written for a model with a cache, used with one without",
        edits=(("self(input_ids[:, -self.max_len :])", "self(input_ids[:, -1:])"),),
    ),
    _before(
        name="context_cropped_short",
        parent="trained_gpt",
        why="the crop to the longest text uses another number",
        edits=(("self(input_ids[:, -self.max_len :])", "self(input_ids[:, -8:])"),),
    ),
    _before(
        name="context_cropped_at_its_end",
        parent="trained_gpt",
        why="the crop to the longest text keeps the first tokens",
        edits=(("self(input_ids[:, -self.max_len :])", "self(input_ids[:, : self.max_len])"),),
    ),
    _before(
        name="cached_step_at_position_zero",
        parent="served_decoder",
        why="positions of the new token start again",
        edits=(
            (
                "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new.size(1) :]",
                "positions = torch.arange(new.size(1)).expand_as(new)",
            ),
        ),
    ),
    _before(
        name="cache_of_the_prompt_only",
        parent="served_decoder",
        why="the cache is kept from the first step and not replaced",
        edits=(
            (
                'cache = output["past_key_values"]',
                'cache = output["past_key_values"] if cache is None else cache\n'
                "            attention_mask = attention_mask[:, : cache[0][0].size(2)]",
            ),
        ),
    ),
    _before(
        name="mask_ignored_in_generation",
        parent="served_decoder",
        why="generate takes a mask and makes one of its own",
        edits=(
            (
                "        if attention_mask is None:\n"
                "            attention_mask = torch.ones_like(input_ids)\n"
                "        cache, new",
                "        attention_mask = torch.ones_like(input_ids)\n        cache, new",
            ),
        ),
    ),
    _before(
        name="source_of_the_first_row",
        parent="summarizer",
        why="encoded once, for one row",
        edits=(
            (
                "source = self.encode(input_ids, None)",
                "source = self.encode(input_ids[:1], None).expand(len(input_ids), -1, -1)",
            ),
        ),
    ),
    _before(
        name="new_token_in_front",
        parent="summarizer",
        why="the new token is put on the wrong side",
        edits=(
            (
                "ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)",
                "new = logits[:, -1].argmax(dim=-1, keepdim=True)\n"
                "            ids = torch.cat([ids[:, :1], new, ids[:, 1:]], dim=1)",
            ),
        ),
    ),
)
