"""One call of a model: every input handed over by the name, at the place and in the form that its
forward asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import TaskError
from pytest_transformer_validate.subject.choices import as_choices
from pytest_transformer_validate.subject.declared import declared_size
from pytest_transformer_validate.subject.intermediates import Values, run_with_intermediates

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject


def call(subject: Subject, batch: Batch, extra: dict[str, Any]) -> Any:
    """What the model returns for a batch, unread; ``extra`` is handed to forward by role."""
    signature = subject.signature
    if signature.takes("use_cache"):
        extra = {"use_cache": False, **extra}
    if signature.takes("return_loss") and "labels" not in batch.inputs:
        extra = {"return_loss": False, **extra}
    if "start" in signature.required:
        extra = {"start": 0, **extra}
    if "past_key_values" in signature.required and "past_key_values" not in subject.given.forms:
        extra = {"past_key_values": None, **extra}
    if subject.setup is None and "input_pos" not in signature.required:
        return _called(subject, batch, extra)
    length = batch.inputs.get("decoder_input_ids", batch.main).shape[1]
    placed = {"input_pos": torch.arange(length, device=subject.device), **extra}
    if subject.setup is None:
        return _called(subject, batch, placed)
    with subject.setup.around(subject, batch.rows, length, extra.get("input_pos")):
        return _called(subject, batch, placed)


def _called(subject: Subject, batch: Batch, extra: dict[str, Any]) -> Any:
    model, signature = subject.model, subject.signature
    given = {**subject.given.values(subject, batch), **batch.inputs, **extra}
    if subject.time_major:
        given = {
            role: t.T if role.endswith("input_ids") or role == "labels" else t
            for role, t in given.items()
        }
    if subject.choices:
        given = {role: as_choices(role, value) for role, value in given.items()}
    positional = [given[r] for r in signature.names if r in signature.positional & set(given)]
    keywords = {
        name: given[role]
        for role, name in signature.names.items()
        if role in given and role not in signature.positional
    }
    if subject.packing is not None:
        return model(subject.packing.pack(keywords))
    if not signature.intermediates:
        return model(*positional, **keywords)

    def with_values(values: Values) -> Any:
        return model(*positional, **keywords, **values)

    blank = _blank(subject, batch)
    return run_with_intermediates(model, signature.intermediates, with_values, blank)


def _blank(subject: Subject, batch: Batch) -> torch.Tensor:
    """Zeros (B, T, width) in the place of a value that another part of the model makes."""
    width = declared_size(subject.config, ("d_model", "hidden_size", "n_embd", "embed_dim"))
    size = (*batch.main.shape, width or _width(subject.model))
    return torch.zeros(size, device=subject.device, dtype=subject.dtype)


def _width(model: torch.nn.Module) -> int:
    """The width that most embedding tables have."""
    embeddings = (m for m in model.modules() if isinstance(m, torch.nn.Embedding))
    widths = [m.embedding_dim for m in embeddings]
    if not widths:
        raise TaskError('the width of the model cannot be found; declare "d_model"')
    return max(set(widths), key=widths.count)
