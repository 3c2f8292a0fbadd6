"""The same inputs through a model and through the one it is compared with.

Axes: B batch, T positions, V outputs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.probe.align import Pair, align, first_apart, place
from pytest_transformer_validate.probe.compare import difference, over, sequence, trace
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.inputs import complete

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.reference import Reference

_LISTED = 5
_WHOLE = (torch.int8, torch.uint8, torch.qint8, torch.quint8, torch.qint32)
_MAIN = ("input_ids", "decoder_input_ids", "pixel_values")


@dataclass(frozen=True)
class Weights:
    """Which weights are compared: ``shared`` are the model's own in both; ``words`` for reports;
    ``untied`` names what is one tensor in the reference and several in the model."""

    shared: bool
    words: str
    untied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compared:
    """Outputs of one text (n, V): ``logits`` of the model, ``expected`` of the reference, at real
    tokens, over the outputs that both have; ``narrowed`` says that one has more;
    ``shapes`` are those of both where they do not agree."""

    logits: torch.Tensor
    expected: torch.Tensor
    narrowed: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def moved(self) -> float:
        """How far they are apart."""
        moved = difference(self.expected, self.logits.to(self.expected))
        moved = torch.where(self.expected.isnan() & self.logits.isnan(), 0, moved)
        return float(moved.nan_to_num(float("inf")).max()) if moved.numel() else 0.0


class Comparison(Passes):
    """Passes over two models. Raises NotApplicable where there is no reference."""

    _other: Probe | None = None

    @property
    def reference(self) -> Reference:
        """The reference of the run."""
        if self.probe.reference is None:
            raise NotApplicable("there is no model to compare with: name one by --tb-reference")
        return self.probe.reference

    def other(self) -> Probe:
        """The reference's own probe; loads it."""
        if self._other is None:
            with self.reference.subject_like(self.probe.subject) as subject:
                self._other = type(self.probe)(subject, seed=self.probe.seed)
        return self._other

    @remembered
    def weights(self) -> Weights:
        """Which weights to compare. Raises NotApplicable where there are no two to compare."""
        own, model = self.probe.weights, self.probe.subject.model
        theirs, other = self.reference.loaded().weights, self.other().subject.model
        names, lacking = _names(model), ""
        others = _names(other)
        if names.keys() != others.keys():
            lacking = _listed(names.keys() ^ others.keys(), "in one of the two only")
        elif any(names[name].shape != others[name].shape for name in names):
            different = [name for name in names if names[name].shape != others[name].shape]
            lacking = _listed(different, "of another shape")
        random = [words for words in (own, theirs) if words.startswith("random")]
        files = "as given" not in (own, theirs) and not random
        if not lacking and not files:
            return Weights(True, "the model's in both", _untied(names, others))
        if random:
            raise NotApplicable(
                f"the weights cannot be the same in both ({lacking}) and are random: load some "
                "into both"
            )
        return Weights(False, f"as loaded: {own} and {theirs}")

    @remembered
    def texts(self) -> list[str]:
        """What is compared: ``plain``; ``noised`` with all parameters moved, where they are the
        same in both; ``padded`` where both can be told; ``long`` near the maximum length."""
        subject, other = self.probe.subject, self.other().subject
        found = ["plain"]
        if self.weights().shared and subject.small:
            found.append("noised")
        if subject.vision or not subject.small:
            return found
        ways = [{covers for covers, _ in p.padding.told()} for p in (self.probe, self.other())]
        if subject.sizes[1] >= 6 and ways[0] and ways[0] == ways[1]:
            found.append("padded")
        longest = [s.max_length for s in (subject, other) if s.max_length is not None]
        if longest and subject.sizes[1] < min(longest) <= 512:
            found.append("long")
        return found

    @remembered
    def compared(self, text: str) -> Compared:
        """The outputs of one text in both."""
        with self._both(text) as (batch, other_batch, keep):
            logits = self.probe.forward(batch).logits
            expected = self.other().forward(other_batch).logits
        width = min(logits.shape[-1], expected.shape[-1])
        narrowed = logits.shape[-1] != expected.shape[-1]
        if logits.shape[:-1] != expected.shape[:-1]:
            return Compared(logits, expected, shapes=(tuple(logits.shape), tuple(expected.shape)))
        logits, expected = logits[..., :width], expected[..., :width]
        if keep is not None and logits.dim() > 2 and logits.shape[:2] == keep.shape:
            return Compared(logits[keep], expected[keep], narrowed)
        return Compared(logits.flatten(0, -2), expected.flatten(0, -2), narrowed)

    @remembered
    def layers(self, text: str) -> tuple[str, list[Pair]]:
        """Calls of both models, in pairs: see ``align``."""
        with self._both(text) as (batch, other_batch, _):
            calls = trace(self.probe, batch)
            others = trace(self.other(), other_batch)
        return align(self.probe.subject.model, calls, self.other().subject.model, others)

    def first_apart(self, text: str) -> tuple[str | None, str | None]:
        """Where the two first part, in the model's names and in the reference's."""
        _, pairs = self.layers(text)
        part = 64 * max(self.probe.eps, self.other().eps)

        def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
            return over(a, b.to(a), part)

        found = first_apart(pairs, moved)
        return (None, None) if found is None else place(pairs, found, moved)

    def blocks(self) -> int:
        """How many modules the longest list of the model has."""
        lists = [
            len(module)
            for module in self.probe.subject.model.modules()
            if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential)
        ]
        return max(lists, default=1)

    def noise(self, text: str) -> float:
        """The larger own noise of the two."""
        noises = []
        for probe in (self.probe, self.other()):
            with self._both(text):
                noises.append(probe.noise())
        return max(noises)

    def in_float64(self, text: str) -> tuple[float, str]:
        """How far the outputs are apart in float64, or with other texts where it does not run."""
        try:
            twin, other = self.probe.in_float64(), self.other().in_float64()
        except Exception:  # noqa: BLE001 - a model need not run in float64
            twin, other = self._reseeded(self.probe), self._reseeded(self.other())
        try:
            return self._of(twin, other, text), "in float64"
        except Exception:  # noqa: BLE001 - a model need not run in float64
            twin, other = self._reseeded(self.probe), self._reseeded(self.other())
            return self._of(twin, other, text), "with another seed (float64 does not run)"

    @property
    def quantised(self) -> bool:
        """Whether one of the two keeps its weights as whole numbers."""
        return any(map(_quantised, (self.probe.subject.model, self.other().subject.model)))

    def _of(self, probe: Probe, other: Probe, text: str) -> float:
        twin = Comparison(probe)
        twin._other = other
        probe.reference = self.probe.reference
        probe.weights = self.probe.weights
        return twin.compared(text).moved

    def _reseeded(self, probe: Probe) -> Probe:
        return type(probe)(probe.subject, seed=probe.seed + 1, weights=probe.weights)

    @contextlib.contextmanager
    def _both(self, text: str) -> Iterator[tuple[Batch, Batch, torch.Tensor | None]]:
        """The text for each model, and its real tokens, with the weights that are compared."""
        scope = self.reference.loaded().scope
        sharing = self.weights().shared
        condition = "noised" if text == "noised" else "plain"
        with scope, self.probe.under(condition):
            own, other = self.probe.subject, self.other().subject
            with contextlib.ExitStack() as stack:
                if sharing:
                    stack.enter_context(_shared_weights(own.model, other.model))
                yield self._batches(text)

    def _batches(self, text: str) -> tuple[Batch, Batch, torch.Tensor | None]:
        probe, other = self.probe, self.other()
        rows, length = probe.subject.sizes
        most = min(s.max_length or length for s in (probe.subject, other.subject))
        smaller = probe
        if not probe.subject.vision and other.subject.vocab_size < probe.subject.vocab_size:
            smaller = other
        length = most if text == "long" else min(length, most)
        rows = 1 if text == "long" else min(rows, other.subject.most_rows)
        drawn = smaller.batch(rows, length, "reference", probe.seed)
        main = {role: t for role, t in drawn.inputs.items() if role in _MAIN}
        batches = [_completed(p, Batch(main)) for p in (probe, other)]
        keep = None
        if text == "padded":
            for index, each in enumerate((probe, other)):
                for covers, way in each.padding.told():
                    kept = probe.padding.keep(main[covers], probe.padding.layout(covers))
                    keep = kept if covers == sequence(probe) else keep
                    if way is not None:
                        batches[index] = way.tell(batches[index], kept)
                    else:
                        pad = each.subject.pad_id or 0
                        ids = main[covers].masked_fill(~kept, pad)
                        batches[index] = batches[index].with_(**{covers: ids})
        return batches[0], batches[1], keep


def _completed(probe: Probe, batch: Batch) -> Batch:
    subject = probe.subject
    return batch if subject.vision else complete(subject, batch).to(subject.device)


def _names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _listed(names: object, what: str) -> str:
    found = sorted(names)  # type: ignore[call-overload]
    more = ", ..." if len(found) > _LISTED else ""
    return f"{len(found)} {what}: {', '.join(found[:_LISTED])}{more}"


def _untied(names: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of one tensor of the reference that hold different numbers in the model."""
    groups: dict[int, list[str]] = {}
    for name, tensor in others.items():
        groups.setdefault(id(tensor), []).append(name)
    for group in groups.values():
        if any(not torch.equal(names[group[0]], names[name]) for name in group[1:]):
            return tuple(group)
    return ()


@contextlib.contextmanager
def _shared_weights(model: torch.nn.Module, other: torch.nn.Module) -> Iterator[None]:
    """The reference with the model's parameters and running statistics; nothing is copied, and
    its own come back."""
    own = {**_names(model), **_statistics(model)}
    theirs = {**_names(other), **_statistics(other)}
    held = [(tensor, tensor.data, own[name]) for name, tensor in theirs.items() if name in own]
    try:
        for tensor, _, replacement in held:
            tensor.data = replacement.data.to(tensor.device, tensor.dtype)
        yield
    finally:
        for tensor, data, _ in reversed(held):
            tensor.data = data


def _statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: b for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")}


def _quantised(model: torch.nn.Module) -> bool:
    if getattr(model, "is_quantized", False) is True:
        return True
    if any(p.dtype in _WHOLE for p in (*model.parameters(), *model.buffers())):
        return True
    return any(".quantized." in type(module).__module__ for module in model.modules())
