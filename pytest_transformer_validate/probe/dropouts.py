"""What drops numbers in training: what is declared, what runs, and what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.probe.alike import undropped
from pytest_transformer_validate.probe.compare import moved_by
from pytest_transformer_validate.probe.draws import keeps_mode
from pytest_transformer_validate.probe.dropout_watch import (
    DROPOUT,
    DropoutWatch,
    drops_inside,
    is_rate,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.probe.watch import drawing, generator_state, same
from pytest_transformer_validate.subject.declared import declared_size
from pytest_transformer_validate.subject.guard import seed_all

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.outputs import Output
    from pytest_transformer_validate.subject.subject import Subject

_BEYOND_CHANCE = 20.0  # expected number of entries in which two draws differ
_CONFIRMED = 8  # further forwards in training mode before a layer is said never to draw
_CLASSES = ("num_labels", "num_classes", "n_classes")


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
    torch's generator is in the same state after two of them; ``called`` are all modules that the
    first forward called.
    """

    moved: float
    drawing: tuple[str, ...]
    active: dict[str, float]
    inside: tuple[str, ...]
    idle: tuple[str, ...]
    uncalled: tuple[str, ...]
    discarded: tuple[str, ...]
    on_logits: str | None
    alike: tuple[str, ...]
    reseeded: bool
    called: frozenset[str]


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


class Dropouts(Passes):
    """Passes in training mode, and what is declared for them."""

    @remembered
    def declared(self) -> Declared:
        """Where a dropout above zero is declared."""
        subject = self.probe.subject
        modules = list(subject.model.named_modules())
        config = ((key, subject.config.get(key)) for key in subject.config)
        return Declared(
            modules=tuple(n for n, m in modules if isinstance(m, DROPOUT) and m.p > 0),
            inside=tuple(n for n, m in modules if drops_inside(m)),
            attributes=tuple(
                f"{name}.{attribute}".removeprefix(".")
                for name, module in modules
                if not isinstance(module, DROPOUT) and not drops_inside(module)
                for attribute, value in vars(module).items()
                if is_rate(attribute, value)
            ),
            keys=tuple(key for key, value in config if is_rate(key, value)),
        )

    @remembered
    def trained(self) -> Trained:
        """Two forwards in training mode, the first one watched."""
        probe, model = self.probe, self.probe.subject.model
        watch = DropoutWatch(model)
        called: set[str] = set()
        alike: tuple[str, ...] = ()
        second, reseeded = None, False
        with probe.under("training"), probe.running("trained", "one") as subject:
            with drawing(model, subject.device, called) as names, watch:
                output = subject(self.probe.draws.batch("plain"))
            watch.read(output.logits)
            if subject.small:
                second, alike, reseeded = self._next(subject, watch, names)
        if second is None or not names:  # what one forward leaves for the next is no dropout
            second = self._training_logits("another")
        logits = output.logits.detach()
        modules = dict(model.named_modules())
        kinds = {n: m for n, m in modules.items() if isinstance(m, DROPOUT) and m.p > 0}
        active = {n: kinds[n].p for n in watch.called if n in kinds and kinds[n].p > 0}
        return Trained(
            moved=moved_by(logits, second),
            drawing=tuple(dict.fromkeys(names)),
            active=active,
            inside=tuple(n for n in self.declared().inside if n in watch.called),
            idle=tuple(n for n in active if n in watch.resting and _trains(modules, n)),
            uncalled=tuple(n for n in kinds if n not in watch.called and not _by_hand(n, names)),
            discarded=tuple(n for n in watch.unread() if self._ignored(n)),
            on_logits=self._on_logits(watch, logits),
            alike=alike,
            reseeded=reseeded,
            called=frozenset(called),
        )

    def _next(
        self, subject: Subject, first: DropoutWatch, drawing: list[str]
    ) -> tuple[torch.Tensor | None, tuple[str, ...], bool]:
        """The logits of the last of the next forwards under other random states, what they drop
        like the first one, and whether it leaves torch's generator where that left it."""
        state = generator_state(subject.device)
        alike, reseeded = [n for n in first.zeros if n in drawing or _drops(subject, n)], False
        logits = None
        for time in range(1 + _CONFIRMED):  # what drops whole rows may do it alike by chance
            seed_all(self.probe.seed_for("trained", "next", time))
            watch = DropoutWatch(subject.model)
            with watch.outputs():
                logits = subject(self.probe.draws.batch("plain")).logits.detach()
            reseeded = state.equal(generator_state(subject.device))
            alike = [n for n in alike if _alike(first.zeros[n], watch.zeros.get(n))]
            if reseeded or not alike:
                break
        return logits, tuple(alike), reseeded

    @remembered
    def moves_others(self) -> bool:
        """Whether two random states in training move what is returned beside the logits (the
        value of another head)."""
        one, another = (self._training_output(which).others for which in ("one", "another"))
        alike = len(one) == len(another)
        return alike and any(not same(a, b) for a, b in zip(one, another, strict=True))

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
        layers = self.probe.siblings.alike()
        found = []
        if layers:
            trained = self.trained()
            found = self._lacking(set(trained.drawing), set(trained.called))
        for time in range(_CONFIRMED if found else 0):
            again = set(self._lacking(*self._drawn(f"again {time}")))
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

    def keeps_idle(self, trained: Trained) -> str | None:
        """The module that keeps called dropout modules in evaluation mode, else the one around
        the first that is not called."""
        model = self.probe.subject.model
        if trained.idle:
            return keeps_mode(model, trained.idle[0]) or trained.idle[0]
        name = trained.uncalled[0].rpartition(".")[0] if trained.uncalled else ""
        return name or ROOT

    def _training_logits(self, which: str) -> torch.Tensor:
        return self._training_output(which).logits.detach()

    def _training_output(self, which: str) -> Output:
        probe = self.probe
        with probe.under("training"), probe.running("trained", which) as subject:
            return subject(self.probe.draws.batch("plain"))

    def _drawn(self, which: str) -> tuple[set[str], set[str]]:
        """Names of what draws in one forward in training, and of what is called."""
        probe, model = self.probe, self.probe.subject.model
        called: set[str] = set()
        with (
            probe.under("training"),
            probe.running("trained", which) as subject,
            drawing(model, subject.device, called) as names,
        ):
            subject(self.probe.draws.batch("plain"))
        return set(names), called

    def _lacking(self, drawn: set[str], called: set[str]) -> list[tuple[str, str]]:
        modules = dict(self.probe.subject.model.named_modules())
        groups = self.probe.siblings.alike()
        return [p for layers in groups for p in _lacking_among(layers, modules, drawn, called)]

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

    def _on_logits(self, watch: DropoutWatch, logits: torch.Tensor) -> str | None:
        """The place of a dropout behind the head: a module that gives the logits, or the model
        itself where single logits are exactly zero in training and none is in evaluation."""
        subject = self.probe.subject
        width = logits.shape[-1]
        if subject.task.task_type == "classification":
            known = declared_size(subject.config, _CLASSES)
            headed = known == width if known else subject.signature.takes("labels")
        else:
            headed = not subject.vision and width >= subject.target_vocab_size
        if not headed or not (watch.gives_logits or watch.drew(logits)):
            return None
        if watch.gives_logits:
            return watch.gives_logits
        zeros = logits == 0
        some = zeros.any(-1) & ~zeros.all(-1)
        spread = float(some.float().mean()) > 0.5 or width < 8
        evaluated = self.probe.draws.drawn_twice("plain").reference
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


def _drops(subject: Subject, name: str) -> bool:
    return isinstance(subject.model.get_submodule(name), DROPOUT)


def _alike(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Whether two draws dropped the same numbers, where chance would not (e**-20)."""
    share = float(a.float().mean()) if a.numel() else 0.0
    if b is None or a.shape != b.shape or 2 * a.numel() * share * (1 - share) < _BEYOND_CHANCE:
        return False
    return bool(a.equal(b))


def _lacking_among(
    layers: list[str], modules: dict[str, nn.Module], drawn: set[str], called: set[str]
) -> list[tuple[str, str]]:
    """Pairs of a module that should draw and does not, and its like that does."""
    ran = [layer for layer in layers if layer in called]
    found = []
    roles = [name.removeprefix(layers[0]) for name in modules if _inside(name, layers[0])]
    for role in roles:
        with_, without = [], []
        for layer in ran:
            name = layer + role
            if name in drawn:
                with_.append(name)
            elif name in modules and _had_its_chance(name, modules, called):
                without.append(name)
        if with_ and len(with_) >= len(without):
            found += [(name, with_[0]) for name in without]
    return found


def _by_hand(name: str, drawing: list[str]) -> bool:
    return (name.rpartition(".")[0] or ROOT) in drawing


def _inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _had_its_chance(name: str, modules: dict[str, nn.Module], called: set[str]) -> bool:
    """Whether the code that would make a module draw ran, for something that is trained."""
    module = modules[name]
    above = name.rpartition(".")[0]
    user = name if not isinstance(module, DROPOUT) else above
    return (user or ROOT) in called and _trains(modules, name)


def _trains(modules: dict[str, nn.Module], name: str) -> bool:
    """Whether the innermost module around ``name`` that has parameters trains some of them."""
    while True:
        parameters = list(modules[name].parameters())
        if parameters or not name:
            return not parameters or any(p.requires_grad for p in parameters)
        name = name.rpartition(".")[0]
