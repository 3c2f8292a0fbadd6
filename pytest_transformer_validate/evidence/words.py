"""A tokenizer for the models of the zoo, and the rate at which predictions have to stay."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

IDS = 90  # fewer than the smallest vocabulary of the zoo has, without the first three
FIRST = 3  # padding, start and end of a text
LIMITS = {"text_invariance": {"pass_rate": 0.875}}


@dataclass(frozen=True)
class Words:
    """Words as ids, whatever their case, punctuation and the spaces between them.

    Each field is a mistake: ``cased`` takes words as they are written, ``marked`` takes
    punctuation for tokens, ``spaced`` splits at every single space, and ``known`` looks words up
    in lower case before it lowers them, so that all others are one unknown word.
    """

    cased: bool = False
    marked: bool = False
    spaced: bool = False
    known: bool = False

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        if self.known:
            words = [w if w.islower() else "(unknown)" for w in re.findall(r"\w+", text)]
        else:
            written = text if self.cased else text.lower()
            plain = written if self.marked else re.sub(r"[^\w\s]", "", written)
            marks = re.findall(r"\w+|[^\w\s]", plain)
            words = plain.split(" ") if self.spaced else marks
        return [FIRST + zlib.crc32(word.encode()) % IDS for word in words]
