"""Ways out of the process that Python code has, and what it leaves running behind it."""

from __future__ import annotations

import _thread
import atexit
import functools
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.containment.stops import LeftProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# They end the process themselves, on purpose: time limits of a user's own, workers.
_TRUSTED = frozenset({"pytest_timeout", "execnet", "xdist"})
_WAYS_OUT = ("_exit", "execv", "execve")
_MOST_FORKS = 16
_FRAMES = 3


class Exits:
    """While installed, ``os._exit`` and ``os.exec*`` raise LeftProcess, whoever calls them: a
    thread, a handler of ``atexit``. Forked children leave as they like; one that comes back into
    a check is ended, the others are with ``uninstall``. Threads do not outlive the process.

    ``running`` counts the rooms that are entered: only there are forks, threads and handlers of
    ``atexit`` a model's.
    """

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.running = 0
        self._installed = False
        self._home = 0
        self._forked = False
        self._real: dict[tuple[Any, str], Any] = {}
        self._children: list[int] = []

    def install(self) -> None:
        """Replace the ways out."""
        self._home, self._installed = os.getpid(), True
        native = sys.modules.get("posix") or sys.modules.get("nt")
        for module in (os, native):
            for name in _WAYS_OUT:
                if hasattr(module, name):
                    self._replace(module, name, self._refusing)
        if hasattr(os, "fork"):
            self._replace(os, "fork", self._forking)
        for owner, name in ((os, "kill"), (native, "kill"), (os, "killpg"), (native, "killpg")):
            if hasattr(owner, name):
                self._replace(owner, name, self._signalling)
        self._replace(signal, "raise_signal", self._signalling)
        self._replace(_thread, "interrupt_main", self._signalling)
        self._replace(threading.Thread, "start", self._starting)
        self._replace(atexit, "register", self._registering)

    def uninstall(self) -> None:
        """Put them back, and end the children that are left. Where other threads still run, only
        the main thread may leave."""
        self._installed = False
        alone = len(sys._current_frames()) == 1
        for (owner, name), real in self._real.items():
            if alone or name not in _WAYS_OUT:
                setattr(owner, name, real)
        self._end_children()

    def end_if_child(self) -> None:
        """End a child that a model forked and that goes on with the run."""
        if self._home and os.getpid() != self._home:
            self.end(1)

    def end(self, code: int) -> None:
        """End this process now; nobody's handlers run."""
        self._real.get((os, "_exit"), os._exit)(code)

    def _end_children(self) -> None:
        children, self._children = self._children, []
        for child in children:
            try:
                if os.waitpid(child, os.WNOHANG) == (0, 0):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
            except OSError:
                continue  # ended, and waited for by its parent

    def _replace(self, owner: Any, name: str, wrap: Callable[[str, Any], Any]) -> None:
        real = getattr(owner, name)
        self._real[owner, name] = real
        setattr(owner, name, functools.wraps(real)(wrap(name, real)))

    def _refusing(self, name: str, real: Any) -> Any:
        def leave(*args: Any) -> Any:
            if os.getpid() != self._home or _is_trusted(sys._getframe(1)) or self._may_leave():
                return real(*args)
            what = f"os.{name}({', '.join(map(repr, args[:1]))})"
            self.attempts.append(f"called {what} to end the process{_place()}")
            raise LeftProcess(f"the model called {what} to end the process")

        return leave

    def _signalling(self, name: str, real: Any) -> Any:
        """A signal by which a person ends the run is none that a model may send to it."""

        def send(*args: Any) -> Any:
            if self.running and _ends_run(args) and os.getpid() == self._home:
                what = f"{name}({', '.join(map(repr, args))})"
                self.attempts.append(f"called {what} to end the run{_place()}")
                raise LeftProcess(f"the model called {what} to end the run")
            return real(*args)

        return send

    def _may_leave(self) -> bool:
        main = threading.current_thread() is threading.main_thread()
        return main and not self._installed

    def _forking(self, _name: str, real: Any) -> Any:
        def fork() -> int:
            if not self.running:
                return int(real())
            if self._forked or len(self._children) >= _MOST_FORKS:
                raise BlockingIOError(f"a model may fork {_MOST_FORKS} times, and not in a fork")
            child = int(real())
            if child:
                self._children.append(child)
            else:
                self._forked = True
            return child

        return fork

    def _starting(self, _name: str, real: Any) -> Any:
        def start(thread: threading.Thread) -> None:
            if self.running and not thread._started.is_set():  # type: ignore[attr-defined]
                thread.daemon = True  # pytest would wait for it at its end
            real(thread)

        return start

    def _registering(self, _name: str, real: Any) -> Any:
        def register(function: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return real(function, *args, **kwargs)
            real(_AtExit(self, function), *args, **kwargs)
            return function

        return register


class _AtExit:
    """A handler that a model registered: it cannot change how the process ends."""

    def __init__(self, exits: Exits, function: Callable[..., Any]) -> None:
        self._exits = exits
        self._function = function

    def __eq__(self, other: object) -> bool:
        """As the function, by which ``atexit.unregister`` finds it."""
        return self._function == other or self is other

    def __hash__(self) -> int:
        return hash(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._exits.install()
        try:
            self._function(*args, **kwargs)
        except SystemExit as error:
            sys.stderr.write(f"ignored in a handler of atexit of a model: {error}\n")
        finally:
            self._exits.uninstall()


def _ends_run(args: tuple[Any, ...]) -> bool:
    """Whether a call that sends a signal interrupts this process or the one that controls it."""
    *to, number = args or (signal.SIGINT,)
    own = {0, -1, os.getpid(), os.getppid()}
    if hasattr(os, "getpgrp"):
        own |= {os.getpgrp(), -os.getpgrp()}
    return number in (signal.SIGINT, signal.SIGTERM) and (not to or to[0] in own)


def _is_trusted(caller: FrameType) -> bool:
    """Whether it may end the process; a function of this file asks for one that it replaced."""
    own = caller.f_code.co_filename == __file__ and caller.f_code.co_name == "leave"
    name: str = caller.f_globals.get("__name__", "")
    return own or name.partition(".")[0] in _TRUSTED


def _place() -> str:
    frames = traceback.extract_stack()[:-2]
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-_FRAMES:]]
    return "".join(f"\n  {line}" for line in lines)
