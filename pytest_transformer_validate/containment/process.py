"""State of the process that a model's code may change: taken before, given back after."""

from __future__ import annotations

import contextlib
import gc
import locale
import operator
import os
import random
import signal
import sys
import sysconfig
import threading
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.identity import Writes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_HOOKS = (
    (sys, ("excepthook", "unraisablehook", "displayhook", "breakpointhook", "stdout", "stderr")),
    (sys, ("stdin", "__stdout__", "__stderr__", "__stdin__")),
    (threading, ("excepthook",)),
)
_OWN_PACKAGE = __name__.partition(".")[0]
_NEEDED = frozenset({"torch", "numpy", "pytest", "_pytest", "pluggy", "xdist", "execnet"})
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_MASKS = hasattr(signal, "pthread_sigmask")
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What only pytest and this package use comes back as it was: hooks of the interpreter and
    streams, handlers of signals, filters of warnings, locale, garbage collection, trace functions,
    Python's random state, what finds modules."""
    hooks = [(owner, name, getattr(owner, name)) for owner, names in _HOOKS for name in names]
    main = threading.current_thread() is threading.main_thread()
    handlers = [(number, signal.getsignal(number)) for number in _SIGNALS] if main else []
    words, threshold = locale.setlocale(locale.LC_ALL), gc.get_threshold()
    collects = gc.isenabled()
    trace, profile, interval = sys.gettrace(), sys.getprofile(), sys.getswitchinterval()
    state = random.getstate()
    finders, path_hooks = list(sys.meta_path), list(sys.path_hooks)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if _MASKS else set()
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for owner, name, value in hooks:
            if getattr(owner, name, None) is not value:
                setattr(owner, name, value)
        for number, handler in handlers:
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if locale.setlocale(locale.LC_ALL) != words:
            locale.setlocale(locale.LC_ALL, words)
        (gc.enable if collects else gc.disable)()
        gc.set_threshold(*threshold)
        if sys.gettrace() is not trace:
            sys.settrace(trace)
        if sys.getprofile() is not profile:
            sys.setprofile(profile)
        sys.setswitchinterval(interval)
        random.setstate(state)
        sys.meta_path[:] = finders + [f for f in sys.meta_path if f not in finders and _stays(f)]
        sys.path_hooks[:] = path_hooks
        if _MASKS:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.umask(mask)


def _stays(finder: object) -> bool:
    """Whether something that finds modules belongs to an installed package, which believes it to
    be there from its first import on, or to this one."""
    name = getattr(finder if isinstance(finder, type) else type(finder), "__module__", "")
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] == _OWN_PACKAGE or file.startswith(_INSTALLED)


class Modules(MetaPathFinder, Loader):
    """Modules that belong to Python or are needed here: deleted and replaced ones are put back.

    In force (see ``enter``) an import of one that is needed finds the module that was there: torch
    does not survive to be imported twice.
    """

    def __init__(self) -> None:
        self._known = sys.modules
        self._modules = sys.modules.copy()
        self._there = list(self._modules.values())
        self._writes = Writes([sys.modules])

    def unwritten(self) -> bool:
        """Whether no module was imported, deleted or replaced since; never where Python does not
        count writes."""
        return sys.modules is self._known and self._writes.none()

    def enter(self) -> None:
        """Find what was deleted before anything else is asked."""
        sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Find nothing any more."""
        while self in sys.meta_path:
            sys.meta_path.remove(self)

    def give_back(self) -> None:
        """Put back what is gone."""
        if self.unwritten():
            return
        if len(sys.modules) >= len(self._there) and all(
            map(operator.is_, sys.modules.values(), self._there)
        ):
            return
        for name, module in self._modules.items():
            if sys.modules.get(name) is not module and (
                _is_needed(name) or name.partition(".")[0] in sys.stdlib_module_names
            ):
                sys.modules[name] = module

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """The way to a module that was there."""
        known = fullname in self._modules and _is_needed(fullname)
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself; importing writes a new ``__spec__`` into it."""
        module = self._modules[spec.name]
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been run already."""
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__ = module.__spec__.loader_state


def _is_needed(name: str) -> bool:
    top = name.partition(".")[0]
    return top in _NEEDED or top == _OWN_PACKAGE


class Own:
    """What a model may need as its own code left it: variables of the environment, the current
    folder, the limit of recursion. It is put in force with ``enter`` and taken back by ``leave``.
    """

    def __init__(self) -> None:
        self._environment: dict[str, str | None] = {}
        self._settings: dict[str, Any] = {}
        self._outside: tuple[dict[str, str], dict[str, Any]] = ({}, {})

    def enter(self) -> None:
        """Note what is outside; put the model's own in force."""
        self._outside = dict(os.environ), _settings()
        _change_environment(self._environment)
        _set(self._settings)

    def leave(self) -> None:
        """Note what is the model's own; give back what is outside."""
        environment, settings = self._outside
        inside = dict(os.environ)
        if inside != environment:
            names = inside.keys() | environment.keys()
            own = {n: inside.get(n) for n in names if inside.get(n) != environment.get(n)}
            self._environment = own
            _change_environment({name: environment.get(name) for name in own})
        now = _settings()
        self._settings = {name: now[name] for name in now if now[name] != settings[name]}
        _set({name: settings[name] for name in self._settings})
        self._outside = {}, {}


def _change_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _settings() -> dict[str, Any]:
    return {"folder": _folder(), "recursion": sys.getrecursionlimit()}


def _folder() -> str | None:
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109 - as text, to be given back as it was
    return None


def _set(settings: dict[str, Any]) -> None:
    folder = settings.get("folder")
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
    if "recursion" in settings:
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(settings["recursion"])
