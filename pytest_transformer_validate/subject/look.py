"""What one forward of a model shows about it."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.sources.config import LENGTH
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.callers import find
from pytest_transformer_validate.subject.choices import as_choices
from pytest_transformer_validate.subject.declared import (
    TARGET_VOCABULARY,
    VOCABULARY,
    declared_size,
    declared_task,
    named_like_an_encoder,
)
from pytest_transformer_validate.subject.guard import derive_seed
from pytest_transformer_validate.subject.ids import few_ids
from pytest_transformer_validate.subject.images import fitting_shape
from pytest_transformer_validate.subject.inputs import complete, random_images
from pytest_transformer_validate.subject.layout import arrange, find_layout
from pytest_transformer_validate.subject.lent import asks_for_padding, lend_padding
from pytest_transformer_validate.subject.multiples import (
    find_multiple,
    named_lengths,
    says_multiple,
    typed_length,
    uncut_mask,
    whole_lengths,
    whole_table,
)
from pytest_transformer_validate.subject.outputs import Output, read_output
from pytest_transformer_validate.subject.packed import unpack
from pytest_transformer_validate.subject.setup import Setup, method_of
from pytest_transformer_validate.subject.signature import with_asked_mask
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.subject import Subject


# qlen, bsz = data.size(); or "[seq_len, batch_size]" in a description
_TIME_FIRST = re.compile(
    r"\b(\w*len\w*|seq\w*|time\w*|T|L), *(b|bs|bsz|batch\w*|B|N)\b *(, *\w+ *)?"
    r"(= *\w+\.(size\(\)|shape\b)|[\])])"
)


_BLOCK, _ANY = 64, 1 << 20  # tokens of a block; of a text that nothing bounds
_LONGEST = 4096  # tokens of a text that may be tried whole, where short ones do not run


@dataclass(frozen=True)
class Facts:
    """What one forward showed: see ``Subject.facts``.

    ``vocabulary`` holds, by role, the rows of the table that the ids index; ``compared`` the ids
    that the forward compares its input with (padding, separators); ``limits`` the lengths that
    tables read by position, or refusals, allow; ``rank`` and ``width`` are those of the output
    read as (B, T, V) or (B, K), ``rest`` its axes behind T; ``layout`` is how it stands (see
    layout); ``needs_labels`` says that all logits come only with labels; ``fixed_length`` is the
    declared maximum where the output always has that many positions; ``multiple`` is what the
    model says that lengths have to be multiples of, ``whole_table`` that it is the one length of a
    table which is added whole, and ``in_blocks`` that the declared ``block_size`` is that and no
    limit.
    """

    vocabulary: dict[str, int]
    compared: frozenset[int]
    limits: tuple[int, ...]
    rank: int
    width: int
    rest: tuple[int, ...]
    kind: str
    output_field: str
    layout: str = "rows"
    time_major: bool = False
    needs_labels: bool = False
    fixed_length: int | None = None
    multiple: int = 1
    whole_table: bool = False
    in_blocks: bool = False


def look(subject: Subject) -> Facts:
    """One forward of (5, 7) ids, or of two images, and what it shows.

    A model that cannot take that shape is looked at with others; what the first one raised comes
    through where none works.
    """
    subject.given = find(subject)
    subject.time_major = bool(subject.given.time_major)
    if subject.vision:
        return _facts(TableReader(subject.model, {}, 1), read_output(_of_images(subject)))
    first: Exception | None = None
    for rows, length in _shapes(subject):
        if first is not None and length == 1 and _reads_choices(subject):
            subject.choices = True
            return look(subject)
        try:
            facts = _look(subject, rows, length)
        except Exception as error:  # noqa: BLE001 - the first one is raised if nothing works
            if subject.lent_pad is None and asks_for_padding(error):
                lend_padding(subject)
                if subject.lent_pad is not None:
                    return look(subject)
            multiple = _multiple(subject, error) if first is None else 1
            first = first or error
            if multiple == 1:
                continue
            facts = _look(subject, min(5, subject.most_rows), multiple)
            return _blocked(subject, replace(facts, multiple=multiple))
        if first is None or typed_length(first):
            return _blocked(subject, facts)
        return _bounded(subject, facts, rows, length, first)
    assert first is not None
    return _otherwise(subject, first)


def _of_images(subject: Subject) -> object:
    """What forward gives for two images, which may have to be in one object."""
    images = random_images(subject, 2, torch.Generator().manual_seed(0))
    try:
        return subject.call(images, {})
    except Exception:
        if subject.packing is None:
            subject.packing = unpack(subject, images["pixel_values"])
            if subject.packing is not None:
                return subject.call(images, {})
        shape = fitting_shape(subject)
        if shape is None:
            raise
        subject.image = shape
        return subject.call(random_images(subject, 2, torch.Generator().manual_seed(0)), {})


def _multiple(subject: Subject, error: Exception) -> int:
    """The number of which lengths are multiples, where the model says that this one is none."""
    if not says_multiple(error):
        return 1
    longest = declared_size(subject.config, LENGTH)
    return find_multiple(longest, functools.partial(_runs, subject))


def _blocked(subject: Subject, facts: Facts) -> Facts:
    """The facts, with lengths as multiples of a declared ``block_size`` where the model refuses
    another one for its remainder, takes twice as many, and has tables for more."""
    size = declared_size(subject.config, ("block_size",))
    longest = declared_size(subject.config, tuple(name for name in LENGTH if name != "block_size"))
    longer = min(facts.limits, default=_ANY if size is not None and size <= _BLOCK else 0)
    if size is None or longest is not None or not 1 < size < longer:
        return facts
    try:
        subject.call(_first_batch(subject, 3, size + 1), {})
    except Exception as error:  # noqa: BLE001 - what it says is asked about
        if says_multiple(error) and _runs(subject, 2 * size):
            return replace(facts, multiple=size, in_blocks=True)
    return facts


def _bounded(subject: Subject, facts: Facts, rows: int, length: int, first: Exception) -> Facts:
    """The facts of a shape that was not the first: the declared length may be the only one, and
    tables are read from a shorter text, too."""
    declared = length == declared_size(subject.config, LENGTH)
    if uncut_mask(first, subject.model, length):
        return facts
    if declared and length > 1 and not any(_runs(subject, n) for n in (length - 1, length // 2)):
        return replace(facts, multiple=length, whole_table=whole_table(first, length))
    for only in _whole(subject, first):  # a single token runs wherever it is broadcast
        if length in (1, only) and _only(subject, only):
            return _at_one_length(subject, only, first)
    if not facts.limits and length > 1:
        shorter, _ = _read(subject, _first_batch(subject, rows, length // 2), length // 2)
        return replace(facts, limits=tuple(shorter.limits))
    return facts


def _at_one_length(subject: Subject, length: int, first: Exception) -> Facts:
    facts = _look(subject, min(5, subject.most_rows), length)
    added = whole_table(first, length)
    return replace(facts, limits=(length,), multiple=length, whole_table=added)


def _whole(subject: Subject, first: Exception) -> list[int]:
    """Lengths that may be the only one: what refused another one names it, or a layer needs it."""
    return list(dict.fromkeys([*named_lengths(first), *whole_lengths(subject.model)]))


def _only(subject: Subject, length: int) -> bool:
    """Whether a length runs, and neither one less nor twice as many."""
    return _runs(subject, length) and not any(_runs(subject, n) for n in (length - 1, 2 * length))


def _otherwise(subject: Subject, first: Exception) -> Facts:
    """What a model shows that no shape of ids is enough for: all inputs may have to be in one
    object, the one length be what it says, or caches be set up. Raises ``first`` where that is
    not it."""
    for rows, length in _shapes(subject) if subject.packing is None else []:
        subject.packing = unpack(subject, _first_batch(subject, rows, length).main)
        if subject.packing is not None:
            return look(subject)
    for length in _whole(subject, first):
        if _only(subject, length):
            return _at_one_length(subject, length, first)
    shown = _with_asked_mask(subject)
    if shown is not None:
        return shown
    method = method_of(subject)
    if method is not None:
        subject.setup = Setup(method)
        try:
            return _look(subject, min(5, subject.most_rows), 7)
        except Exception:  # noqa: BLE001 - then it is not what was missing
            subject.setup = None
    raise first


def _with_asked_mask(subject: Subject) -> Facts | None:
    """What a model shows whose required ``attention_mask`` is not (B, T)."""
    signature, given = subject.signature, subject.given
    renamed = with_asked_mask(signature)
    if renamed is None:
        return None
    subject.signature = renamed
    try:
        return look(subject)
    except Exception:  # noqa: BLE001 - a trial
        subject.signature, subject.given = signature, given
        return None


def _reads_choices(subject: Subject) -> bool:
    """Whether forward reads several texts a row, (B, 2, T), and gives one number for each."""
    if subject.choices or subject.signature.takes("decoder_input_ids"):
        return False
    subject.choices = True
    try:
        logits = read_output(subject.call(_first_batch(subject, 5, 7), {})).logits
        return tuple(logits.shape) == (5, 2)
    except Exception:  # noqa: BLE001 - a trial
        return False
    finally:
        subject.choices = False


def _runs(subject: Subject, length: int) -> bool:
    try:
        subject.call(_first_batch(subject, 3, length), {})
    except Exception:  # noqa: BLE001 - a trial
        return False
    return True


def _shapes(subject: Subject) -> list[tuple[int, int]]:
    longest = declared_size(subject.config, LENGTH)
    longest = None if longest is not None and longest > _LONGEST else longest
    most = declared_size(subject.config, ("max_batch_size",)) or 8
    shapes = [(5, 7), (3, 4), (2, longest or 32), (most, longest or 16), (1, 1)]
    fitting = [(min(b, most), min(t, longest or t)) for b, t in shapes]
    return list(dict.fromkeys(fitting))


def _look(subject: Subject, rows: int, length: int) -> Facts:
    batch, reader, raw = _first_read(subject, rows, length)
    unread = subject.signature.ambiguous and "decoder_input_ids" not in reader.vocabulary
    if unread and not _gives_its_length(subject, rows, length):
        subject.take_as_labels(str(subject.signature.ambiguous))
        batch = _first_batch(subject, rows, length)
        reader, raw = _read(subject, batch, length)
    subject.time_major = _reads_time_first(subject, batch, reader)
    if subject.time_major:
        reader, raw = _read(subject, batch, length)
    output = _output(subject, raw, rows)
    if _classifies_columns(subject, reader, output, rows, length):
        subject.time_major = True
        reader, raw = _read(subject, batch, length)
        output = read_output(raw)
    if _fills_in_masked(subject, reader, output, rows, length):
        subject.per_token = True
        output = read_output(raw, per_token=True)
    facts = replace(_facts(reader, output), time_major=subject.time_major)
    if _last_only(subject, output, length):
        batch = batch.with_(labels=batch.inputs.get("decoder_input_ids", batch.main))
        output = read_output(subject.call(batch, {}))
        facts = replace(facts, needs_labels=True)
    if subject.time_major:
        flat = output.logits.shape[0] == rows * length
        return _arranged(facts, output, "time_flat" if flat else "time", rows, length)
    layout = find_layout(
        tuple(output.logits.shape), rows, length, per_token=_follows(subject, output, rows, length)
    )
    facts = _arranged(facts, output, layout, rows, length)
    given = output.logits.shape[1] if output.logits.dim() == 3 else None
    if given != length and given == declared_size(subject.config, LENGTH):
        return replace(facts, fixed_length=given)
    if length == 1 and given not in (None, 1):  # spread over what mixes positions
        raise SubjectError(f"one token gave {given} outputs")
    return facts


def _output(subject: Subject, raw: object, rows: int) -> Output:
    """What forward gave; one number a text where a classifier is declared, or where no task is
    and nothing else is returned."""
    try:
        return read_output(raw, column=subject.one_number, per_token=subject.per_token)
    except SubjectError:
        if subject.declares_task:
            raise
        output = read_output(raw, column=True)
        if tuple(output.logits.shape) != (rows,) or output.logits is output.loss:
            raise
        return output


def _gives_its_length(subject: Subject, rows: int, length: int) -> bool:
    """Whether an output a token is as long as the target and not as the source: then a decoder
    reads the target, however it looks it up."""
    target = next((n for n in (length - 1, length - 2) if n > 0 and n != rows), None)
    if target is None:
        return False
    generator = torch.Generator().manual_seed(derive_seed(subject.seed, "target"))
    inputs = few_ids(subject, rows, length, target, generator)
    try:
        raw = subject.call(complete(subject, Batch(inputs), labels=False).to(subject.device), {})
        shape = tuple(read_output(raw).logits.shape)
    except Exception:  # noqa: BLE001 - labels of another length do not fit
        return False
    return len(shape) == 3 and shape[:2] in {(rows, target), (target, rows)}


def _first_read(subject: Subject, rows: int, length: int) -> tuple[Batch, TableReader, object]:
    """A first batch and what is read for it; one of fewer ids where nothing says how many there
    are, and their table turns out to have fewer rows than another one."""
    batch = _first_batch(subject, rows, length)
    reader = _reader(subject, batch, length)
    try:
        with reader:
            return batch, reader, subject.call(batch, {})
    except IndexError:
        read = {role: max(rows) for role, rows in reader.rows.items()}
        fewer = {role: n for role, n in read.items() if 1 < n <= int(reader.ids[role].max())}
        named = declared_size(subject.config, (*VOCABULARY, *TARGET_VOCABULARY))
        if named is not None or not fewer:
            raise
        subject.fewer_ids |= fewer
    return _first_read(subject, rows, length)


def _read(subject: Subject, batch: Batch, length: int) -> tuple[TableReader, object]:
    with _reader(subject, batch, length) as reader:
        raw = subject.call(batch, {})
    return reader, raw


def _reader(subject: Subject, batch: Batch, length: int) -> TableReader:
    roles = {role: t for role, t in batch.inputs.items() if role.endswith("input_ids")}
    if subject.choices:
        roles = {role: as_choices(role, t).flatten(0, 1) for role, t in roles.items()}
    return TableReader(subject.model, roles, length)


def _fills_in_masked(
    subject: Subject, reader: TableReader, output: Output, rows: int, length: int
) -> bool:
    """Whether an encoder by its name gives numbers for each id of the vocabulary behind those for
    a text: what it says of two sentences stands in front of what fills in masked tokens."""
    size = (rows, length, reader.vocabulary.get("input_ids"))
    beside = output.logits.dim() == 2 and any(t.shape == size for t in output.others)
    undeclared = declared_task(subject.model, subject.config, subject._task) is None
    return beside and undeclared and named_like_an_encoder(subject.model)


def _last_only(subject: Subject, output: Output, length: int) -> bool:
    logits = output.logits
    last = logits.dim() == 3 and logits.shape[1] == 1 != length
    return last and subject.signature.takes("labels")


def _follows(subject: Subject, output: Output, rows: int, length: int) -> bool:
    """Whether an output (B, T) has its second axis from the length, and not by chance."""
    if tuple(output.logits.shape) != (rows, length) or length < 2:
        return False
    shorter = read_output(subject.call(_first_batch(subject, rows, length - 1), {}))
    return tuple(shorter.logits.shape) == (rows, length - 1)


def _first_batch(subject: Subject, rows: int, length: int) -> Batch:
    """A batch that can be made before the vocabulary is known."""
    generator = torch.Generator().manual_seed(derive_seed(subject.seed, "facts"))
    inputs = few_ids(subject, rows, length, length, generator)
    return complete(subject, Batch(inputs), labels=False).to(subject.device)


def _reads_time_first(subject: Subject, batch: Batch, reader: TableReader) -> bool:
    """Declared by ``batch_first``, else seen: position tables are read to length B, not T."""
    if subject.given.time_major is not None:
        return subject.given.time_major
    named = subject.config.get("batch_first")
    if isinstance(named, bool):
        return not named
    batch_first = any(getattr(m, "batch_first", False) is True for m in subject.model.modules())
    tells = batch_first or subject.setup or subject.signature.takes("attention_mask")
    if reader.limits or tells:
        return False
    by_rows, _ = _read(subject, batch, batch.rows)
    if by_rows.limits:
        settled, _ = _read(subject, batch, reader.length)  # with tables that a forward made
        return not settled.limits and _follows_rows(subject, batch)
    return _says_time_first(subject) and _down_columns(subject, batch)


def _follows_rows(subject: Subject, batch: Batch) -> bool:
    """Whether what is read by position is shorter where there is one row less: a board's tables,
    read for the whole of it, are as long as by chance."""
    if batch.rows < 3:
        return True
    fewer = Batch({role: part[:-1] for role, part in batch.inputs.items()})
    whole, part = (_read(subject, some, some.rows)[0].limits for some in (batch, fewer))
    return whole == part


def _says_time_first(subject: Subject) -> bool:
    """Whether the code of forward unpacks sizes as (length, batch), or describes them so."""
    try:
        source = inspect.getsource(type(subject.model).forward)
    except (OSError, TypeError):
        return False
    return bool(_TIME_FIRST.search(source))


def _down_columns(subject: Subject, batch: Batch) -> bool:
    """Whether an id in the middle matters to its own column alone, and to nothing above it."""
    row, column = batch.rows // 2, batch.main.shape[1] // 2
    ids = batch.main.clone()
    ids[row, column] = ids[row, column - 1] + (ids[row, column] == ids[row, column - 1])
    one, other = (
        read_output(subject.call(b, {})).logits for b in (batch, batch.with_(input_ids=ids))
    )
    if one.dim() != 3 or one.shape[:2] != ids.shape:
        return False
    moved = (one != other).any(-1)
    beside = moved.clone()
    beside[:, column] = False
    return bool(moved[row + 1 :, column].any()) and not bool(
        beside.any() or moved[:row, column].any()
    )


def _classifies_columns(
    subject: Subject, reader: TableReader, output: Output, rows: int, length: int
) -> bool:
    """Whether ids (B, T) gave one output a column, and every module that knows two orders has
    the time first: then the columns are the texts."""
    orders = {getattr(module, "batch_first", None) for module in subject.model.modules()}
    tells = subject.given.time_major is not None or "batch_first" in subject.config
    time_first = False in orders and True not in orders and not reader.limits and not tells
    shape = output.logits.shape
    return time_first and len(shape) == 2 and shape[0] == length != rows


def _arranged(facts: Facts, output: Output, layout: str, rows: int, length: int) -> Facts:
    logits = arrange(output.logits, layout, rows, length)
    shape = tuple(logits.shape)
    return replace(facts, layout=layout, rank=len(shape), width=shape[-1], rest=shape[2:])


def _facts(reader: TableReader, output: Output) -> Facts:
    logits = output.logits
    return Facts(
        vocabulary=reader.vocabulary,
        compared=frozenset(reader.compared),
        limits=tuple(reader.limits),
        rank=logits.dim(),
        width=logits.shape[-1],
        rest=tuple(logits.shape[2:]),
        kind=output.kind,
        output_field=output.field,
    )
