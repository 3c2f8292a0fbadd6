"""A padding id that a model asks for and nothing declares, lent to its configuration.

Classifiers that look for the last token refuse a batch until they know the padding: who trains
them sets the key first, from the tokenizer.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from pytest_transformer_validate.subject.declared import special_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pytest_transformer_validate.subject.subject import Subject

_KEY = "pad_token_id"
_REFUSAL = re.compile(r"batch.*\bpad|\bpad.*batch", re.IGNORECASE | re.DOTALL)


def asks_for_padding(error: Exception) -> bool:
    """Whether a model refuses several rows because nothing tells it what padding is."""
    return isinstance(error, ValueError) and bool(_REFUSAL.search(str(error)))


def lend_padding(subject: Subject) -> None:
    """Choose the id: the tokenizer's, else the first one without another meaning. None is chosen
    where no configuration of the model has room for it."""
    if next(_holders(subject.model), None) is None:
        return
    given = getattr(subject.tokenizer, _KEY, None)
    others = {*special_ids(subject.config), subject.end_id}
    subject.lent_pad = given if isinstance(given, int) else min({*range(64)} - others)
    subject.__dict__.pop("pad_id", None)


@contextlib.contextmanager
def lent_to(model: torch.nn.Module, pad: int | None) -> Iterator[None]:
    """The id in the configurations of the model for the time of a call; no id changes nothing."""
    holders = [] if pad is None else list(_holders(model))
    for holder in holders:
        setattr(holder, _KEY, pad)
    try:
        yield
    finally:
        for holder in holders:
            setattr(holder, _KEY, None)


def _holders(model: torch.nn.Module) -> Iterator[object]:
    """The configurations in a model that have the key and no value for it."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        parts = [config, getattr(config, "text_config", None)]
        for part in parts:
            if id(part) in seen or part is None or isinstance(part, dict):
                continue
            seen.add(id(part))
            if getattr(part, _KEY, part) is None:
                yield part
