"""Random inputs that a subject takes: texts without ids of a special meaning, images, and what its
forward requires beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import special_ids
from pytest_transformer_validate.subject.guard import derive_seed

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.subject import Subject


def random_batch(subject: Subject, rows: int, length: int, seed: int, source: int | None) -> Batch:
    """See ``Subject.batch``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "batch"))
    if subject.signature.asked or subject.vision:
        _ = subject.facts  # what is given beside the batch, or around it, is found there
    if subject.vision:
        return random_images(subject, rows, generator)
    if source is None or not subject.decodes:
        more = length + (2 if subject.multiple == 1 else subject.multiple)
        longer = min(more, subject.max_length or more)
        source = longer if subject.decodes and length > 1 else length
    inputs = {"input_ids": random_ids(subject, rows, source, generator)}
    if subject.decodes:
        inputs["decoder_input_ids"] = random_ids(
            subject, rows, length, generator, subject.target_vocab_size
        )
    return complete(subject, Batch(inputs)).to(subject.device)


def with_special(subject: Subject, batch: Batch) -> Batch:
    """The same batch with a special id at every other position, as far as there are any; padding
    stands behind all others, as it does in texts."""
    role = "decoder_input_ids" if subject.decodes else "input_ids"
    ids = batch[role].clone()
    pad = subject.pad_id if subject.pad_id in subject.text_ids else None
    behind = pad is not None and pad != subject.end_id
    inside = [i for i in subject.text_ids if not (behind and i == pad)]
    for place, special in zip(range(1, ids.shape[1] - 1, 2), inside, strict=False):
        ids[:, place] = special
    if pad is not None and behind:
        ids[:, -1] = pad
    return batch.with_(**{role: ids})


def random_images(subject: Subject, rows: int, generator: torch.Generator) -> Batch:
    """Random images (rows, C, H, W)."""
    pixels = torch.randn(rows, *subject.image, generator=generator)
    return Batch({"pixel_values": pixels}).to(subject.device, subject.dtype)


def random_ids(
    subject: Subject,
    rows: int,
    length: int,
    generator: torch.Generator,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """Random ids (rows, length) on the CPU, without ids that have a special meaning.

    A text of a classifier ends with the end id where there is one: models pool there.
    """
    allowed = _plain_ids(subject, vocabulary or subject.vocab_size)
    picks = torch.randint(len(allowed), (rows, length), generator=generator)
    ids = allowed[picks]
    if subject.end_id is not None and subject.ends:
        ids[:, -1] = subject.end_id
    return ids


def _plain_ids(subject: Subject, size: int) -> torch.Tensor:
    """The ids below ``size`` that have no special meaning; where fewer than two are left,
    which make no two texts, those that are no padding, or all."""
    padding = {subject.pad_id} | subject.facts.compared
    special = special_ids(subject.config) | padding
    key = (size, frozenset(special))
    if subject.plain_ids is None or subject.plain_ids[0] != key:
        left = ([i for i in range(size) if i not in out] for out in (special, padding, set()))
        subject.plain_ids = key, torch.tensor(next((ids for ids in left if len(ids) > 1), [0]))
    return subject.plain_ids[1]


def complete(subject: Subject, batch: Batch, *, labels: bool = True) -> Batch:
    """Add what forward requires in one form: an attention mask that keeps everything,
    positions, labels. What has several forms is added when the model is called."""
    signature, ids = subject.signature, batch.main
    rows, length = ids.shape
    if labels and length % subject.multiple:
        raise NotApplicable(f"lengths have to be multiples of {subject.multiple}: forward says so")
    keep = torch.ones_like(ids)
    needed: dict[str, torch.Tensor] = {
        "attention_mask": keep,
        "position_ids": torch.arange(length).expand(rows, length),
        "token_type_ids": torch.zeros_like(ids),
    }
    target = batch.inputs.get("decoder_input_ids", ids)
    if "decoder_attention_mask" in signature.required:
        needed["decoder_attention_mask"] = torch.ones_like(target)
    added = {role: t for role, t in needed.items() if role in signature.required}
    if "labels" in signature.required or (labels and subject.facts.needs_labels):
        added["labels"] = target if target.dim() == 2 else ids
    return batch.with_(**added)
