"""What a call leaves behind: in later calls, in the weights, in the caller's inputs, in torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.probe.compare import moved_by
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.remains import Before, Left, rates_in, written
from pytest_transformer_validate.probe.trace import ROOT, Call, traced, where_raised
from pytest_transformer_validate.probe.watch import (
    first_change,
    first_difference,
    same,
    settings_of_torch,
)
from pytest_transformer_validate.subject.batch import Batch
from pytest_transformer_validate.subject.guard import seed_all
from pytest_transformer_validate.subject.inputs import with_special
from pytest_transformer_validate.subject.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = "the first input"
OTHER = "another input of the same shape"
LONGER = "a longer text"
SHORTER = "a shorter text"
FEWER = "fewer rows"
TRAINING = "a forward and backward in training mode"
TOO_LONG = "a text longer than the maximum"

_LONG = 48
_TOO_LONG = 512  # the longest maximum that is exceeded on purpose


@dataclass(frozen=True)
class Step:
    """One call in a row of calls: what was given, after what, how far the logits are from those
    that the model as loaded gives for it, or what it raised, and where; and what the probe was
    under."""

    given: str
    before: tuple[str, ...]
    moved: float
    reference: torch.Tensor
    raised: str | None = None
    place: str | None = None
    condition: str = "as loaded"


@dataclass(frozen=True)
class History:
    """Calls one after the other, with nothing given back between them."""

    steps: list[Step]
    left: Left


class States(Passes):
    """Passes about what one call leaves for the next."""

    _unreached: frozenset[str] = frozenset()

    def settled_history(self) -> History:
        """With every parameter moved at random where the model is small: a gate that starts at
        zero hides what is behind it, and so does a projection that the weights fulfil. As it was
        loaded where it exchanges parameters, as for a table that grows: then it makes them."""
        if not self.probe.subject.small:
            return self.history("as loaded")
        history = self.history("noised")
        return self.history("as loaded") if history.left.exchanged else history

    @remembered
    def history(self, condition: str) -> History:
        """Each input in a row of calls, against the model as loaded, which is given it alone."""
        with self.probe.under(condition):
            batches = self._batches
            alone = {n: self._alone(n) for n in batches if n != FIRST}
            return self._sequence(condition, self._order(batches), alone)

    @remembered
    def after_training(self) -> Step | None:
        """The first input after a forward and backward in training mode; ``None`` where training
        changed what it may change: buffers, parameters, counters; and for large models."""
        if not self.probe.subject.small:
            return None
        reference = self._first()
        with self._running() as subject:
            try:
                self._train()
            except Exception:  # noqa: BLE001 - training is judged elsewhere
                return None
            if any(module.training for module in subject.model.modules()):
                return None  # what eval() does not reach: see determinism
            moved = moved_by(reference, self._give(FIRST))
        if moved and self._training_changes():
            return None
        return Step(FIRST, (TRAINING,), moved, reference)

    def cut_in_training(self) -> frozenset[str]:
        """Parameters that the backward of ``after_training`` does not reach."""
        self.after_training()
        return self._unreached

    def _training_changes(self) -> bool:
        """Whether training, and a call after it, change buffers, parameters or counters."""
        with self._running() as subject:
            model = subject.model
            before = _numbers(model)
            tensors = [(t, t.clone()) for t in (*model.buffers(), *model.parameters())]
            self._train()
            self._give(FIRST)
            return _numbers(model) != before or not all(same(t, v) for t, v in tensors)

    @remembered
    def after_too_long(self) -> Step | None:
        """The first input after a text that is longer than declared; ``None`` where that raises,
        as it may."""
        subject = self.probe.subject
        longest = subject.max_length
        cheap = subject.small and subject.device.type == "cpu" and not subject.vision
        if not cheap or longest is None or longest > _TOO_LONG:
            return None
        with self._running():
            try:
                self._give(TOO_LONG)
            except Exception:  # noqa: BLE001 - a text that is too long may raise
                return None
            logits = self._give(FIRST)
        reference = self._first()
        return Step(FIRST, (TOO_LONG,), moved_by(reference, logits), reference)

    @remembered
    def _first(self) -> torch.Tensor:
        """What the model as loaded gives for the first input alone."""
        with self._running():
            return self._give(FIRST)

    @remembered
    def written_inputs(self) -> tuple[str, ...]:
        """Roles of the inputs that a forward writes to, or leaves asking for a gradient, when
        everything that it takes is given: special ids, padding, mask, positions, labels."""
        for batch in self._rich_batches():
            given = _copy(batch)
            try:
                with self.probe.running("states", "inputs") as subject:
                    subject.call(given, {})
            except Exception:  # noqa: BLE001 - what is optional may need what is not given
                continue
            return written(batch, given)
        return ()

    # Where it happens, on a failure only...

    def first_moved(self, step: Step) -> str | None:
        """The first module that gives something else than in the model as loaded."""
        if step.raised is not None:
            return step.place
        with self.probe.under(step.condition):
            before = self._traced((), step.given)
            after = self._traced(step.before, step.given)
        return first_difference(self.probe.subject.model, before, after)

    def first_writing(self, kind: str, name: str) -> str | None:
        """The first module during which a parameter, buffer or mode called ``name`` changes, or
        an input of that role, or a setting of torch."""
        if kind == "inputs":
            return self._first_writing_input(name)
        model = self.probe.subject.model
        condition = "noised" if kind == "parameters" and self.probe.subject.small else "as loaded"
        grad = kind == "settings" and not self.settled_history().left.settings
        with self.probe.under(condition), self.probe.running("states", grad=grad):
            if kind == "buffers":  # filled once is lawful: what goes on changing is meant
                self._give(FIRST)
            with first_change(model, _watch(model, kind, name)) as found:
                self._give(FIRST)
        return found[0] if found else None

    def _first_writing_input(self, role: str) -> str | None:
        model = self.probe.subject.model
        for batch in self._rich_batches():
            given = _copy(batch)
            if role not in given.inputs:
                continue
            try:
                with (
                    self.probe.running("states", "inputs") as subject,
                    first_change(model, lambda: role in written(batch, given)) as found,  # noqa: B023
                ):
                    subject.call(given, {})
            except Exception:  # noqa: BLE001 - as in written_inputs
                continue
            return found[0] if found else None
        return None

    # How it is done...

    def _running(self) -> Any:
        return self.probe.running("states")

    @functools.cached_property
    def _batches(self) -> dict[str, Batch]:
        """Every input by its name, without the one that is too long."""
        subject = self.probe.subject
        rows, length = subject.sizes
        rows = min(rows, 2)
        fewer = 3 - rows
        shapes = {FIRST: (rows, length), OTHER: (rows, length)}
        shapes |= {FEWER: (fewer, length)} if subject.small or subject.vision else {}
        if not subject.vision:
            longer = min(_LONG if subject.small else 32, subject.max_length or _LONG)
            longer, shorter = (max(1, n - n % subject.multiple) for n in (longer, length // 2))
            shapes |= {LONGER: (rows, longer)} if longer > length else {}
            fits = shorter < length and shorter % subject.multiple == 0 and subject.small
            shapes |= {SHORTER: (rows, shorter)} if fits else {}
        made = {name: self.probe.batch(*shape, "states", name) for name, shape in shapes.items()}
        return {**made, OTHER: self._padded(made[OTHER])}

    def _padded(self, batch: Batch) -> Batch:
        """The batch with padding behind its first text, if a mask tells of it or an id does: a
        mask that is kept for a shape is another one then."""
        subject = self.probe.subject
        ids = batch.inputs.get("input_ids")
        masked = subject.signature.takes("attention_mask")
        known = masked or subject.pad_id in subject.facts.compared
        if ids is None or ids.dim() != 2 or ids.shape[1] < 4 or not known:
            return batch
        keep, ids = torch.ones_like(ids), ids.clone()
        keep[0, -2:] = 0
        ids[0, -2:] = 0 if subject.pad_id is None else subject.pad_id
        padded = batch.with_(input_ids=ids)
        return padded.with_(attention_mask=keep) if masked else padded

    def _batch(self, name: str) -> Batch:
        if name != TOO_LONG:
            return self._batches[name]
        rows, length = 1, 2 * (self.probe.subject.max_length or 0)
        return self.probe.batch(rows, length, "states", name)

    def _order(self, batches: dict[str, Batch]) -> list[str]:
        wanted = [FIRST, FIRST, OTHER, LONGER, SHORTER, FEWER, FIRST]
        if not self.probe.subject.small:
            wanted = [FIRST, OTHER, LONGER, FEWER, FIRST]
        return [name for name in wanted if name in batches]

    def _give(self, name: str) -> torch.Tensor:
        """Logits of an input; random numbers are the same in every call."""
        seed_all(self.probe.seed_for("states"))
        return self.probe.subject(_copy(self._batch(name))).logits.detach()

    def _alone(self, name: str) -> torch.Tensor | None:
        try:
            with self._running():
                return self._give(name)
        except Exception:  # noqa: BLE001 - shape_robustness judges what has to be taken
            return None

    def _sequence(
        self, condition: str, order: list[str], alone: dict[str, torch.Tensor | None]
    ) -> History:
        steps: list[Step] = []
        with self._running() as subject:
            before = Before(subject.model, exact=subject.small)
            for index, name in enumerate(order):
                done = tuple(order[:index])
                if alone.get(name, steps) is None:
                    continue
                try:
                    given = _copy(self._batch(name))
                    seed_all(self.probe.seed_for("states"))
                    logits = subject(given).logits.detach()
                except Exception as error:
                    if not index:
                        raise
                    steps.append(_raised(subject.model, name, done, error, condition))
                    break
                before.note(self._batch(name), given, logits)
                reference = alone.setdefault(name, logits.clone())
                assert reference is not None
                moved = moved_by(reference, logits)
                steps.append(Step(name, done, moved, reference, condition=condition))
            return History(steps, before.left())

    def _train(self) -> None:
        probe = self.probe
        model = probe.subject.model
        seed_all(probe.seed_for("states"))
        with torch.enable_grad():
            model.train()
            logits = probe.subject(_copy(self._batch(FIRST))).logits
            logits.float().square().sum().backward()
        named = model.named_parameters()
        self._unreached = frozenset(n for n, p in named if p.requires_grad and p.grad is None)
        model.eval()

    def _traced(self, before: tuple[str, ...], name: str) -> list[Call]:
        with self._running() as subject:
            for earlier in before:
                if earlier == TRAINING:
                    self._train()
                else:
                    self._give(earlier)
            with traced(subject.model, tensors_in) as calls:
                self._give(name)
        return calls

    def _rich_batches(self) -> list[Batch]:
        """Batches with all that a forward takes, the richest first."""
        subject = self.probe.subject
        plain = self._batch(FIRST)
        if subject.vision:
            return [plain]
        batch = with_special(subject, plain)
        ids = batch["input_ids"].clone()
        keep = torch.ones_like(ids)
        if ids.shape[1] > 3:
            keep[0, -1] = 0
            ids[0, -1] = subject.pad_id if subject.pad_id is not None else 0
        steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).clone()
        extra = {
            "attention_mask": keep,
            "position_ids": steps,
            "token_type_ids": torch.zeros_like(ids),
        }
        taken = {role: t for role, t in extra.items() if subject.signature.takes(role)}
        rich = batch.with_(input_ids=ids, **taken)
        batches = [rich, batch.with_(input_ids=ids), plain]
        if subject.signature.takes("labels"):
            target = rich.inputs.get("decoder_input_ids", ids).clone()
            if subject.task.task_type == "classification":
                target = torch.zeros_like(ids[:, 0])
            batches.insert(0, rich.with_(labels=target))
        return [self._with_masks(batch) for batch in batches]

    def _with_masks(self, batch: Batch) -> Batch:
        """The batch with the masks that the caller has to make, which a call else adds unseen."""
        made = self.probe.subject.given.values(self.probe.subject, batch)
        tensors = {role: t for role, t in made.items() if isinstance(t, torch.Tensor)}
        return batch.with_(**{role: t for role, t in tensors.items() if role not in batch.inputs})


def _watch(model: nn.Module, kind: str, name: str) -> Callable[[], bool]:
    """Whether what ``name`` names is no longer as it is now."""
    if kind == "settings":
        setting = settings_of_torch()[name]
        return lambda: settings_of_torch()[name] != setting
    if kind == "modes":
        module = dict(model.named_modules())["" if name == ROOT else name]
        mode = module.training
        return lambda: module.training != mode
    if kind == "rates":
        keeper, attribute, rate = rates_in(model)[name]
        return lambda: getattr(keeper, attribute, rate) != rate
    registry = model.named_parameters if kind == "parameters" else model.named_buffers
    value = dict(registry())[name].detach().clone()
    return lambda: not same(dict(registry())[name].detach(), value)


def _raised(
    model: nn.Module, name: str, done: tuple[str, ...], error: Exception, condition: str
) -> Step:
    line = error_line(error)
    place = where_raised(model, error)
    return Step(name, done, float("inf"), torch.empty(0), line, place, condition)


def _numbers(model: nn.Module) -> list[Any]:
    """Counters and the like: plain numbers among the attributes of every module."""
    return [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) in (int, float) and name != "training"
    ]


def _copy(batch: Batch) -> Batch:
    return Batch({role: t.detach().clone() for role, t in batch.inputs.items()})
