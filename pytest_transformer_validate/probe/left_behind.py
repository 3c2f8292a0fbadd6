"""What does not follow the model to another device: see ``elsewhere``."""

from __future__ import annotations

import inspect
import linecache
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.probe.compare import few_rows
from pytest_transformer_validate.probe.copies import convertible
from pytest_transformer_validate.probe.elsewhere import MADE, PRETENDED, Mixed, Pretence
from pytest_transformer_validate.probe.holders import (
    held_modules,
    held_tensors,
    own_storages,
    storage_of,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.settings import settings_kept, tell
from pytest_transformer_validate.probe.trace import where_raised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType


@dataclass(frozen=True)
class Stays:
    """What does not follow the model to another device: the operation, what met it, and where;
    ``aware`` says whether the code that did so names devices elsewhere."""

    operation: str
    shape: tuple[int, ...]
    origin: str
    where: str | None
    aware: bool
    line: str


class LeftBehind(Passes):
    """Passes about tensors that do not move with the model."""

    @remembered
    def stays(self) -> tuple[Stays | None, str | None]:
        """What does not follow the model to another device, and what kept that from being tried.

        The device is a pretended one: see ``elsewhere``.
        """
        probe = self.probe
        batch = probe.batch(*few_rows(probe), "elsewhere")
        model = probe.subject.model
        try:
            with convertible(probe, "elsewhere") as twin:
                model = twin.model
                told = settings_kept(model, torch.device)
                with told as settings, Pretence(dict(_attributes(model))):
                    tell(settings, PRETENDED)
                    model.to(PRETENDED)
                    twin.device = PRETENDED
                    twin.call(batch.to(PRETENDED), {})
        except Mixed as mixed:
            if mixed.origin == MADE and "meta" in _code_of(_owner(mixed)):
                return None, "its code treats the device that is pretended apart from others"
            where = where_raised(model, mixed)
            aware, line = _names_device(_owner(mixed)), _code_line(mixed)
            return Stays(mixed.operation, mixed.shape, mixed.origin, where, aware, line), None
        except Exception as error:  # noqa: BLE001 - not every operation can be pretended
            if "same device" not in str(error):
                return None, error_line(error, 160)
            aware, line = _names_device(_owner(error)), _code_line(error)
            return Stays("torch", (), MADE, where_raised(model, error), aware, line), None
        return None, None

    def held(self) -> list[tuple[str, torch.Tensor]]:
        """Tensors in plain attributes that are no parameters, buffers or views of them."""
        model = self.probe.subject.model
        own = own_storages(model)
        return [(name, t) for name, t in _attributes(model) if storage_of(t) not in own]

    def unregistered(self) -> list[str]:
        """Modules in plain lists and dicts whose parameters a backward pass of the model reaches:
        training would, too, and no optimizer. None where no backward runs."""
        found = [name for name, _ in held_modules(self.probe.subject.model)]
        if not found:
            return []
        try:
            return found if self.probe.gradients().unregistered else []
        except Exception:  # noqa: BLE001 - gradient_flow says what a backward raises
            return []


def _attributes(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in plain attributes."""
    for name, module in model.named_modules():
        for path, tensor in held_tensors(module, name):
            if not is_lazy(tensor) and tensor.numel():
                yield path, tensor


def _names_device(module: torch.nn.Module | None) -> bool:
    """Whether the code of a module says ``device`` anywhere: then it is not written for one
    device alone."""
    return "device" in _code_of(module)


def _code_of(module: torch.nn.Module | None) -> set[str]:
    """The words in the code of a module's own classes."""
    own = [k for k in type(module).__mro__ if not _is_torchs(k)]
    functions = [getattr(f, "__func__", f) for kind in own for f in vars(kind).values()]
    codes = [getattr(function, "__code__", None) for function in functions]
    return {word for code in codes if code is not None for word in _words(code)}


def _words(code: CodeType) -> set[str]:
    """Names, variables and keywords in compiled code."""
    found = {*code.co_names, *code.co_varnames}
    for constant in code.co_consts:
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, tuple):
            found.update(word for word in constant if isinstance(word, str))
        elif inspect.iscode(constant):
            found |= _words(constant)
    return found


def _owner(error: BaseException) -> torch.nn.Module | None:
    """The innermost module with code of its own that was running when an error was raised."""
    found, trace_ = None, error.__traceback__
    while trace_ is not None:
        owner = trace_.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and not _is_torchs(type(owner)):
            found = owner
        trace_ = trace_.tb_next
    return found


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"torch", "builtins"}


def _code_line(error: BaseException) -> str:
    """The model's own line of code that was running, as far as it can be told."""
    found, trace_ = "", error.__traceback__
    while trace_ is not None:
        code = trace_.tb_frame.f_code
        inside = f"{Path(torch.__file__).parent}"
        mine = str(Path(__file__).parent.parent / "probe")
        if not code.co_filename.startswith((inside, mine)) and "subject" not in code.co_filename:
            found = linecache.getline(code.co_filename, trace_.tb_lineno).strip() or found
        trace_ = trace_.tb_next
    return found[:120]
