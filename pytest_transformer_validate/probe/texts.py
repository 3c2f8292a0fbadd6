"""Predictions for texts that say the same, through the model's tokenizer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.vectors import each_token
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import complete

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = (
    "The weather was lovely today, and we walked along the river.",
    "This film was a complete waste of two hours.",
    "She opened the door and found the room empty.",
    "Our train leaves the station at seven in the morning.",
    "I would recommend this restaurant to all of my friends.",
    "The results of the experiment were published last week.",
    "He could not remember where he had parked the car.",
    "The service was slow, but the food was worth the wait.",
)


@dataclass(frozen=True)
class Pair:
    """A text, the same in other letters, and whether the prediction stayed; ``moved`` is half of
    the sum of |difference| of the probabilities, 0 to 1."""

    kind: str
    text: str
    changed: str
    same: bool
    moved: float


class Texts(Passes):
    """Passes over plain text."""

    @remembered
    def pairs(self) -> list[Pair]:
        """Each text and each of its variants. Raises NotApplicable without a tokenizer, and where
        it gives ids that the model has no place for."""
        probe = self.probe
        if probe.subject.tokenizer is None:
            raise NotApplicable("no tokenizer was given: --tb-tokenizer")
        draw = random.Random(probe.seed_for("texts"))
        found = []
        for text in TEXTS:
            before = self._prediction(text)
            for kind, change in KINDS.items():
                changed = change(text, draw)
                after = self._prediction(changed)
                moved = float((before - after).abs().sum()) / 2
                same = int(before.argmax()) == int(after.argmax())
                found.append(Pair(kind, text, changed, same, moved))
        return found

    def _prediction(self, text: str) -> torch.Tensor:
        """(V,): probabilities of the class, of the next token, or, of an encoder that predicts
        tokens, of the last token."""
        probe = self.probe
        subject = probe.subject
        batch = Batch({"input_ids": torch.tensor([self._ids(text)])})
        if subject.decodes:
            first = subject.batch(1, 1, seed=probe.seed_for("texts"))["decoder_input_ids"]
            batch = batch.with_(decoder_input_ids=first)
        logits = probe.forward(complete(subject, batch).to(subject.device)).logits
        last = logits[0, -1] if each_token(subject) else logits[0]
        return last.flatten().double().softmax(-1).cpu()

    def _ids(self, text: str) -> list[int]:
        subject = self.probe.subject
        ids = _encoded(subject.tokenizer, text)
        most = subject.max_length or len(ids)
        ids = ids[: most - most % subject.multiple]
        ids = ids[: len(ids) - len(ids) % subject.multiple] or ids
        if not ids or max(ids) >= subject.vocab_size:
            raise NotApplicable(
                f"the tokenizer gives no ids, or ids above the vocabulary ({subject.vocab_size}): "
                f"{ids[:8]}"
            )
        return ids


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """Ids from any tokenizer with ``encode``, whether it gives a list or an object with ids."""
    found = tokenizer.encode(text)
    return [int(i) for i in getattr(found, "ids", found)]


def _typo(text: str, draw: random.Random) -> str:
    """Two letters inside of a word the other way round."""
    places = [i for i in range(1, len(text) - 2) if text[i - 1 : i + 3].isalpha()]
    places = [i for i in places if text[i] != text[i + 1]]
    place = draw.choice(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "lower case": lambda text, _: text.lower(),
    "upper case": lambda text, _: text.upper(),
    "typo": _typo,
    "no full stop": lambda text, _: text.rstrip("."),
    "exclamation mark": lambda text, _: text.rstrip(".") + "!",
    "two spaces": lambda text, _: text.replace(" ", "  ", 1),
}
