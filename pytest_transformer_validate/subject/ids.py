"""Ids that can be given before the vocabulary is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.subject.declared import (
    TARGET_VOCABULARY,
    VOCABULARY,
    declared_size,
    special_ids,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.subject import Subject

_MOST = 2**20  # vocabularies have less; a configuration may say anything


def few_ids(
    subject: Subject, rows: int, source: int, target: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Small ids without special ones, (rows, source), and (rows, target) for a decoder."""
    embeddings = (m for m in subject.model.modules() if isinstance(m, torch.nn.Embedding))
    tables = [m.num_embeddings for m in embeddings]
    smallest = min((t for t in tables if t > 2), default=2)
    named = declared_size(subject.config, VOCABULARY)
    special = special_ids(subject.config) | {subject.pad_id}
    tops = {
        "input_ids": min(named or smallest, smallest) if subject.decodes else named or smallest,
        "decoder_input_ids": declared_size(subject.config, TARGET_VOCABULARY)
        or min(named or smallest, smallest),
    }
    lengths = {"input_ids": source, "decoder_input_ids": target}
    inputs = {}
    for role in ("input_ids", "decoder_input_ids")[: 1 + subject.decodes]:
        most = min(tops[role], subject.fewer_ids.get(role, _MOST))
        allowed = torch.tensor([i for i in range(most) if i not in special] or [0])
        picks = torch.randint(len(allowed), (rows, lengths[role]), generator=generator)
        inputs[role] = allowed[picks]
        if subject.end_id is not None and subject.end_id < tops[role]:
            inputs[role][:, -1] = subject.end_id
    return inputs
