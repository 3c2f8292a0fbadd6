"""What one forward of a model shows about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import (
    LENGTH,
    VOCABULARY,
    declared_size,
    special_ids,
)
from pytest_transformer_validate.subject.guard import derive_seed
from pytest_transformer_validate.subject.outputs import Output, read_output
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.subject import Subject


@dataclass(frozen=True)
class Facts:
    """What one forward showed: see ``Subject.facts``.

    ``fixed_length`` is the declared maximum where the output always has that many positions.
    """

    vocabulary: int | None
    limits: tuple[int, ...]
    rank: int
    width: int
    kind: str
    output_field: str
    needs_labels: bool
    time_major: bool
    fixed_length: int | None = None


def look(subject: Subject) -> Facts:
    """One forward of (5, 7) ids, or of two images, and what it shows."""
    if subject.vision:
        batch = subject.images(2, torch.Generator().manual_seed(0))
        output = read_output(subject.call(batch, {}, time_major=False))
        return _facts(None, [], output, needs_labels=False, time_major=False)
    rows, length = 5, min(7, declared_size(subject.config, LENGTH) or 7)
    batch = _first_batch(subject, rows, length)
    with TableReader(subject.model, batch.main, length) as reader:
        raw = subject.call(batch, {}, time_major=False)
    output = read_output(raw)
    time_major = _reads_time_first(subject, batch, reader)
    needs_labels = (
        output.logits.dim() == 3
        and output.logits.shape[1] == 1 != length
        and subject.signature.takes("labels")
    )
    facts = _facts(reader.vocabulary, reader.limits, output, needs_labels, time_major)
    given = output.logits.shape[1] if output.logits.dim() == 3 else None
    if given != length and given == declared_size(subject.config, LENGTH):
        return replace(facts, fixed_length=given)
    return facts


def _first_batch(subject: Subject, rows: int, length: int) -> Batch:
    """A batch that can be made before the vocabulary is known: few, small ids."""
    embeddings = (m for m in subject.model.modules() if isinstance(m, torch.nn.Embedding))
    tables = [m.num_embeddings for m in embeddings]
    named = declared_size(subject.config, VOCABULARY)
    top = named or min((t for t in tables if t > 2), default=2)
    generator = torch.Generator().manual_seed(derive_seed(subject.seed, "facts"))
    special = special_ids(subject.config) | {subject.pad_id}
    allowed = torch.tensor([i for i in range(top) if i not in special] or [0])
    inputs = {}
    for role in ("input_ids", "decoder_input_ids")[: 1 + subject.decodes]:
        picks = torch.randint(len(allowed), (rows, length), generator=generator)
        inputs[role] = allowed[picks]
        if subject.end_id is not None and subject.end_id < top:
            inputs[role][:, -1] = subject.end_id
    return subject.complete(Batch(inputs), labels=False).to(subject.device)


def _reads_time_first(subject: Subject, batch: Batch, reader: TableReader) -> bool:
    """Declared by ``batch_first``, else seen: position tables are read to length B, not T."""
    named = subject.config.get("batch_first")
    if isinstance(named, bool):
        return not named
    batch_first = any(getattr(m, "batch_first", False) is True for m in subject.model.modules())
    if reader.limits or batch_first or subject.signature.takes("attention_mask"):
        return False
    with TableReader(subject.model, batch.main, batch.rows) as by_rows:
        subject.call(batch, {}, time_major=False)
    return bool(by_rows.limits)


def _facts(
    vocabulary: int | None,
    limits: list[int],
    output: Output,
    needs_labels: bool,
    time_major: bool,
) -> Facts:
    logits = output.logits
    return Facts(
        vocabulary=vocabulary,
        limits=tuple(limits),
        rank=logits.dim(),
        width=logits.shape[-1],
        kind=output.kind,
        output_field=output.field,
        needs_labels=needs_labels,
        time_major=time_major,
    )
