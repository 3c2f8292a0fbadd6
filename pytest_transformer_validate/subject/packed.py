"""A forward with one parameter that holds all inputs: a dict, a tuple, an object with attributes.

What is taken out of it, in one trial, are the model's inputs; from then on they are its signature.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.signature import ROLES, read_signature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.subject.signature import Signature
    from pytest_transformer_validate.subject.subject import Subject

_PLACES = ("input_ids", "lengths")  # what stands in a tuple
_ROLE = {name: role for role, names in ROLES.items() for name in names}


@dataclass(frozen=True)
class Packing:
    """How inputs are put into one object: ``kind`` is ``mapping``, ``sequence`` or
    ``attributes``."""

    kind: str

    def pack(self, given: dict[str, Any]) -> Any:
        """The one argument of forward, from its inputs by name."""
        if self.kind == "mapping":
            return given
        if self.kind == "attributes":
            return SimpleNamespace(**given)
        return tuple(given.values())


class _UnknownKey(KeyError):
    pass


class _Asked:
    """Stands for such an object, and notes what is taken out of it, and how."""

    def __init__(self, ids: torch.Tensor, vision: bool) -> None:
        self._ids = ids
        self._vision = vision
        self._kind = ""
        self._taken: dict[str, bool] = {}  # by name, whether it has to be there

    def _take(self, kind: str, name: str, *, needed: bool) -> torch.Tensor:
        role = _ROLE.get(name, "")
        self._kind = self._kind or kind
        if self._kind != kind or not self._fills(name):
            raise KeyError(name)
        self._taken[name] = needed or self._taken.get(name, False)
        rows, length = self._ids.shape[:2]
        if name == "lengths":
            return torch.full((rows,), length, device=self._ids.device)
        if "mask" in role:
            return torch.ones_like(self._ids)
        if role == "token_type_ids":
            return torch.zeros_like(self._ids)
        if role == "position_ids":
            return torch.arange(length, device=self._ids.device).expand(rows, length)
        return self._ids

    def __getitem__(self, key: Any) -> torch.Tensor:
        if isinstance(key, str):
            if not self._fills(key):
                raise _UnknownKey(key)
            return self._take("mapping", key, needed=True)
        if isinstance(key, int) and 0 <= key < len(_PLACES):
            for name in _PLACES[:key]:
                self._take("sequence", name, needed=True)
            return self._take("sequence", _PLACES[key], needed=True)
        raise IndexError(key)

    def get(self, key: str, default: Any = None) -> Any:
        """What a dict gives; nothing for what nobody knows."""
        if key in _PLACES[1:] or not self._fills(key):
            return default
        return self._take("mapping", key, needed=False)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key not in _PLACES[1:] and self._fills(key)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[place] for place in range(len(_PLACES)))

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name in _PLACES[1:] or not self._fills(name):
            raise AttributeError(name)
        return self._take("attributes", name, needed=True)

    def _fills(self, name: str) -> bool:
        """Whether an input of that name can be made from ids, or is the image."""
        role = _ROLE.get(name, "")
        if self._vision:
            return role == "pixel_values"
        return name in _PLACES or role in _FROM_IDS or "mask" in role


_FROM_IDS = {"input_ids", "decoder_input_ids", "position_ids", "token_type_ids"}


def unpack(subject: Subject, ids: torch.Tensor) -> Packing | None:
    """See whether the one parameter of forward holds the inputs, and take them for the
    signature; ``None`` where forward does not run that way. Raises SubjectError where it asks a
    dict for what nobody knows."""
    signature = subject.signature
    if len(signature.names) != 1:
        return None
    asked = _Asked(ids, subject.vision)
    try:
        subject.model(asked)
        packing = Packing(asked._kind)
        subject.signature = _signature(asked._taken, subject.vision)
    except _UnknownKey as error:
        [argument] = signature.names.values()
        raise SubjectError(
            f"forward takes {error} out of {argument}, and what that is cannot be found out\n"
            f"  signature: {signature.text[:300]}\n"
            "  wrap the model so that forward takes input_ids"
        ) from error
    except Exception:  # noqa: BLE001 - then that is not what was meant
        return None
    vars(subject).pop("decodes", None)
    return packing if packing.kind else None


def _signature(taken: dict[str, bool], vision: bool) -> Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(name, kind, default=empty if needed else None)
        for name, needed in sorted(taken.items(), key=lambda item: not item[1])
    ]

    def forward(*_: Any) -> None:
        """Never called: holds the signature."""

    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    described = torch.nn.Module()
    described.forward = forward
    return read_signature(described, vision=vision, translates="decoder_input_ids" in taken)
