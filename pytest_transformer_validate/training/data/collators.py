"""Lists of examples to batches of tensors, one collator a task.

Axes: B examples, T tokens of the longest one. Padding is known by the mask, never by an id, so
that a real token equal to the padding id is trained like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.task import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PADDING_SIDES = ("right", "left")

Batch = dict[str, torch.Tensor]


def pad(rows: Sequence[Any], value: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as (B, T), padded with ``value`` on ``side``, and the mask (B, T): 1 is real.

    ``rows`` are lists of numbers or tensors (T_i,). Raises ValueError for no rows, or none with
    an id.
    """
    if not len(rows):
        raise ValueError("an empty batch: the collator was given no examples")
    lengths = [len(row) for row in rows]
    width = max(lengths)
    if not width:
        raise ValueError("an empty batch: no example has a token")
    if isinstance(rows[0], torch.Tensor):
        flat = torch.cat([torch.as_tensor(row) for row in rows]).long()
    else:
        flat = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.long)
    places = torch.arange(width)
    counts = torch.tensor(lengths).unsqueeze(1)
    real = places < counts if side == "right" else places >= width - counts
    ids = torch.full((len(rows), width), value)
    ids[real] = flat
    return ids, real.long()


def side_of(padding_side: str) -> str:
    """The padding side, checked. Raises ValueError."""
    if padding_side not in PADDING_SIDES:
        raise ValueError(f"padding_side must be 'right' or 'left', given {padding_side!r}")
    return padding_side


def pad_id_of(tokenizer: Any) -> int:
    """The id that fills a batch up; any will do, as the mask says what is real."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    return 0


def padded(
    examples: Sequence[Any], tokenizer: Any, side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of examples and their mask, (B, T)."""
    return pad([ids_of(example) for example in examples], pad_id_of(tokenizer), side)


def ids_of(example: Any) -> Any:
    """The ids of an example: of a mapping its ``input_ids``, else the example itself."""
    if not isinstance(example, Mapping):
        return example
    try:
        return example["input_ids"]
    except KeyError:
        raise ValueError(
            f"an example needs 'input_ids'; it has {', '.join(map(str, example)) or 'nothing'}"
        ) from None


@dataclass
class LanguageModelingDataCollator:
    """Batches for causal language modelling, or masked with ``mlm``.

    Args:
        tokenizer: gives the padding id and, for ``mlm``, the mask id, the special ids and the
            size of the vocabulary.
        mlm: hide a part of the tokens and train on those alone.
        mlm_probability: the part of the tokens that are not special that is trained; of it 80 %
            become the mask id, 10 % a random id, 10 % stay (Devlin et al. 2019).
        padding_side: ``right`` or ``left``.
        ignore_index: the label where nothing is trained.

    Returns, when called on examples (mappings with ``input_ids``, or lists of ids):
        ``input_ids``, ``attention_mask``, ``labels``, all (B, T). An example's own ``labels``
        are kept, for ``mlm`` they are not looked at.

    Raises:
        ValueError: an empty batch, an unknown side, ``mlm`` without a mask id.
    """

    tokenizer: Any
    mlm: bool = False
    mlm_probability: float = 0.15
    padding_side: str = "right"
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        side_of(self.padding_side)
        if not 0 < self.mlm_probability <= 1:
            raise ValueError(f"mlm_probability must be in (0, 1], given {self.mlm_probability!r}")
        if self.mlm and not isinstance(getattr(self.tokenizer, "mask_token_id", None), int):
            raise ValueError("mlm=True needs a tokenizer with a mask token; this one has none")

    def __call__(self, examples: Sequence[Any]) -> Batch:
        ids, mask = padded(examples, self.tokenizer, self.padding_side)
        if self.mlm:
            inputs, labels = self._hide(ids, mask.bool())
        else:
            inputs, labels = ids, self._labels(examples, ids, mask)
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}

    def _labels(
        self, examples: Sequence[Any], ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        given = isinstance(examples[0], Mapping) and "labels" in examples[0]
        if not given:
            return ids.masked_fill(mask == 0, self.ignore_index)
        rows = [example["labels"] for example in examples]
        return pad(rows, self.ignore_index, self.padding_side)[0]

    def _hide(self, ids: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        special = torch.tensor(sorted(getattr(self.tokenizer, "all_special_ids", None) or []))
        open_ = real & ~torch.isin(ids, special)
        draws = torch.rand(ids.shape)
        chosen = open_ & (draws < self.mlm_probability)
        if not chosen.any():  # a small batch may draw none; one it is, if there is one to take
            chosen = open_ & (draws == draws.masked_fill(~open_, 2.0).min())
        fate = torch.rand(ids.shape)
        random_ids = torch.randint(len(self.tokenizer), ids.shape)
        inputs = ids.masked_fill(chosen & (fate < 0.8), self.tokenizer.mask_token_id)
        inputs = torch.where(chosen & (fate >= 0.9), random_ids, inputs)
        return inputs, ids.masked_fill(~chosen, self.ignore_index)


@dataclass
class Seq2SeqDataCollator:
    """Batches for sequence to sequence: sources and targets are padded apart.

    Examples hold ``input_ids`` and ``labels``; gives ``input_ids``, ``attention_mask`` (B, S) and
    ``labels`` (B, T), ``ignore_index`` where a target is padded. The trainer makes the decoder's
    input.
    """

    tokenizer: Any
    padding_side: str = "right"
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        side_of(self.padding_side)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        ids, mask = padded(examples, self.tokenizer, self.padding_side)
        rows = [labels_of(example) for example in examples]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": pad(rows, self.ignore_index, "right")[0],
        }


@dataclass
class ClassificationDataCollator:
    """Batches for text classification: ``input_ids``, ``attention_mask`` (B, T), ``labels`` (B,).

    Examples hold ``input_ids`` and ``label`` or ``labels``, a whole number.
    """

    tokenizer: Any
    padding_side: str = "right"

    def __post_init__(self) -> None:
        side_of(self.padding_side)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        ids, mask = padded(examples, self.tokenizer, self.padding_side)
        labels = torch.tensor([class_of(labels_of(example)) for example in examples])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass
class VisionDataCollator:
    """Batches of images: ``pixel_values`` (B, C, H, W) in float32 and ``labels`` (B,).

    Examples hold ``pixel_values`` or ``image`` (a tensor or array (C, H, W), or a PIL image) and
    ``label`` or ``labels``; pairs (image, label) are taken too. Whole numbers 0 to 255 become
    0 to 1. ``normalize`` subtracts ``mean`` and divides by ``std``, a number a channel (default:
    those of ImageNet). Raises ValueError for images of different shapes, or of other channels.
    """

    normalize: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, examples: Sequence[Any]) -> Batch:
        if not len(examples):
            raise ValueError("an empty batch: the collator was given no examples")
        pairs = [_image_and_label(example) for example in examples]
        images = [_tensor(image) for image, _ in pairs]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise ValueError(
                f"images of one batch need one shape, given {shapes[:3]}; resize them"
            )
        pixels = torch.stack(images)
        if self.normalize:
            pixels = self._normalized(pixels)
        return {
            "pixel_values": pixels,
            "labels": torch.tensor([class_of(label) for _, label in pairs]),
        }

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.shape[1] != len(self.mean):
            raise ValueError(
                f"images have {pixels.shape[1]} channels, mean and std {len(self.mean)}; give "
                "them a number a channel, or normalize=False"
            )
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std


def labels_of(example: Any) -> Any:
    """``labels`` or ``label`` of an example. Raises ValueError where there is none."""
    for name in ("labels", "label"):
        if isinstance(example, Mapping) and name in example:
            return example[name]
    names = (
        ", ".join(map(str, example)) if isinstance(example, Mapping) else type(example).__name__
    )
    raise ValueError(f"an example needs 'labels' (or 'label'); it has {names or 'nothing'}")


def class_of(label: Any) -> int:
    """A label as a whole number. Raises ValueError for a name, a fraction, several classes."""
    try:
        found = int(label)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or isinstance(label, str) or found != label:
        raise ValueError(
            f"a label is the number of its class, from 0 on, given {label!r}: number the names"
        )
    return found


def _image_and_label(example: Any) -> tuple[Any, Any]:
    if isinstance(example, Mapping):
        for name in ("pixel_values", "image", "img"):
            if name in example:
                return example[name], labels_of(example)
        raise ValueError(
            f"an example needs 'pixel_values' or 'image'; it has {', '.join(example)}"
        )
    image, label = example
    return image, label


def _tensor(image: Any) -> torch.Tensor:
    """An image as float32 (C, H, W), 0 to 1 where it was in whole numbers."""
    if hasattr(image, "getbands"):  # PIL: height, width, channels in bytes
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = flat.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1)
    else:
        pixels = torch.as_tensor(image)
    return pixels.float() / 255 if pixels.dtype is torch.uint8 else pixels.float()
