"""What a model refuses: texts beyond a number that it keeps, without any table; batches."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.sources.construct import CONFIG_NAMES
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.guard import derive_seed
from pytest_transformer_validate.subject.ids import few_ids
from pytest_transformer_validate.subject.inputs import complete
from pytest_transformer_validate.subject.look import Facts, look
from pytest_transformer_validate.subject.outputs import read_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.subject import Subject

_LENGTH = re.compile(r"len|ctx|context|positions?$|block_size|max_tokens", re.IGNORECASE)
# Longer texts are given only where a limit is known.
_MOST, _MOST_OF_LARGE = 512, 64
_FLAT = (
    "forward takes one text of ids, (T,), and no batch of texts, (B, T)\n  signature: {}\n"
    "  wrap the model so that forward takes input_ids (B, T) and gives logits (B, T, V): call it "
    "with each row, and stack what it returns"
)
_FLAT_LENGTH = 11


def first_look(subject: Subject) -> Facts:
    """See ``look``; and the limit that only refusals tell. Raises SubjectError where the model
    refuses a batch because it takes one flat text, else what the first forward raised."""
    try:
        return _with_limit(subject, look(subject))
    except (AssertionError, ValueError) as error:
        if not subject.vision and _takes_flat(subject):
            raise SubjectError(_FLAT.format(subject.signature.text[:300])) from error
        raise


def _with_limit(subject: Subject, facts: Facts) -> Facts:
    """The facts with a limit where none is declared, no table tells, and the model refuses more.

    A name proposes a number, ``self.ctx_len``, given or by default; runs decide: a text of that
    length is taken, one token more is not, nor twice as many.
    """
    if subject.vision or subject.declares_length or facts.limits or facts.multiple > 1:
        return facts
    most = _MOST if subject.small else _MOST_OF_LARGE
    for length in sorted({n for n in _proposed(subject.model) if 1 < n <= most}):
        taken = (_takes(subject, n) for n in (length + 1, 2 * length))
        if not any(taken) and _takes(subject, length):
            return replace(facts, limits=(length,))
    return facts


def _proposed(model: torch.nn.Module) -> Iterator[int]:
    """Whole numbers in attributes of the modules, or of a configuration that they keep, whose
    names speak of a length."""
    for module in model.modules():
        for holder in (vars(module), *_configs(module)):
            for name, value in holder.items():
                if type(value) is int and _LENGTH.search(str(name)):
                    yield value


def _configs(module: torch.nn.Module) -> Iterator[ModelConfig]:
    for name in CONFIG_NAMES & vars(module).keys():
        kept = ModelConfig(vars(module)[name])
        if isinstance(kept.raw, dict) or hasattr(kept.raw, "__dict__"):
            yield kept


def _takes(subject: Subject, length: int) -> bool:
    generator = torch.Generator().manual_seed(derive_seed(subject.seed, "refused"))
    inputs = few_ids(subject, min(2, subject.most_rows), length, length, generator)
    try:
        subject.call(complete(subject, Batch(inputs), labels=False).to(subject.device), {})
    except Exception:  # noqa: BLE001 - a trial
        return False
    return True


def _takes_flat(subject: Subject) -> bool:
    """Whether forward runs with the ids of one text, (T,), and gives a row for each."""
    generator = torch.Generator().manual_seed(derive_seed(subject.seed, "flat"))
    ids = few_ids(subject, 1, _FLAT_LENGTH, _FLAT_LENGTH, generator)["input_ids"][0]
    try:
        logits = read_output(subject.model(ids.to(subject.device))).logits
    except Exception:  # noqa: BLE001 - a trial
        return False
    return _FLAT_LENGTH in logits.shape[:2] and logits.dim() in (2, 3)
