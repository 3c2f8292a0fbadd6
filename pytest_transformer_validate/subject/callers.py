"""Finding out in which form a model takes what it requires beside ids.

The forms that people use are tried, the common ones first, on tiny texts. Of those with which the
model runs, one that means what a mask means is taken: a causal mask hides later tokens, another
one the tokens that it is told to hide, and both leave the rest to be seen. Where none does, the
nearest to it is taken, and the checks say what is wrong.
"""

from __future__ import annotations

import itertools
import re
import warnings
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import SubjectError, error_line
from pytest_transformer_validate.sources.config import LENGTH
from pytest_transformer_validate.subject.asked import (
    CROSS,
    NOTHING,
    SOURCE,
    TARGET,
    Form,
    Mask,
    MaskName,
    is_bias,
    mask_name,
    says_real,
    values,
)
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.declared import (
    declared_size,
    declared_task,
    encoder_inside,
    named_like_an_encoder,
)
from pytest_transformer_validate.subject.given import Given, frame_of
from pytest_transformer_validate.subject.guard import derive_seed, guard
from pytest_transformer_validate.subject.ids import few_ids
from pytest_transformer_validate.subject.inputs import complete, random_images
from pytest_transformer_validate.subject.layout import arrange, find_layout
from pytest_transformer_validate.subject.outputs import read_output
from pytest_transformer_validate.subject.sizes import other_sizes, probe_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.subject import Subject

# Layouts of masks that go together: over the outputs' own positions, over others, of padding.
_HABITS = {
    "torch": ("qk", "qk", "bk"),
    "keys": ("bk", "bk", "bk"),
    "three axes": ("bqk", "b1k", "b1k"),
    "four axes": ("b1qk", "b11k", "b11k"),
    "pairs, and four axes": ("qk", "b11k", "b11k"),
    "pairs, and three axes": ("qk", "b1k", "b1k"),
    "three axes, and keys": ("bqk", "b1k", "bk"),
    "pairs of each row": ("bqk", "bqk", "bqk"),
    "pairs of each head": ("b1qk", "b1qk", "b1qk"),
    "one for all rows": ("1qk", "1qk", "bk"),
    "one for all heads": ("11qk", "11qk", "b11k"),
    "keys of each query": ("b1k", "b1k", "b1k"),
    "keys of each head": ("b11k", "b11k", "b11k"),
    "pairs, and keys": ("qk", "bk", "bk"),
}
_CROSSES = re.compile(r"dec(oder)?_(pad|padding)_?mask$")
_OPEN_FIRST = ("keys", "keys of each head", "keys of each query")
_MEANINGS = {
    "torch": (("block", "keep", "keep number", "block number", "add"),) * 2,
    "": (("keep", "keep number", "block", "block number", "add"),) * 2,
}
# The meanings with which layouts are tried: code asks for numbers here and for bools there, and
# may raise where everything is hidden.
_FIRST = {
    "torch": (("block", "block"), ("keep", "keep"), ("keep number", "keep number")),
    "keys": (("keep", "keep"), ("block", "block"), ("keep number", "keep number")),
    "": (("keep", "keep"), ("keep number", "keep number")),
}
_MEASURED = 40  # forwards that measure what masks mean
_TRIALS = 120  # forwards; most of them raise at once
_UNKNOWN = 1.0  # the score of a mask of which nothing can be seen


def find(subject: Subject) -> Given:
    """The forms of everything that forward requires and that has more than one.

    Raises SubjectError where the model runs with none of them.
    """
    if not subject.signature.asked:
        return Given()
    try:
        return _Search(subject).find()
    except SubjectError:
        if subject.signature.ambiguous is None:
            raise
    subject.take_as_labels(subject.signature.ambiguous)
    return _Search(subject).find()


class _OutOfTrials(Exception):
    pass


class _Search:
    """Trials on one subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.left = _TRIALS
        self.first: Exception | None = None
        signature = subject.signature
        self.names = {role: signature.names[role] for role in signature.asked}
        masks = {r: mask_name(n, decodes=subject.decodes) for r, n in self.names.items()}
        self.masks = {role: mask for role, mask in masks.items() if mask is not None}
        self.others = {
            role: values(self.names[role], annotation) or [NOTHING]
            for role, annotation in signature.asked.items()
            if role not in self.masks
        }
        task = declared_task(subject.model, subject.config, subject._task)
        self.declared = task is not None
        encodes = named_like_an_encoder(subject.model) or encoder_inside(subject.model)
        assumed = "masked_lm" if encodes else "causal_lm"
        kind = assumed if task is None else task.task_type
        self.causal = kind in {"causal_lm", "seq2seq"} or subject.decodes
        self.own = TARGET if subject.decodes else SOURCE
        self.batch = self._text()

    # What is tried...

    def find(self) -> Given:
        """See ``find``."""
        found = self._first_that_runs()
        if found is None:
            raise SubjectError(self._failure())
        habit, forms, time_major = found
        self._set(time_major)
        if self.masks and not self.subject.vision:
            forms = self._meant(habit, forms)
        oriented = any(isinstance(form, Mask) or form.by_rows for form in forms.values())
        self._set(None)
        order = time_major if oriented else None
        return Given(forms, self.names, self.own, self.causal, order)

    def _first_that_runs(self) -> tuple[str, dict[str, Form], bool] | None:
        """The first habit, forms and orientation with which the model runs and gives a row for
        each text; else the first with which it runs at all."""
        odd = None
        try:
            for habit, forms, time_major in self._ways():
                self._set(time_major)
                try:
                    logits = self._run(forms)
                except _OutOfTrials:
                    raise
                except Exception as error:  # noqa: BLE001 - any form but the right one may raise
                    self.first = self.first or error
                    continue
                undeclared = self.causal and not self.declared and self.own == SOURCE
                if logits.dim() == 2 and undeclared:
                    self.causal = False
                    return self._first_that_runs()
                if logits.shape[0] == self.batch.rows:
                    return habit, forms, time_major
                odd = odd or (habit, forms, time_major)
        except _OutOfTrials:
            pass
        finally:
            self._set(None)
        return odd

    def _orders(self) -> list[bool]:
        """Whether ids are (T, B): as declared, else both, as most modules have it first."""
        named = self.subject.config.get("batch_first")
        if isinstance(named, bool):
            return [not named]
        first = [getattr(m, "batch_first", None) for m in self.subject.model.modules()]
        return [True, False] if False in first and True not in first else [False, True]

    def _ways(self) -> Iterator[tuple[str, dict[str, Form], bool]]:
        """What is tried, the likeliest first."""
        orders = self._orders()
        others = list(itertools.product(*self.others.values()))
        if not self.masks:
            for chosen, order in itertools.product(others, orders):
                yield "", dict(zip(self.others, chosen, strict=True)), order
            return
        seen = set()
        for chosen, order, habit, names in itertools.product(
            others, orders, self._habits(), self._readings()
        ):
            self.masks = names
            for meaning in _FIRST.get(habit, _FIRST[""]):
                masks = self._masks(habit, *meaning)
                forms = {**dict(zip(self.others, chosen, strict=True)), **masks}
                key = (chosen, order, tuple(masks.values()))
                if key not in seen:
                    seen.add(key)
                    yield habit, forms, order
        for order in orders:
            nothing: dict[str, Form] = dict.fromkeys(self.masks, NOTHING)
            yield "", {**dict(zip(self.others, others[0], strict=True)), **nothing}, order

    def _readings(self) -> list[dict[str, MaskName]]:
        """What the names of masks say; a decoder's padding mask may be about the source, for its
        cross attention, and so may be a mask that is the only one."""
        other = {
            role: MaskName(CROSS, name.padding)
            if name.padding and name.side == TARGET and _CROSSES.match(self.names[role])
            else name
            for role, name in self.masks.items()
        }
        readings = [self.masks] if other == self.masks else [self.masks, other]
        alone = self.subject.decodes and list(self.names) == list(self.masks) == ["mask"]
        return [*readings, {"mask": MaskName(SOURCE, True)}] if alone else readings

    def _habits(self) -> list[str]:
        """The habits; where nothing is causal, masks over keys come first."""
        if self.causal:
            return list(_HABITS)
        return [*_OPEN_FIRST, *(habit for habit in _HABITS if habit not in _OPEN_FIRST)]

    def _masks(self, habit: str, structure: str, padding: str) -> dict[str, Form]:
        own, other, keys = _HABITS[habit]
        forms: dict[str, Form] = {}
        for role, name in self.masks.items():
            layout = keys if name.padding else own if name.side == self.own else other
            forms[role] = Mask(name.side, layout, padding if name.padding else structure)
        return forms

    # ... and which of it means what it should...

    def _meant(self, habit: str, forms: dict[str, Form]) -> dict[str, Form]:
        """The forms whose masks hide what they say and nothing else, in the habit's layouts."""
        if not habit:
            return forms
        best, least = forms, float("inf")
        for moved in (False, True):
            self.left = _MEASURED
            try:
                for candidate in self._meanings(habit, forms):
                    score = self._score(candidate, moved)
                    if score < least:
                        best, least = candidate, score
                    if least == 0:
                        return best
            except _OutOfTrials:
                return best
            if least < _UNKNOWN or not self.subject.small:
                return best
        return best

    def _meanings(self, habit: str, forms: dict[str, Form]) -> Iterator[dict[str, Form]]:
        unsaid = {"add"} if any(says_real(self.names[role]) for role in self.masks) else set()
        structures, paddings = (
            [value for value in each if value not in unsaid]
            for each in _MEANINGS.get(habit, _MEANINGS[""])
        )
        if all(is_bias(self.names[role]) for role in self.masks):
            structures = paddings = ["add"]
        kinds = {mask.padding for mask in self.masks.values()}
        pairs = itertools.product(enumerate(structures), enumerate(paddings))
        ranked = sorted(pairs, key=lambda pair: pair[0][0] + pair[1][0])
        seen = set()
        for (_, structure), (_, padding) in ranked:
            key = (structure if False in kinds else "", padding if True in kinds else "")
            if key not in seen:
                seen.add(key)
                yield {**forms, **self._masks(habit, structure, padding)}

    def _score(self, forms: dict[str, Form], moved: bool) -> float:
        """How far the forms are from their meaning: 0 where every mask hides exactly what it
        should, infinite where the model raises or gives NaN."""
        with _Moved(self.subject, moved):
            try:
                if bool(self._run(forms).isnan().any()):
                    return float("inf")
                scores = [self._hides(forms, roles) for roles in self._groups(forms)]
            except _OutOfTrials:
                raise
            except Exception:  # noqa: BLE001 - any form but the right one may raise
                return float("inf")
        return sum(scores)

    def _groups(self, forms: dict[str, Form]) -> list[tuple[str, ...]]:
        """Masks that are over the same positions, and so hide them together."""
        frame = frame_of(self.subject, self.batch, self.causal)
        groups: dict[str, tuple[str, ...]] = {}
        for role in self.masks:
            form = forms[role]
            assert isinstance(form, Mask)
            key = "later" if form.orders(frame) else TARGET if form.side == TARGET else SOURCE
            groups[key] = (*groups.get(key, ()), role)
        return list(groups.values())

    def _hides(self, forms: dict[str, Form], roles: tuple[str, ...]) -> float:
        """How much more outputs see of what masks hide than of what they show, at most 10."""
        form = forms[roles[0]]
        assert isinstance(form, Mask)
        if self.batch.rows < 3 or min(t.shape[1] for t in self.batch.inputs.values()) < 5:
            return _UNKNOWN
        ordered = form.orders(frame_of(self.subject, self.batch, self.causal))
        side = TARGET if form.side == TARGET else SOURCE
        ids = "decoder_input_ids" if side == TARGET else "input_ids"
        text = self.batch[ids][:1].expand_as(self.batch[ids]).clone()
        middle = text.shape[1] // 2
        hidden = slice(middle, None) if ordered else slice(1, 3)
        text[1, hidden] = self.other[ids][0, hidden]
        text[2, 0] = self.other[ids][0, 0]
        copies = {r: t[:1].expand_as(t).clone() for r, t in self.batch.inputs.items()}
        logits = self._run(forms, Batch({**copies, ids: text}), hide=roles).double()
        seeing, shown = slice(None), slice(None)
        if logits.dim() == 3 and side == self.own:
            seeing = slice(None, middle) if ordered else slice(3, None)
            shown = slice(1, None) if ordered else slice(3, None)
        leak = float((logits[1] - logits[0])[seeing].abs().max())
        effect = float((logits[2] - logits[0])[shown].abs().max())
        floor = 64 * torch.finfo(self.subject.dtype).eps * float(logits.abs().max())
        if leak <= floor:
            return 0.0 if effect > floor else _UNKNOWN
        return min(leak / max(effect, floor), 10.0) if leak == leak else 10.0

    # ... and how it is run.

    def _set(self, time_major: bool | None) -> None:
        self.subject.time_major = bool(time_major)

    def _run(
        self, forms: dict[str, Form], batch: Batch | None = None, hide: tuple[str, ...] = ()
    ) -> torch.Tensor:
        """The output as (B, T, V) or (B, K); the masks ``hide`` hide some positions."""
        if not self.left:
            raise _OutOfTrials
        self.left -= 1
        subject, batch = self.subject, batch or self.batch
        frame = frame_of(subject, batch, self.causal)
        with (
            warnings.catch_warnings(),
            guard(subject.model, derive_seed(subject.seed, "callers")),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            given = {
                role: form.make(frame, hides=True)
                if role in hide and isinstance(form, Mask)
                else form.make(frame)
                for role, form in forms.items()
            }
            raw = subject.call(batch, given)
            logits = read_output(raw, column=True).logits
        if subject.vision:
            return logits
        rows, length = frame.rows, frame.target
        if subject.time_major:
            flat = logits.dim() == 2 and logits.shape[0] == rows * length
            layout = "time_flat" if flat else "time" if logits.shape[:2] == (length, rows) else ""
            return arrange(logits, layout, rows, length)
        layout = find_layout(tuple(logits.shape), rows, length, per_token=True)
        return arrange(logits, layout, rows, length)

    def _text(self) -> Batch:
        """Ids of three different lengths that nothing in the model has: B, S and T."""
        subject = self.subject
        generator = torch.Generator().manual_seed(derive_seed(subject.seed, "callers"))
        if subject.vision:
            return random_images(subject, 2, generator)
        longest = declared_size(subject.config, LENGTH)
        sizes = probe_sizes(subject.model, longest)
        rows, target = min(sizes[0], subject.most_rows), sizes[1]
        source = other_sizes(subject.model, longest, sizes)[1] if subject.decodes else target
        self.other = Batch(few_ids(subject, rows, source, target, generator)).to(subject.device)
        first = Batch(few_ids(subject, rows, source, target, generator))
        first = complete(subject, first, labels=False).to(subject.device)
        return first.with_(
            **{role: _unlike(first[role], self.other[role]) for role in self.other.inputs}
        )

    def _failure(self) -> str:
        asked = ", ".join(self.names.values())
        tried = _TRIALS - self.left
        raised = error_line(self.first) if self.first else "nothing"
        return (
            f"forward requires {asked}, and no form of it was found with which it runs\n"
            f"  signature: {self.subject.signature.text[:300]}\n"
            f"  the first of {tried} trials raised {raised}\n"
            "  give the parameter a default, or wrap the model so that forward takes input_ids"
        )


def _unlike(ids: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The ids, with another one wherever both are the same."""
    pool = torch.cat([ids, other]).flatten()
    for place in (ids == other).nonzero().tolist():
        different = pool[pool != other[tuple(place)]]
        if len(different):
            ids[tuple(place)] = different[0]
    return ids


class _Moved:
    """With ``moved``, every parameter moved at random while inside: a gate that starts at zero
    hides what a mask does."""

    def __init__(self, subject: Subject, moved: bool) -> None:
        self.parameters = list(subject.model.parameters()) if moved else []
        self.data = [p.data for p in self.parameters]
        self.generator = torch.Generator().manual_seed(derive_seed(subject.seed, "moved"))

    def __enter__(self) -> None:
        for p in self.parameters:
            if p.is_floating_point() and p.numel():
                scale = 0.5 / p.data[0].numel() ** 0.5 if p.dim() > 1 else 0.1
                noise = torch.randn(p.shape, generator=self.generator).to(p.device, p.dtype)
                p.data = p.data + scale * noise

    def __exit__(self, *_: object) -> None:
        for p, data in zip(self.parameters, self.data, strict=True):
            p.data = data
