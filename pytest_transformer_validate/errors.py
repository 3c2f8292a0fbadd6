"""What can go wrong, by who has to act.

TransformerValidateError
  SpecError             what was typed or declared is wrong; nothing runs (pytest: exit 4)
  SourceError           the model named by a spec cannot be loaded
  SubjectError          the model cannot be called: an input or output nobody knows how to treat
    TaskError           a fact that cannot be found out; says which option or key gives it
  TrainingError         a run cannot go on: data that gives no batch, a file that cannot be read
    Diverged            a loss or a gradient is not finite
    CheckpointError     a checkpoint is damaged, or not what the run needs
  ConfigError           settings of a training run are wrong; lists every fault (a ValueError)
  MissingDependency     an optional package is missing; carries the install line (an ImportError)
  CheckFailed           verdict: the property does not hold
  NotApplicable         verdict: the property is not promised by this model; carries the reason
  Blocked               a load or a pass that this check needs has already raised elsewhere
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pytest_transformer_validate.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_transformer_validate.measures.measurement import Measurement

# Credentials are looked for a bit past a cut, so that no half of one is left before it.
MARGIN = 8 * 1024


class TransformerValidateError(Exception):
    """Base of every error this package raises on purpose."""


class SpecError(TransformerValidateError):
    """What the user typed or declared is wrong."""


class SourceError(TransformerValidateError):
    """The model that a spec names cannot be loaded."""


class SubjectError(TransformerValidateError):
    """The model was loaded and cannot be called."""


class TaskError(SubjectError):
    """A fact about the model that has to be declared because it cannot be found out."""


class TrainingError(TransformerValidateError):
    """A training run cannot go on."""


class Diverged(TrainingError):
    """A loss or a gradient is not finite; the text says in which step and where it arose."""


class CheckpointError(TrainingError):
    """A checkpoint is damaged, or is not one of this run."""


class ConfigError(TransformerValidateError, ValueError):
    """Settings of a training run that are wrong; ``faults`` holds one line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        noun = "setting is" if len(self.faults) == 1 else "settings are"
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{len(self.faults)} {noun} wrong:{lines}")


class MissingDependency(TransformerValidateError, ImportError):
    """An optional package is missing; the text holds the install line."""


class CheckFailed(TransformerValidateError):
    """The model breaks what its task promises.

    ``message`` is the text a person reads: the rule on the first line, then given values,
    place, likely cause and way out, one a line. ``where`` names the first module, in execution
    order, in which the property breaks (``None`` where no single module can be named).
    """

    def __init__(
        self, message: str, measurement: Measurement | None = None, *, where: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.measurement = measurement
        self.where = where


class NotApplicable(TransformerValidateError):
    """The model does not promise this property; ``reason`` says why."""

    def __init__(self, reason: str, measurement: Measurement | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.measurement = measurement


class Blocked(TransformerValidateError):
    """A load or a pass that is needed here raised before; ``place`` is the one line about it."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean x?``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def error_line(error: BaseException, most: int = 200) -> str:
    """The class of an exception and the first line of its text, cut to ``most`` characters."""
    return f"{type(error).__name__}: {first_line(error, most)}"[:most]


def first_line(error: object, most: int = 200) -> str:
    """The first line of a foreign text, without credentials, cut to ``most`` characters."""
    return redact(text_of(error)[: most + MARGIN]).partition("\n")[0][:most]


def text_of(value: object, make: Callable[[object], str] = str) -> str:
    """What ``make`` (``str`` or ``repr``) says of a foreign object; ``<unprintable>`` where the
    object's own code raises."""
    try:
        return str.__str__(make(value))
    except (Exception, SystemExit, KeyboardInterrupt):  # noqa: BLE001 - a foreign __str__
        return "<unprintable>"
