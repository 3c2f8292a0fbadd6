"""Texts to ids: any tokenizer, or one made of characters for a model without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TEXT_FIELDS = ("text", "content", "sentence", "document")
TARGET_FIELDS = ("target", "summary", "translation", "target_text")


class CharacterTokenizer:
    """One id a character, and ids that pad, that end (and begin), and that stand for characters
    that are not known; with ``masks`` one for those that are hidden.

    ``vocab_size`` is the model's, ``pad`` the id that it takes for padding; the others are the
    smallest that are left. The most frequent characters of ``texts`` get the ids after these, as
    many as there is room for. Raises ValueError for a vocabulary with no room for any.
    """

    def __init__(
        self, texts: Iterable[str], vocab_size: int, *, pad: int = 0, masks: bool = False
    ) -> None:
        names = ["<pad>", "<eos>", "<unk>", *["<mask>"] * masks]
        if vocab_size <= len(names):
            raise ValueError(
                f"a character tokenizer needs a vocabulary of more than {len(names)}, "
                f"given {vocab_size}"
            )
        ids = [pad, *(at for at in range(vocab_size) if at != pad)]
        self.all_special_ids = tuple(ids[: len(names)])
        self.pad_token_id, self.eos_token_id, self.unk_token_id = ids[:3]
        self.bos_token_id = self.eos_token_id
        self.mask_token_id = ids[3] if masks else None
        counts: dict[str, int] = {}
        for text in texts:
            for character in text:
                counts[character] = counts.get(character, 0) + 1
        known = sorted(counts, key=lambda c: (-counts[c], c))
        self._ids = dict(zip(known, ids[len(names) :], strict=False))
        self._characters = {at: c for c, at in self._ids.items()}
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str) -> list[int]:
        """The ids of a text, closed by the end id."""
        return [*(self._ids.get(c, self.unk_token_id) for c in text), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special ones."""
        return "".join(self._characters.get(i, "") for i in ids)


def encode(tokenizer: Any, text: str, longest: int | None = None) -> list[int]:
    """The ids of ``text``, cut to ``longest``. Raises ValueError for what is no tokenizer."""
    if hasattr(tokenizer, "encode"):
        ids = tokenizer.encode(text)
    elif callable(tokenizer):
        ids = tokenizer(text)
    else:
        raise ValueError(
            f"a tokenizer has encode(text) or can be called with a text; "
            f"{type(tokenizer).__name__} has neither"
        )
    ids = getattr(ids, "ids", ids)  # of the tokenizers library
    ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
    return [int(i) for i in ids][:longest]


class Tokenized:
    """Examples with texts, as examples with ids; each is tokenized when it is asked for.

    Examples that hold ``input_ids`` pass through. Of ``seq2seq`` the target is tokenized too,
    which becomes ``labels``; of ``classification`` the label is kept; of other tasks the text is
    all there is to learn.
    """

    def __init__(self, data: Any, tokenizer: Any, longest: int | None, task_type: str) -> None:
        self.data, self.tokenizer, self.longest = data, tokenizer, longest
        self.pairs, self.labelled = task_type == "seq2seq", task_type == "classification"

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: int) -> Any:
        example = self.data[at]
        if isinstance(example, str):
            return {"input_ids": encode(self.tokenizer, example, self.longest)}
        name = text_field(example)
        if name is None:
            self._refuse_no_text(example, at)
            return example
        found = {"input_ids": encode(self.tokenizer, example[name], self.longest)}
        if self.pairs:
            target = next((n for n in (*TARGET_FIELDS, "labels") if n in example), None)
            if target is None:
                raise ValueError(
                    f"a pair needs one of {', '.join(TARGET_FIELDS)} beside {name!r}; "
                    f"example {at} has {', '.join(example)}"
                )
            value = example[target]
            text = isinstance(value, str)
            found["labels"] = encode(self.tokenizer, value, self.longest) if text else value
        for label in ("label", "labels"):
            if label in example and self.labelled:
                found["labels"] = example[label]
        return found

    def _refuse_no_text(self, example: Any, at: int) -> None:
        if isinstance(example, Mapping) and "input_ids" not in example:
            named = [n for n in TEXT_FIELDS if n in example]
            if named:
                raise ValueError(
                    f"{named[0]!r} of example {at} is no text: {type(example[named[0]]).__name__}"
                )


def text_field(example: Any) -> str | None:
    """The name of an example's text; ``None`` where it has ids already, or is no mapping."""
    if not isinstance(example, Mapping) or "input_ids" in example or "pixel_values" in example:
        return None
    named = [n for n in TEXT_FIELDS if isinstance(example.get(n), str)]
    texts = [n for n, value in example.items() if isinstance(value, str)]
    return next(iter(named or texts), None)
