"""huggingface_hub in a process of its own, which can be ended when its time is over.

The library bounds the time between two bytes, and waits as long as a server asks it to; nothing
of it bounds the whole. It also keeps flags, sessions and progress bars for a whole process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_transformer_validate.errors import SourceError, TransformerValidateError
from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DESCRIBE = "describe"
WEIGHTS = "weights"
# Seconds, and the bytes that one file may have, whatever its server says beforehand.
_LIMITS: Mapping[str, tuple[float, int]] = {
    DESCRIBE: (60.0, 100_000_000),
    WEIGHTS: (1800.0, 20_000_000_000),
}
_GRACE = 5.0
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
}


def ask(request: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Any:
    """What :func:`answer` gives, from another process within the time that there is for it.

    ``environ`` is that process's environment, with the token in it. A request may name its own
    ``seconds`` and ``size`` (bytes of one file). Raises SourceError.
    """
    seconds, size = _LIMITS[request["what"]]
    request = {"seconds": seconds, "size": size, **request}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=json.dumps({**request, "parent": os.getpid()}),
            env={**(os.environ if environ is None else environ), **_QUIET},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=request["seconds"] + _GRACE,
            check=False,
        )
        reply = json.loads(done.stdout.rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        raise SourceError(_late(request)) from None
    except ValueError:
        words = clipped((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        raise SourceError(
            f"the process that fetches ended with code {done.returncode}: {words}"
        ) from None
    if "error" in reply:
        raise SourceError(reply["error"])
    return reply["answer"]


def answer(request: Mapping[str, Any]) -> Any:
    """Do what a request asks for: ``describe`` or ``weights``. Raises SourceError."""
    from pytest_transformer_validate.sources.hub.cache import Cache
    from pytest_transformer_validate.sources.hub.lookup import describe, fetch_weights

    cache = Cache(offline=request["offline"])
    repository, revision = request["repository"], request["revision"]
    if request["what"] == WEIGHTS:
        fetch_weights(cache, repository, revision)
        return None
    return [vars(part) for part in describe(cache, repository, revision, request["pins"])]


class _Late(BaseException):
    """The time is over. No Exception: the library tries again after most of them."""


def main() -> None:
    """Read a request from stdin, write its answer as the last line of stdout."""
    request = json.loads(sys.stdin.readline())
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_end_with, args=(request["parent"],), daemon=True).start()
    _bound_size(request["size"])
    try:
        with _deadline(request["seconds"]):
            reply = {"answer": answer(request)}
    except _Late:
        reply = {"error": _late(request)}
    except (TransformerValidateError, OSError) as error:
        reply = {"error": str(error)}
    with os.fdopen(out, "w", encoding="utf-8") as stdout:
        stdout.write(json.dumps(reply))
    os._exit(0)  # threads of a library may still wait for a server


def _late(request: Mapping[str, Any]) -> str:
    text = f"fetching it took longer than {request['seconds']:g} seconds, which is the limit"
    if request["what"] == WEIGHTS:
        text += (
            "; what was fetched so far is kept\n  run it again, or download it with "
            f"`hf download {request['repository']} --revision {request['revision']} "
            "--local-dir FOLDER` and name the folder"
        )
    return text


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise where the time is over, so that half-written files are removed."""
    if not hasattr(signal, "setitimer"):
        yield  # the parent ends this process
        return

    def end(*_: object) -> NoReturn:
        raise _Late

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _bound_size(most: int) -> None:
    """Let the system refuse to write a file larger than any that was asked for."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))


def _end_with(parent: int) -> None:
    """End when the process that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
