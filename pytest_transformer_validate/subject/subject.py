"""A loaded model that can be called in one way, whatever its signature."""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pytest_transformer_validate.errors import SubjectError, TaskError
from pytest_transformer_validate.sources.config import ModelConfig
from pytest_transformer_validate.subject.declared import (
    CHANNELS,
    IMAGE,
    LAYERS,
    LENGTH,
    VOCABULARY,
    declared,
    declared_size,
    declared_task,
    declares_image,
    special_ids,
)
from pytest_transformer_validate.subject.guard import derive_seed, guard
from pytest_transformer_validate.subject.intermediates import Values, run_with_intermediates
from pytest_transformer_validate.subject.outputs import Output, read_output
from pytest_transformer_validate.subject.signature import Signature, read_signature
from pytest_transformer_validate.subject.tables import TableReader
from pytest_transformer_validate.task import TaskSpec

_FREE_IMAGE_SIZE = 64
_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


@dataclass(frozen=True)
class Batch:
    """Inputs by role: ``input_ids`` (B, T) or ``pixel_values`` (B, C, H, W), and what else is
    given: ``attention_mask`` (B, T; 1 keeps), ``decoder_input_ids`` (B, T_decoder), ``labels``...
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, role: str) -> torch.Tensor:
        return self.inputs[role]

    @property
    def main(self) -> torch.Tensor:
        """The ids or the image."""
        return next(iter(self.inputs.values()))

    @property
    def rows(self) -> int:
        """Batch size B."""
        return self.main.shape[0]

    def with_(self, **inputs: torch.Tensor) -> Batch:
        """The same batch with some inputs replaced or added."""
        return replace(self, inputs={**self.inputs, **inputs})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device; floating point inputs in ``dtype``."""
        return Batch(
            {
                role: t.to(device, dtype if t.is_floating_point() else None)
                for role, t in self.inputs.items()
            }
        )


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


class Subject:
    """A model, called as ``subject(batch) -> Output``.

    ``config`` is a dict, an object with attributes or a Hugging Face config; ``task`` a declared
    task (default: found from declarations and structure). ``device`` and ``dtype`` default to the
    model's own. Raises SubjectError for a signature or an output that cannot be understood, and
    TaskError for a fact that has to be declared.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: Any = None,
        *,
        tokenizer: Any = None,
        task: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if config is None:
            config = getattr(model, "config", None)
        self.model = model if device is None and dtype is None else model.to(device, dtype)
        self.config = ModelConfig(config)
        self.tokenizer = tokenizer
        self.seed = seed
        self._task = task

    # Facts that need no forward...

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the first parameter lives (``cpu`` without parameters)."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """Of the first floating point parameter, else the default dtype."""
        floating = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @functools.cached_property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @functools.cached_property
    def layers(self) -> int:
        """Number of layers: declared, else the longest list of blocks of one class."""
        number = declared_size(self.config, LAYERS)
        lists = (m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList))
        return number or max((len(blocks) for blocks in lists), default=1)

    @functools.cached_property
    def vision(self) -> bool:
        """Whether the input is an image."""
        if self._task is not None:
            return not TaskSpec(self._task).reads_tokens
        names = set(inspect.signature(self.model.forward).parameters)
        return declares_image(self.model, self.config, names)

    @functools.cached_property
    def signature(self) -> Signature:
        """What forward asks for."""
        return read_signature(self.model, vision=self.vision)

    @functools.cached_property
    def decodes(self) -> bool:
        """Whether a decoder input is given: required, or the task is sequence to sequence."""
        if "decoder_input_ids" in self.signature.required:
            return True
        named = declared_task(self.model, self.config, self._task)
        optional = self.signature.takes("decoder_input_ids")
        return optional and (named is None or named.task_type == "seq2seq")

    @functools.cached_property
    def pad_id(self) -> int | None:
        """Padding id: the configuration's, the tokenizer's, the embedding's; else ``None``."""
        found = declared(self.config, ("pad_token_id", "pad_id", "pad_idx", "padding_idx"))
        if found is None:
            found = getattr(self.tokenizer, "pad_token_id", None)
        if found is None:
            paddings = [
                m.padding_idx
                for m in self.model.modules()
                if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None
            ]
            found = paddings[0] if paddings else None
        return found if isinstance(found, int) else None

    @functools.cached_property
    def end_id(self) -> int | None:
        """The id that ends a text, where the configuration names one."""
        found = declared(self.config, ("eos_token_id",))
        found = found[0] if isinstance(found, list) and found else found
        return found if isinstance(found, int) else None

    @functools.cached_property
    def full_batch(self) -> int:
        """``max_batch_size`` of the configuration, 8 where it is missing."""
        return declared_size(self.config, ("max_batch_size",)) or 8

    # ... and facts that one forward shows.

    @functools.cached_property
    def facts(self) -> Facts:
        """One forward of (5, 7) ids, or of two images, with everything it shows."""
        with guard(self.model, derive_seed(self.seed, "facts")), torch.no_grad():
            self.model.eval()
            return self._look()

    @functools.cached_property
    def task(self) -> TaskSpec:
        """What the model is for, by declarations, then by structure; else assumed causal LM."""
        found = declared_task(self.model, self.config, self._task)
        if found is not None:
            return found
        if self.vision:
            return TaskSpec("vision_classification", "found: reads an image")
        if self.decodes:
            return TaskSpec("seq2seq", f"found: {self.signature.names['decoder_input_ids']}")
        if self.facts.rank == 2:
            return TaskSpec("classification", "found: one output a text")
        return TaskSpec("causal_lm", "assumed")

    @functools.cached_property
    def vocab_size(self) -> int:
        """Declared, else the rows of the table that the ids index. Raises TaskError."""
        found = declared_size(self.config, VOCABULARY) or self.facts.vocabulary
        if found is None:
            raise TaskError(
                "the vocabulary size cannot be found: no config key, and no table is indexed by "
                'the ids\n  declare it: "vocab_size" in config.json'
            )
        return found

    @functools.cached_property
    def max_length(self) -> int | None:
        """The longest input: declared, less what an offset of its table takes; else what the
        tables read by position allow; ``None`` where nothing bounds it."""
        named = declared_size(self.config, LENGTH)
        if named is None and self.config.get("model_type") is None:
            named = declared_size(self.config, ("max_length",))
        tables = min(self.facts.limits, default=None)
        if named is None or tables is None:
            return named or tables
        return tables if self._offset(named) == named - tables else named

    @functools.cached_property
    def small(self) -> bool:
        """Whether passes may be generous: at most 20M parameters."""
        return self.parameters <= 20_000_000

    @functools.cached_property
    def sizes(self) -> tuple[int, int]:
        """(B, T) for probes: primes that no axis of a weight has, within the maximum length."""
        taken = {size for p in self.model.parameters() for size in p.shape}
        longest = self.max_length or _PRIMES[-1]
        free = [p for p in _PRIMES if p not in taken and p <= longest] or [
            p for p in (2, 3, *_PRIMES) if p <= longest
        ]
        lengths = [p for p in free if p >= 11] or free[-1:]
        length = lengths[0] if lengths else 1
        rows = next((p for p in free if p != length), 3)
        return rows, length

    @functools.cached_property
    def other_sizes(self) -> tuple[int, int]:
        """A second (B, T), different from ``sizes`` in both."""
        rows, length = self.sizes
        longest = self.max_length or _PRIMES[-1]
        taken = {size for p in self.model.parameters() for size in p.shape}
        free = [p for p in (3, *_PRIMES) if p not in taken | {rows, length} and p <= longest]
        return (free[0], free[1]) if len(free) > 1 else (rows + 1, max(1, length - 1))

    def batch(self, rows: int, length: int, *, seed: int = 0, full: bool = False) -> Batch:
        """Random inputs: ids (rows, length) without special ids, or images.

        The length of a sequence-to-sequence model's encoder input is ``length`` too, or two more
        where the maximum allows, so that the axes differ (``full``: exactly ``length``).
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "batch"))
        if self.vision:
            return self._images(rows, generator)
        source = length
        if self.decodes and not full and length > 1:
            source = min(length + 2, self.max_length or length + 2)
        inputs = {"input_ids": self.ids(rows, source, generator)}
        if self.decodes:
            inputs["decoder_input_ids"] = self.ids(rows, length, generator)
        return self._with_needed(Batch(inputs)).to(self.device)

    def ids(self, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Random ids (rows, length) on the CPU, without ids that have a special meaning.

        A text of a classifier ends with the end id where there is one: models pool there.
        """
        special = special_ids(self.config) | {self.pad_id}
        allowed = torch.tensor([i for i in range(self.vocab_size) if i not in special])
        if not len(allowed):
            allowed = torch.arange(self.vocab_size)
        picks = torch.randint(len(allowed), (rows, length), generator=generator)
        ids = allowed[picks]
        if self.end_id is not None and self.task.task_type == "classification":
            ids[:, -1] = self.end_id
        return ids

    def __call__(self, batch: Batch, **extra: Any) -> Output:
        """Call the model on a batch; ``extra`` is handed to forward by role."""
        return read_output_of(self._call(batch, extra), self.facts.time_major)

    # How it is done...

    def _call(self, batch: Batch, extra: dict[str, Any], *, time_major: bool | None = None) -> Any:
        if time_major is None:
            time_major = self.facts.time_major
        signature = self.signature
        if signature.takes("use_cache"):
            extra = {"use_cache": False, **extra}
        if "start" in signature.required:
            extra = {"start": 0, **extra}
        given = {**batch.inputs, **extra}
        if time_major:
            given = {
                role: t.T if role.endswith("input_ids") or role == "labels" else t
                for role, t in given.items()
            }
        positional = [given[r] for r in signature.names if r in signature.positional and r in given]
        keywords = {
            name: given[role]
            for role, name in signature.names.items()
            if role in given and role not in signature.positional
        }
        if not signature.intermediates:
            return self.model(*positional, **keywords)
        rows, length = batch.main.shape
        width = declared_size(self.config, ("d_model", "hidden_size", "n_embd", "embed_dim"))
        blank = torch.zeros(rows, length, width or self._width(), device=self.device, dtype=self.dtype)

        def call(values: Values) -> Any:
            return self.model(*positional, **keywords, **values)

        return run_with_intermediates(self.model, signature.intermediates, call, blank)

    def _width(self) -> int:
        """The width that most embedding tables have."""
        widths = [m.embedding_dim for m in self.model.modules() if isinstance(m, torch.nn.Embedding)]
        if not widths:
            raise TaskError('the width of the model cannot be found; declare "d_model"')
        return max(set(widths), key=widths.count)

    def _look(self) -> Facts:
        if self.vision:
            batch = self._images(2, torch.Generator().manual_seed(0))
            output = read_output(self._call(batch, {}, time_major=False))
            return _facts(None, [], output, needs_labels=False, time_major=False)
        rows, length = 5, min(7, declared_size(self.config, LENGTH) or 7)
        batch = self._first_batch(rows, length)
        with TableReader(self.model, batch.main, length) as reader:
            raw = self._call(batch, {}, time_major=False)
        output = read_output(raw)
        time_major = self._reads_time_first(batch, reader)
        needs_labels = (
            output.logits.dim() == 3
            and output.logits.shape[1] == 1 != length
            and self.signature.takes("labels")
        )
        facts = _facts(reader.vocabulary, reader.limits, output, needs_labels, time_major)
        given = output.logits.shape[1] if output.logits.dim() == 3 else None
        if given != length and given == declared_size(self.config, LENGTH):
            return replace(facts, fixed_length=given)
        return facts

    def _first_batch(self, rows: int, length: int) -> Batch:
        """A batch that can be made before the vocabulary is known: few, small ids."""
        tables = [m.num_embeddings for m in self.model.modules() if isinstance(m, torch.nn.Embedding)]
        named = declared_size(self.config, VOCABULARY)
        top = named or min((t for t in tables if t > 2), default=2)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "facts"))
        special = special_ids(self.config) | {self.pad_id}
        allowed = torch.tensor([i for i in range(top) if i not in special] or [0])
        inputs = {}
        for role in ("input_ids", "decoder_input_ids")[: 1 + self.decodes]:
            picks = torch.randint(len(allowed), (rows, length), generator=generator)
            inputs[role] = allowed[picks]
            if self.end_id is not None and self.end_id < top:
                inputs[role][:, -1] = self.end_id
        return self._with_needed(Batch(inputs), labels=False).to(self.device)

    def _reads_time_first(self, batch: Batch, reader: TableReader) -> bool:
        """Declared by ``batch_first``, else seen: position tables are read to length B, not T."""
        named = self.config.get("batch_first")
        if isinstance(named, bool):
            return not named
        if reader.limits or self.signature.takes("attention_mask"):
            return False
        with TableReader(self.model, batch.main, batch.rows) as by_rows:
            self._call(batch, {}, time_major=False)
        return bool(by_rows.limits)

    def _offset(self, rows: int) -> int | None:
        """Rows that positions skip in a table of ``rows``: all up to its padding row."""
        for module in self.model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings == rows:
                return None if module.padding_idx is None else module.padding_idx + 1
        return None

    def _with_needed(self, batch: Batch, *, labels: bool = True) -> Batch:
        """Add what forward requires: masks that keep everything, positions, labels."""
        signature, ids = self.signature, batch.main
        rows, length = ids.shape
        keep = torch.ones_like(ids)
        needed: dict[str, torch.Tensor] = {
            "attention_mask": keep,
            "mask": keep,
            "padding_mask": torch.zeros_like(ids, dtype=torch.bool),
            "position_ids": torch.arange(length).expand(rows, length),
            "token_type_ids": torch.zeros_like(ids),
        }
        target = batch.inputs.get("decoder_input_ids", ids)
        if "decoder_attention_mask" in signature.required:
            needed["decoder_attention_mask"] = torch.ones_like(target)
        added = {role: t for role, t in needed.items() if role in signature.required}
        if "labels" in signature.required or (labels and self.facts.needs_labels):
            added["labels"] = target if target.dim() == 2 else ids
        return batch.with_(**added)

    def _images(self, rows: int, generator: torch.Generator) -> Batch:
        height, width = self._image_size()
        channels = declared_size(self.config, CHANNELS)
        if channels is None:
            convolutions = (m for m in self.model.modules() if isinstance(m, torch.nn.Conv2d))
            channels = next((m.in_channels for m in convolutions), 3)
        pixels = torch.randn(rows, channels, height, width, generator=generator)
        return Batch({"pixel_values": pixels}).to(self.device, self.dtype)

    def _image_size(self) -> tuple[int, int]:
        named = declared(self.config, IMAGE)
        if isinstance(named, dict):
            named = (named.get("height"), named.get("width"))
        if isinstance(named, int):
            return named, named
        if isinstance(named, list | tuple) and len(named) >= 2:
            return int(named[-2]), int(named[-1])
        return self._structural_image_size()

    def _structural_image_size(self) -> tuple[int, int]:
        """From a table with one row a patch, else any size: convolutions bound none."""
        convolutions = [m for m in self.model.modules() if isinstance(m, torch.nn.Conv2d)]
        if not convolutions:
            raise TaskError(
                "the size of the image cannot be found: no config key, and no convolution reads it"
                '\n  declare it: "image_size" and "num_channels" in config.json'
            )
        stride = convolutions[0].stride[0]
        for parameter in self.model.parameters():
            if parameter.dim() == 3 and parameter.shape[0] == 1:
                side = math.isqrt(parameter.shape[1])
                if side > 1 and parameter.shape[1] - side * side in (0, 1, 2):
                    return side * int(stride), side * int(stride)
        return _FREE_IMAGE_SIZE, _FREE_IMAGE_SIZE


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


def read_output_of(raw: Any, time_major: bool) -> Output:
    """The Output of a raw result, batch first."""
    output = read_output(raw)
    if time_major and output.logits.dim() == 3:
        return replace(output, logits=output.logits.transpose(0, 1))
    return output


__all__ = ["Batch", "Facts", "Subject", "SubjectError"]
