"""Random numbers: what depends on them in evaluation, and what draws them in training."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.alike import like_layers, undropped
from pytest_transformer_validate.probe.compare import difference
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT, traced
from pytest_transformer_validate.probe.watch import (
    drawing,
    first_change,
    first_difference,
    generator_state,
    same,
    settings_of_torch,
    watched,
)
from pytest_transformer_validate.subject.declared import declared_size
from pytest_transformer_validate.subject.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.probe.trace import Call
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_DROPOUT = nn.modules.dropout._DropoutNd
_RARE = 24  # states that are tried where something draws: a layer may be left out rarely
_BEYOND_CHANCE = 20.0  # expected number of entries in which two draws differ
_CONFIRMED = 8  # further forwards in training mode before a layer is said never to draw
_NOT_READING = ("shape", "dtype", "device", "ndim", "requires_grad")
_CLASSES = ("num_labels", "num_classes", "n_classes")


@dataclass(frozen=True)
class Twice:
    """One batch in evaluation under two random states, each with the model as it was loaded.

    ``moved`` is how far the logits of the state called ``other`` are from the first ones,
    ``repeated`` how far those of the first state given again; ``reseeded`` are the generators
    that are in the same state after both, ``settings`` what a forward changed in torch,
    ``draws`` says whether a generator is in another state after the first one, ``condition`` is
    what the probe was under.
    """

    way: str
    reference: torch.Tensor
    moved: float
    other: str = "another"
    repeated: float = 0.0
    reseeded: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    draws: bool = False
    condition: str = "as loaded"


@dataclass(frozen=True)
class Trained:
    """What forwards in training mode show.

    ``moved`` is how far two random states move the logits; ``drawing`` are the modules whose own
    code draws; ``active`` are the dropout modules that are called, with their probability, and
    ``inside`` the called modules of torch that drop without one; ``idle`` those called in
    evaluation mode although something of theirs is trained; ``uncalled`` those never called,
    where nothing around them draws instead (their probability may be read); ``discarded`` those
    whose output nothing reads; ``on_logits`` the place of a dropout whose output are the logits;
    ``alike`` those that drop the same numbers in the next forwards too, and ``reseeded`` whether
    torch's generator is in the same state after two of them.
    """

    moved: float
    drawing: tuple[str, ...]
    active: dict[str, float]
    inside: tuple[str, ...]
    idle: tuple[str, ...]
    uncalled: tuple[str, ...]
    discarded: tuple[str, ...]
    on_logits: str | None
    alike: tuple[str, ...] = ()
    reseeded: bool = False


@dataclass(frozen=True)
class HandWritten:
    """A dropout of the model's own: share of zeros, and the mean where ones went in."""

    name: str
    zeros: float
    mean: float
    entries: int


@dataclass(frozen=True)
class Declared:
    """Where a dropout above zero is declared: dropout ``modules``, torch modules that drop
    ``inside``, ``attributes`` of other modules, ``keys`` of the configuration."""

    modules: tuple[str, ...]
    inside: tuple[str, ...]
    attributes: tuple[str, ...]
    keys: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.modules or self.inside or self.attributes or self.keys)


class Draws(Passes):
    """Passes about random numbers."""

    @remembered
    def declared_dropout(self) -> Declared:
        """Where a dropout above zero is declared."""
        subject = self.probe.subject
        modules = list(subject.model.named_modules())
        config = ((key, subject.config.get(key)) for key in subject.config)
        return Declared(
            modules=tuple(n for n, m in modules if isinstance(m, _DROPOUT) and m.p > 0),
            inside=tuple(n for n, m in modules if drops_inside(m)),
            attributes=tuple(
                f"{name}.{attribute}".removeprefix(".")
                for name, module in modules
                if not isinstance(module, _DROPOUT) and not drops_inside(module)
                for attribute, value in vars(module).items()
                if _is_rate(attribute, value)
            ),
            keys=tuple(key for key, value in config if _is_rate(key, value)),
        )

    def ways(self) -> list[str]:
        """How the model is called in evaluation: plainly, with gradients recorded (another path
        in torch's own layers, and in models that confuse the two), and with an explicit mask."""
        subject = self.probe.subject
        masks = subject.signature.takes("attention_mask") and not subject.vision and subject.small
        return ["plain", "gradients", *(["masked"] if masks else [])]

    @remembered
    def drawn_twice(self, way: str) -> Twice:
        """The same batch under two random states in evaluation; see ``ways``.

        Where something draws and nothing moves, a few more, and with every parameter moved at
        random: a layer may be left out rarely, or stand behind a gate that is closed.
        """
        twice = self._twice(way, "another", "as loaded")
        if twice.moved or not twice.draws:
            return twice
        small = self.probe.subject.small
        for time in range(_RARE if small else 2):
            again = self._twice(way, f"another {time}", "as loaded")
            if again.moved:
                return again
        for time in range(4 if small else 0):
            again = self._twice(way, f"another {time}", "noised")
            if again.moved:
                return again
        return twice

    @remembered
    def trained(self) -> Trained:
        """Two forwards in training mode, the first one watched."""
        probe, model = self.probe, self.probe.subject.model
        watch = _DropoutWatch(model)
        with probe.under("training"), probe.running("trained", "one") as subject:
            with drawing(model, subject.device) as names, watch:
                output = subject(self._batch("plain"))
            watch.read(output.logits)
            alike, reseeded = self._next(subject, watch, names) if subject.small else ((), False)
        second = self._training_logits("another")
        logits = output.logits.detach()
        modules = dict(model.named_modules())
        kinds = {n: m for n, m in modules.items() if isinstance(m, _DROPOUT) and m.p > 0}
        active = {n: kinds[n].p for n in watch.called if n in kinds and kinds[n].p > 0}
        return Trained(
            moved=moved_by(logits, second),
            drawing=tuple(dict.fromkeys(names)),
            active=active,
            inside=tuple(n for n in self.declared_dropout().inside if n in watch.called),
            idle=tuple(n for n in active if n in watch.resting and _trains(modules, n)),
            uncalled=tuple(n for n in kinds if n not in watch.called and not _by_hand(n, names)),
            discarded=tuple(n for n in watch.unread() if self._ignored(n)),
            on_logits=self._on_logits(watch, logits),
            alike=alike,
            reseeded=reseeded,
        )

    def _next(
        self, subject: Subject, first: _DropoutWatch, drawing: list[str]
    ) -> tuple[tuple[str, ...], bool]:
        """What the next forwards under other random states drop like the first one, and whether
        the next leaves torch's generator where that left it."""
        state = generator_state(subject.device)
        alike, reseeded = [n for n in first.zeros if n in drawing or _drops(subject, n)], False
        for time in range(1 + _CONFIRMED):  # what drops whole rows may do it alike by chance
            torch.manual_seed(self.probe.seed_for("trained", "next", time))
            with _DropoutWatch(subject.model) as watch:
                subject(self._batch("plain"))
            reseeded = state.equal(generator_state(subject.device))
            alike = [n for n in alike if _alike(first.zeros[n], watch.zeros.get(n))]
            if reseeded or not alike:
                break
        return tuple(alike), reseeded

    @remembered
    def trained_noised(self) -> float:
        """How far two random states move the logits in training, all parameters moved."""
        with self.probe.noised():
            return moved_by(self._training_logits("one"), self._training_logits("another"))

    def undropped(self) -> list[tuple[str, str]]:
        """See ``alike.undropped``; what is not trained may be left whole."""
        model = self.probe.subject.model
        modules = dict(model.named_modules())
        return [pair for pair in undropped(model) if _trains(modules, pair[0])]

    @remembered
    def lacking(self) -> list[tuple[str, str]]:
        """Modules that draw nothing in training, each with the one of the same role in another
        layer that does, in every one of some forwards."""
        found = self._lacking(set(self._drawn("one"))) if self._like() else []
        for time in range(_CONFIRMED if found else 0):
            again = set(self._lacking(set(self._drawn(f"again {time}"))))
            found = [pair for pair in found if pair in again]
            if not found:
                break
        return found

    @remembered
    def hand_written(self) -> list[HandWritten]:
        """Modules of the model's own that drop single numbers: no parameters, nothing in
        evaluation, zeros and one other value for an input of ones in training."""
        modules = dict(self.probe.subject.model.named_modules())
        drawn = [n for n in self.trained().drawing if n in modules]
        found: list[HandWritten] = []
        kinds: set[tuple[type, str]] = set()
        for name in drawn:
            module = modules[name]
            own = not type(module).__module__.startswith("torch.")
            key = (type(module), repr(module))
            if own and key not in kinds and not [*module.children(), *module.parameters()]:
                kinds.add(key)
                result = self._dropped(name, module)
                found += [] if result is None else [result]
        return found

    # Where it happens, on a failure only...

    def first_drawing(self, twice: Twice) -> str | None:
        """The first module whose output differs from equal inputs under two random states; the
        one whose ``train()`` or ``eval()`` leaves it in training mode, where that is why."""
        model, way = self.probe.subject.model, twice.way
        calls: list[list[Call]] = []
        stuck: set[str] = set()
        switched: set[str] = set()
        with self.probe.under(twice.condition):
            for which in ("one", twice.other):
                with self._running(way, which) as subject, traced(model, tensors_in) as found:
                    stuck = _in_training(model)
                    subject(self._batch(way))
                    switched = _in_training(model) - stuck
                calls.append(found)
        name = first_difference(model, calls[0], calls[1])
        if name is None:
            running = self._running(way, "one")
            with running as subject, drawing(model, subject.device) as names:
                subject(self._batch(way))
            name = names[0] if names else None
        if name in stuck:
            return _keeps_mode(model, name) or name
        return name.rpartition(".")[0] or ROOT if name in switched else name

    def keeps_idle(self, trained: Trained) -> str | None:
        """The module that keeps called dropout modules in evaluation mode, else the one around
        the first that is not called."""
        model = self.probe.subject.model
        if trained.idle:
            return _keeps_mode(model, trained.idle[0]) or trained.idle[0]
        name = trained.uncalled[0].rpartition(".")[0] if trained.uncalled else ""
        return name or ROOT

    def first_reseeding(self, *, training: bool = False) -> str | None:
        """The first module after which torch's generator is in the same state, whatever state
        it was in before."""
        if training:
            with self.probe.under("training"):
                return self._first_reseeding(self._trained)
        return self._first_reseeding(functools.partial(self._running, "plain"))

    def _first_reseeding(
        self, running: Callable[[str], contextlib.AbstractContextManager[Subject]]
    ) -> str | None:
        subject = self.probe.subject
        states: list[torch.Tensor] = []

        def note() -> bool:
            states.append(generator_state(subject.device))
            return False

        with running("one"), first_change(subject.model, note):
            subject(self._batch("plain"))
        left = iter(states)

        def equal() -> bool:
            state = next(left, None)
            return state is not None and generator_state(subject.device).equal(state)

        with running("another"), first_change(subject.model, equal) as found:
            subject(self._batch("plain"))
        return found[0] if found else None

    # How it is done...

    def _batch(self, way: str) -> Batch:
        subject = self.probe.subject
        rows, length = subject.sizes
        batch = self.probe.batch(rows if subject.small else min(rows, 2), length, "draws")
        if way == "masked":
            batch = batch.with_(attention_mask=torch.ones_like(batch["input_ids"]))
        return batch

    @contextlib.contextmanager
    def _running(self, way: str, which: str) -> Iterator[Subject]:
        """The subject in evaluation, by ``train()`` and ``eval()`` as users call them."""
        with self.probe.running("draws", which, grad=way == "gradients") as subject:
            subject.model.train()
            subject.model.eval()
            yield subject

    def _trained(self, which: str) -> contextlib.AbstractContextManager[Subject]:
        return self.probe.running("trained", which)

    def _twice(self, way: str, other: str, condition: str) -> Twice:
        with self.probe.under(condition):
            first, states = self._evaluated(way, "one")
            second, others = self._evaluated(way, other)
            moved, repeated = moved_by(first, second), 0.0
            if moved:
                repeated = max(moved_by(first, self._evaluated(way, "one")[0]) for _ in range(2))
        settings, draws = states.pop("settings"), states.pop("draws")
        reseeded = tuple(n for n, state in states.items() if _equal_states(state, others[n]))
        return Twice(way, first, moved, other, repeated, reseeded, settings, draws, condition)

    def _evaluated(self, way: str, which: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Logits under a random state; the state of every generator afterwards, the names of
        the ``settings`` of torch that have changed, and whether anything ``draws``."""
        batch = self._batch(way)
        with self._running(way, which) as subject:
            before, states = settings_of_torch(), _generators(subject.device)
            logits = subject(batch).logits.detach()
            now, after = settings_of_torch(), _generators(subject.device)
            changed = tuple(name for name in before if before[name] != now[name])
            draws = not all(_equal_states(state, after[n]) for n, state in states.items())
            return logits, {**after, "settings": changed, "draws": draws}

    def _training_logits(self, which: str) -> torch.Tensor:
        probe = self.probe
        with probe.under("training"), probe.running("trained", which) as subject:
            return subject(self._batch("plain")).logits.detach()

    def _drawn(self, which: str) -> list[str]:
        """Names of what draws in one forward in training, and ``!name`` of what is called."""
        probe, model = self.probe, self.probe.subject.model
        called: list[str] = []
        with (
            probe.under("training"),
            probe.running("trained", which) as subject,
            drawing(model, subject.device) as names,
            watched(model, lambda _: None, called=lambda n, *_: called.append(n)),
        ):
            subject(self._batch("plain"))
        return [*names, *(f"!{name}" for name in called)]

    @remembered
    def _like(self) -> list[list[str]]:
        return like_layers(self.probe.subject.model)

    def _lacking(self, drawn: set[str]) -> list[tuple[str, str]]:
        modules = dict(self.probe.subject.model.named_modules())
        return [pair for layers in self._like() for pair in _lacking_among(layers, modules, drawn)]

    def _ignored(self, name: str) -> bool:
        """Whether the logits are the same when a module gives NaN."""
        model = self.probe.subject.model
        plain = self._training_logits("one")

        def spoil(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.full_like(output, float("nan"))

        handle = dict(model.named_modules())[name].register_forward_hook(spoil)
        try:
            return same(plain, self._training_logits("one"))
        finally:
            handle.remove()

    def _on_logits(self, watch: _DropoutWatch, logits: torch.Tensor) -> str | None:
        """The place of a dropout behind the head: a module that gives the logits, or the model
        itself where single logits are exactly zero in training and none is in evaluation."""
        subject = self.probe.subject
        width = logits.shape[-1]
        if subject.task.task_type == "classification":
            headed = declared_size(subject.config, _CLASSES) == width
        else:
            headed = not subject.vision and width >= subject.target_vocab_size
        if not headed or not (watch.gives_logits or watch.drew(logits)):
            return None
        if watch.gives_logits:
            return watch.gives_logits
        zeros = logits == 0
        some = zeros.any(-1) & ~zeros.all(-1)
        spread = float(some.float().mean()) > 0.5 or width < 8
        evaluated = self.drawn_twice("plain").reference
        share = float(zeros.float().mean())
        odd = 0.02 < share < 0.98 and not bool((evaluated == 0).any())
        return ROOT if odd and spread else None

    def _dropped(self, name: str, module: nn.Module) -> HandWritten | None:
        subject = self.probe.subject
        ones = torch.ones(4, 64, 64, device=subject.device, dtype=subject.dtype)
        with self.probe.running("hand-written"):
            try:
                module.eval()
                if not same(module(ones), ones):
                    return None
                module.train()
                given = module(ones)
            except Exception:  # noqa: BLE001 - a module of its own may want any other input
                return None
        if not isinstance(given, torch.Tensor) or given.shape != ones.shape:
            return None
        kept = given[given != 0]
        zeros = given == 0
        scattered = bool((zeros.any(-1) & ~zeros.all(-1)).float().mean() > 0.5)
        if not kept.numel() or not scattered or bool((kept != kept[0]).any()):
            return None
        share = float(zeros.float().mean())
        return HandWritten(name, share, float(given.float().mean()), given.numel())


def drops_inside(module: nn.Module) -> bool:
    """Whether a module of torch's drops without a dropout module."""
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1


def _is_rate(name: str, value: Any) -> bool:
    return "drop" in name and isinstance(value, float) and 0 < value <= 1


class _DropoutWatch(TorchFunctionMode):
    """What becomes of the output of every dropout module while inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.called: list[str] = []
        self.resting: set[str] = set()
        self.zeros: dict[str, torch.Tensor] = {}
        self.gives_logits: str | None = None
        self._unread: dict[int, tuple[str, torch.Tensor]] = {}
        self._last: dict[str, torch.Tensor] = {}
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            if isinstance(module, _DROPOUT) or drops_inside(module) or _may_drop(module):
                self._handles.append(module.register_forward_hook(self._leave(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._unread and _reads(func):
            self._forget((args, kwargs))
        return func(*args, **(kwargs or {}))

    def read(self, logits: torch.Tensor) -> None:
        """The output of the model is read by its caller."""
        self._forget(logits)
        for name, output in self._last.items():
            if output is logits or (
                output.data_ptr() == logits.data_ptr() and output.numel() == logits.numel()
            ):
                self.gives_logits = name

    def unread(self) -> list[str]:
        """Dropout modules with p > 0 of which some output was used by nothing."""
        return list(dict.fromkeys(name for name, _ in self._unread.values()))

    def drew(self, logits: torch.Tensor) -> bool:
        """Whether single logits are exactly zero."""
        return bool((logits == 0).any())

    def _forget(self, value: Any) -> None:
        for tensor in tensors_in(value):
            self._unread.pop(id(tensor), None)

    def _leave(self, name: str) -> Callable[..., None]:
        def note(module: Any, args: Any, output: Any) -> None:
            self.called.append(name)
            given = args[0] if args else None
            if same_kind(given, output) and module.training:
                self.zeros[name] = ((output == 0) & (given != 0)).detach()
            if not module.training:
                self.resting.add(name)
            if not isinstance(output, torch.Tensor) or not isinstance(module, _DROPOUT):
                return
            self._last[name] = output
            if module.training and module.p > 0 and not module.inplace:
                self._unread[id(output)] = (name, output)

        return note


def same_kind(a: Any, b: Any) -> bool:
    """Whether two things are tensors of one shape."""
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape


def _may_drop(module: nn.Module) -> bool:
    """A module of the model's own without parameters: a dropout may be written like that."""
    own = not type(module).__module__.startswith("torch.")
    return own and not [*module.children(), *module.parameters()]


def _drops(subject: Subject, name: str) -> bool:
    return isinstance(subject.model.get_submodule(name), _DROPOUT)


def _alike(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Whether two draws dropped the same numbers, where chance would not (e**-20)."""
    share = float(a.float().mean()) if a.numel() else 0.0
    if b is None or a.shape != b.shape or 2 * a.numel() * share * (1 - share) < _BEYOND_CHANCE:
        return False
    return bool(a.equal(b))


def _reads(func: Any) -> bool:
    """Whether a call looks at the values of its arguments."""
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", None) not in _NOT_READING


def _lacking_among(
    layers: list[str], modules: dict[str, nn.Module], drawn: set[str]
) -> list[tuple[str, str]]:
    """Pairs of a module that should draw and does not, and its like that does."""
    ran = [layer for layer in layers if f"!{layer}" in drawn]
    found = []
    roles = [name.removeprefix(layers[0]) for name in modules if _inside(name, layers[0])]
    for role in roles:
        with_, without = [], []
        for layer in ran:
            name = layer + role
            if name in drawn:
                with_.append(name)
            elif name in modules and _had_its_chance(name, modules, drawn):
                without.append(name)
        if with_ and len(with_) >= len(without):
            found += [(name, with_[0]) for name in without]
    return found


def _by_hand(name: str, drawing: list[str]) -> bool:
    return (name.rpartition(".")[0] or ROOT) in drawing


def _inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _had_its_chance(name: str, modules: dict[str, nn.Module], drawn: set[str]) -> bool:
    """Whether the code that would make a module draw ran, for something that is trained."""
    module = modules[name]
    above = name.rpartition(".")[0]
    user = name if not isinstance(module, _DROPOUT) else above
    return f"!{user or ROOT}" in drawn and _trains(modules, name)


def _trains(modules: dict[str, nn.Module], name: str) -> bool:
    """Whether the innermost module around ``name`` that has parameters trains some of them."""
    while True:
        parameters = list(modules[name].parameters())
        if parameters or not name:
            return not parameters or any(p.requires_grad for p in parameters)
        name = name.rpartition(".")[0]


def _in_training(model: nn.Module) -> set[str]:
    return {name or ROOT for name, module in model.named_modules() if module.training}


def _keeps_mode(model: nn.Module, name: str) -> str | None:
    """The innermost module around ``name`` with a ``train()`` or ``eval()`` of its own."""
    modules = dict(model.named_modules())
    place = "" if name == ROOT else name
    while True:
        module = modules[place]
        own = any(
            method in vars(module)
            or getattr(type(module), method) is not getattr(nn.Module, method)
            for method in ("train", "eval")
        )
        if own:
            return place or ROOT
        if not place:
            return None
        place = place.rpartition(".")[0]


def moved_by(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest movement, NaN being equal to NaN; infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if same(a, b):
        return 0.0
    both = a.isnan() & b.isnan()
    moved = torch.where(both, 0, difference(a, b)).nan_to_num(nan=float("inf"))
    return float(moved.max())


def _generators(device: torch.device) -> dict[str, Any]:
    numpy = sys.modules.get("numpy")
    states: dict[str, Any] = {"torch": generator_state(device), "random": random.getstate()}
    if numpy is not None:
        states["numpy"] = numpy.random.get_state()[1].tobytes()
    return states


def _equal_states(a: Any, b: Any) -> bool:
    return bool(a.equal(b)) if isinstance(a, torch.Tensor) else bool(a == b)
