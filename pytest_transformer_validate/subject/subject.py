"""A loaded model that can be called in one way, whatever its signature."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable, TaskError, error_line
from pytest_transformer_validate.sources.config import LENGTH, ModelConfig
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.calling import call
from pytest_transformer_validate.subject.conversion import convert
from pytest_transformer_validate.subject.declared import (
    BY_TYPE,
    PADDING,
    TARGET_VOCABULARY,
    VOCABULARY,
    declared,
    declared_size,
    declared_task,
    declares_image,
    decoder_type,
    encoder_inside,
    kept_mask,
    named_like_an_encoder,
)
from pytest_transformer_validate.subject.given import Given
from pytest_transformer_validate.subject.guard import derive_seed, guard
from pytest_transformer_validate.subject.images import fitting_shape, image_shape
from pytest_transformer_validate.subject.inputs import complete, random_batch
from pytest_transformer_validate.subject.layout import arrange
from pytest_transformer_validate.subject.lent import lent_to
from pytest_transformer_validate.subject.outputs import Output, read_logits, read_output
from pytest_transformer_validate.subject.refused import first_look
from pytest_transformer_validate.subject.signature import Signature, forward_of, read_signature
from pytest_transformer_validate.subject.sizes import LARGE, WIDE, other_sizes, probe_sizes
from pytest_transformer_validate.task import TaskSpec

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.look import Facts
    from pytest_transformer_validate.subject.packed import Packing
    from pytest_transformer_validate.subject.setup import Setup

_OFFSET = 8  # by so much a table is too short by mistake; more is one for another sequence
_FEW = 6
_BYTES, _FAR_ID = 256, 10_000_000  # no table has that many rows
_TEXT = ("bos", "sep", "cls", "unk", "mask", "decoder_start")

_ORIGIN = "; judge the nn.Module that it was made from"
_SCRIPTED = f"the model is a TorchScript program, which has lost its Python code{_ORIGIN}"
_EXPORTED = f"the model is an exported program, which has one mode and no layers{_ORIGIN}"
_QUANTISED = f"torch has quantised {{}}, which takes no gradient and no other dtype{_ORIGIN}"


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
        _refuse_programs(model)
        if config is None:
            config = getattr(model, "config", None)
        self.model = model if device is None and dtype is None else convert(model, dtype, device)
        self.config = ModelConfig(config)
        self.tokenizer = tokenizer
        self.seed = seed
        self._task = task
        self._no_facts: str | None = None
        self.time_major = False
        self.given = Given()
        self.setup: Setup | None = None
        self.packing: Packing | None = None
        self.choices = False
        self.lent_pad: int | None = None
        self.fewer_ids: dict[str, int] = {}
        self.plain_ids: tuple[object, torch.Tensor] | None = None

    def twin(self, model: torch.nn.Module) -> Subject:
        """Another model, such as a converted copy, with the config, task and seed of this one."""
        subject = Subject(
            model,
            self.config,
            tokenizer=self.tokenizer,
            task=self.task.task_type,
            seed=self.seed,
        )
        subject.lent_pad = self.lent_pad
        return subject

    # Facts that need no forward...

    @functools.cached_property
    def quantised(self) -> str | None:
        """What torch has quantised, and what that means for most checks."""
        for name, module in self.model.named_modules():
            if type(module).__module__.startswith("torch.ao.nn.quantized"):
                return _QUANTISED.format(name or type(module).__name__)
        return None

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
    def vision(self) -> bool:
        """Whether the input is an image."""
        names = set(inspect.signature(forward_of(self.model)).parameters)
        named = declared_task(self.model, self.config, self._task)
        return declares_image(self.model, self.config, names, named)

    @functools.cached_property
    def declares_task(self) -> bool:
        """Whether anything declares a task."""
        return declared_task(self.model, self.config, self._task) is not None

    @functools.cached_property
    def one_number(self) -> bool:
        """Whether a declared classifier may give one number a text, (B,)."""
        named = declared_task(self.model, self.config, self._task)
        return named is not None and named.task_type.endswith("classification")

    @functools.cached_property
    def per_token(self) -> bool:
        """Whether a declared task has one output a token."""
        named = declared_task(self.model, self.config, self._task)
        return named is not None and named.per_token

    @functools.cached_property
    def signature(self) -> Signature:
        """What forward asks for."""
        named = declared_task(self.model, self.config, self._task)
        seq2seq = named is not None and named.task_type == "seq2seq"
        translates = named is None or seq2seq
        return read_signature(
            self.model, vision=self.vision, translates=translates, seq2seq=seq2seq
        )

    def take_as_labels(self, name: str) -> None:
        """From now on the parameter ``name`` is given labels, not a decoder input."""
        names = {r: n for r, n in self.signature.names.items() if n != name}
        names["labels"] = name
        required = self.signature.required - {"decoder_input_ids"} | {"labels"}
        self.signature = replace(self.signature, names=names, required=required, ambiguous=None)
        vars(self).pop("decodes", None)

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
        """Padding id: the configuration's, the tokenizer's, the embedding's; else the one that is
        lent (see lent), or ``None``."""
        found = declared_size(self.config, PADDING)
        if found is None:
            found = 0 if declared(self.config, PADDING) == 0 else None
        if found is None:
            found = getattr(self.tokenizer, "pad_token_id", None)
        if found is None:
            paddings = [
                m.padding_idx
                for m in self.model.modules()
                if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None
            ]
            found = paddings[0] if paddings else self.lent_pad
        return found if isinstance(found, int) else None

    @functools.cached_property
    def end_id(self) -> int | None:
        """The id that ends a text, where the configuration names one."""
        found = declared(self.config, ("eos_token_id",))
        found = found[0] if isinstance(found, list) and found else found
        return found if isinstance(found, int) else None

    @functools.cached_property
    def most_rows(self) -> int:
        """The largest batch that may be given: a declared ``max_batch_size``, else any."""
        return declared_size(self.config, ("max_batch_size",)) or 1_000_000

    @functools.cached_property
    def declares_length(self) -> bool:
        """Whether the configuration names the maximum length."""
        return declared_size(self.config, LENGTH) is not None

    @functools.cached_property
    def text_ids(self) -> list[int]:
        """Ids with a meaning in plain text: padding, begin, end..., those that the forward
        compares its input with."""
        named = (declared(self.config, (f"{name}_token_id",)) for name in _TEXT)
        found = [self.pad_id, self.end_id, *named, *sorted(self.facts.compared)]
        return list(
            dict.fromkeys(i for i in found if isinstance(i, int) and 0 <= i < self.vocab_size)
        )

    @functools.cached_property
    def ends(self) -> bool:
        """Whether a text ends with the end id: classifiers pool there. An id beyond the table,
        left over from the defaults of a larger vocabulary, ends none."""
        if self.end_id is None or self.task.task_type != "classification":
            return False
        return self.end_id < (self.facts.vocabulary.get("input_ids") or self.vocab_size)

    @functools.cached_property
    def full_batch(self) -> int:
        """``max_batch_size`` of the configuration, 8 where it is missing."""
        return declared_size(self.config, ("max_batch_size",)) or 8

    @functools.cached_property
    def image(self) -> tuple[int, int, int]:
        """(C, H, W) of an image: see ``images``. Raises TaskError where nothing tells."""
        try:
            return image_shape(self.model, self.config)
        except TaskError:
            found = fitting_shape(self)
            if found is None:
                raise
            return found

    # ... and facts that one forward shows.

    @functools.cached_property
    def facts(self) -> Facts:
        """One forward of (5, 7) ids, or of two images, with everything it shows."""
        if self._no_facts is not None:
            raise Blocked(self._no_facts)
        try:
            with guard(self.model, derive_seed(self.seed, "facts")), torch.no_grad():
                self.model.eval()
                return first_look(self)
        except Exception as error:
            line = error_line(error)
            self._no_facts = f"the first forward raised: {line}"
            raise

    @functools.cached_property
    def task(self) -> TaskSpec:
        """What the model is for, by declarations, then by structure; else assumed causal LM."""
        found = declared_task(self.model, self.config, self._task)
        by_type = found is not None and found.origin.startswith(BY_TYPE)
        if found is not None and not (by_type and self.facts.rank == 2):
            return found
        if self.vision:
            return TaskSpec("vision_classification", "found: reads an image")
        facts = self.facts
        if self.decodes:
            return TaskSpec("seq2seq", f"found: {self.signature.names['decoder_input_ids']}")
        if facts.rank == 2:
            return TaskSpec("classification", "found: one output a text")
        if named_like_an_encoder(self.model):
            return TaskSpec("masked_lm", f"found: class {type(self.model).__name__}")
        inside = encoder_inside(self.model)
        if inside is not None:
            return TaskSpec("masked_lm", f"found: {inside} inside")
        mask = kept_mask(self.model)
        if mask is not None and self._looks_ahead():
            return TaskSpec("masked_lm", f"found: {mask}")
        return TaskSpec("causal_lm", "assumed")

    def _looks_ahead(self) -> bool:
        """Whether the first output moves when the last token is another."""
        ids = torch.arange(2 * _FEW).view(2, _FEW) % self.vocab_size
        ids[1, :-1] = ids[0, :-1]
        batch = complete(self, Batch({"input_ids": ids}), labels=False).to(self.device)
        try:
            with guard(self.model, derive_seed(self.seed, "ahead")), torch.no_grad():
                self.model.eval()
                first, other = self(batch).logits[:, 0]
        except Exception:  # noqa: BLE001 - then nothing tells
            return False
        return float((first - other).abs().max()) > 1e-4 * float(first.abs().max())

    @property
    def decoder_type(self) -> str | None:
        """See ``declared.decoder_type``."""
        return decoder_type(self.config, self.task)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Declared, else the rows of the table that the ids index, else bytes where ids are hashed
        or computed with. Raises TaskError."""
        found = self.declared_vocabulary or self.facts.vocabulary.get("input_ids")
        if found is None and self._takes_any_id():
            return _BYTES
        if found is None:
            raise TaskError(
                "the vocabulary size cannot be found: no config key, and no table is indexed by "
                'the ids\n  declare it: "vocab_size" in config.json'
            )
        return found

    def _takes_any_id(self) -> bool:
        """Whether forward takes ids that no table has a row for."""
        rows, length = probe_sizes(self.model, None)
        far = torch.arange(rows * length).view(rows, length) + _FAR_ID
        batch = complete(self, Batch({"input_ids": far}), labels=False).to(self.device)
        try:
            with guard(self.model, derive_seed(self.seed, "any id")), torch.no_grad():
                self.model.eval()
                self.call(batch, {})
        except Exception:  # noqa: BLE001 - then the vocabulary has to be declared
            return False
        return True

    @functools.cached_property
    def declared_vocabulary(self) -> int | None:
        """The size of the vocabulary as the configuration has it.

        Where that is the target's, the source's is another number that the configuration holds.
        """
        found, rows = declared_size(self.config, VOCABULARY), self.facts.vocabulary
        own = rows.get("input_ids")
        targets = self.decodes and found == rows.get("decoder_input_ids") != own
        return own if targets and own in map(self.config.get, self.config) else found

    @functools.cached_property
    def target_vocab_size(self) -> int:
        """Of the decoder's input: declared, else the rows of the table that its ids index, else as
        many as there are outputs, if not more than the source has."""
        named = declared_size(self.config, TARGET_VOCABULARY)
        found = named or self.facts.vocabulary.get("decoder_input_ids")
        most = max(self.facts.width, 2) if self.decodes else self.vocab_size
        return found or min(self.vocab_size, most)

    @functools.cached_property
    def max_length(self) -> int | None:
        """The longest input: declared, less what an offset of its table takes; else what the
        tables read by position allow, or what the model refuses to go beyond; ``None`` where
        nothing bounds it."""
        named = None if self.facts.in_blocks else declared_size(self.config, LENGTH)
        if named is None and self.config.get("model_type") is None:
            named = declared_size(self.config, ("max_length",))
        tables = min(self.facts.limits, default=None)
        found = named or tables
        if named is not None and tables is not None and tables < named:
            another = self.decodes and named in self.facts.limits and named - tables > _OFFSET
            found = tables if another or self._pads_positions(named) else named
        return found if found is None else max(found - found % self.multiple, 1)

    def _pads_positions(self, rows: int) -> bool:
        """Whether a table of ``rows`` has a padding row: then positions start behind it."""
        for module in self.model.modules():
            table = getattr(module, "weight", None)
            padded = isinstance(getattr(module, "padding_idx", None), int)
            if padded and isinstance(table, torch.Tensor) and table.shape[0] == rows:
                return True
        return False

    @property
    def multiple(self) -> int:
        """What the model says that lengths have to be multiples of; 1 where it says nothing."""
        return 1 if self.vision else self.facts.multiple

    @functools.cached_property
    def small(self) -> bool:
        """Whether passes may be generous: at most 20M parameters, and no table of more than 65,536
        ids, whose logits for one text of 512 tokens take over 128 MiB."""
        widest = max((len(p) for p in self.model.parameters() if p.dim() > 1), default=0)
        return self.parameters <= LARGE and widest <= WIDE

    @functools.cached_property
    def sizes(self) -> tuple[int, int]:
        """(B, T) for probes: see ``sizes.probe_sizes``."""
        rows, length = probe_sizes(self.model, self.max_length, self.multiple)
        return min(rows, self.most_rows), length

    @functools.cached_property
    def other_sizes(self) -> tuple[int, int]:
        """A second (B, T), different from ``sizes`` in both."""
        rows, length = other_sizes(self.model, self.max_length, self.sizes, self.multiple)
        return min(rows, self.most_rows), length

    def batch(self, rows: int, length: int, *, seed: int = 0, source: int | None = None) -> Batch:
        """Random inputs: ids (rows, length) without special ids, or images.

        ``source`` is the length of a sequence-to-sequence model's encoder input; the default is
        two more than ``length`` where the maximum allows, so that the axes differ.
        """
        return random_batch(self, rows, length, seed, source)

    def __call__(self, batch: Batch, **extra: Any) -> Output:
        """Call the model on a batch; ``extra`` is handed to forward by role."""
        return self.read(self.call(batch, extra), batch)

    def read(self, raw: Any, batch: Batch) -> Output:
        """What the model returned for ``batch``, its logits as (B, T, V) or (B, K)."""
        column = self.facts.layout == "column"
        output = read_output(raw, column=column, per_token=self.per_token)
        if self.facts.layout == "rows":
            return output
        return replace(output, logits=self._arranged(output.logits, batch))

    def logits(self, batch: Batch) -> torch.Tensor:
        """The logits of a call alone, for a loop that asks for nothing else."""
        column = self.facts.layout == "column"
        raw = self.call(batch, {})
        return self._arranged(read_logits(raw, column=column, per_token=self.per_token), batch)

    def _arranged(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Logits as (B, T, V) or (B, K), whatever the model makes of them."""
        layout = self.facts.layout
        if layout == "rows":
            return logits
        following = batch.inputs.get("decoder_input_ids", batch.main)
        return arrange(logits, layout, batch.rows, following.shape[1])

    def call(self, batch: Batch, extra: dict[str, Any]) -> Any:
        """See ``calling.call``."""
        with lent_to(self.model, self.lent_pad):
            return call(self, batch, extra)


def _refuse_programs(model: torch.nn.Module) -> None:
    """Raise NotApplicable for what was made from a model and keeps no promise of its code."""
    if isinstance(model, torch.jit.ScriptModule):
        raise NotApplicable(_SCRIPTED)
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):  # it refuses to
        raise NotApplicable(_EXPORTED)
