"""GET with one deadline over everything, from hosts that are named, up to a size."""

from __future__ import annotations

import contextlib
import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.fetch import rate
from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from collections.abc import Mapping

MEGABYTE = 1_000_000
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 65536


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds in all, seconds to wait for a rate limit, tries where the host stumbles and the
    seconds between them (doubled each time), redirects, bytes of one file and of all."""

    seconds: float = 60.0
    wait: float = 30.0
    tries: int = 3
    pause: float = 0.5
    redirects: int = 5
    file: int = 10 * MEGABYTE
    total: int = 25 * MEGABYTE


@dataclass(frozen=True)
class Answer:
    """What a host said; keys of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


class HostError(SourceError):
    """The host answered, and not with what was asked for; ``status`` is its HTTP status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Client:
    """Fetches from one API and the hosts that belong to it; made for one model.

    ``api`` is the base URL without a trailing slash; ``token`` is sent to its host alone;
    ``hosts`` are the others that may be asked. The deadline runs from the first request on.
    """

    api: str
    hosts: frozenset[str] = frozenset()
    token: rate.Token = rate.NO_TOKEN
    limits: Limits = field(default_factory=Limits)
    _deadline: float | None = None
    _opener: urllib.request.OpenerDirector | None = None

    def get(self, url: str, *, most: int, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to GET ``url``: status 200, or 304 where ``headers`` ask for that.

        A body has at most ``most`` bytes. Raises HostError for another status, SourceError
        where there is no answer, a cut one or one that is too long.
        """
        pause = self.limits.pause
        for left in range(self.limits.tries - 1, -1, -1):
            answer = self._follow(url, dict(headers or {}), most)
            if answer.status in (200, 304):
                return answer
            wait = rate.seconds_to_wait(answer)
            if wait is None and answer.status >= 500:
                wait, pause = pause, pause * 2
            elif wait is None or wait > self.limits.wait:
                break
            if not left or wait >= self._left():
                break
            time.sleep(wait)
        raise HostError(self._refused(answer), answer.status)

    def _follow(self, url: str, headers: dict[str, str], most: int) -> Answer:
        start = url
        for _ in range(self.limits.redirects + 1):
            self._require_host(url, start)
            answer = self._exchange(url, headers, most)
            place = answer.headers.get("location")
            if answer.status not in REDIRECTS or not place:
                return answer
            url = _joined(url, place)
        raise SourceError(f"{start} was redirected more than {self.limits.redirects} times")

    def _require_host(self, url: str, start: str) -> None:
        parts, api = _split(url), _split(self.api)
        if parts is not None and api is not None:
            secure = parts.scheme == "https" or parts[:2] == api[:2]
            if secure and (parts.netloc == api.netloc or parts.netloc in self.hosts):
                return
        led = f"{start} leads to" if url != start else "asked for was"
        known = ", ".join(sorted({urlsplit(self.api).netloc, *self.hosts}))
        raise SourceError(
            f"{led} {clipped(url, 120)}, which is not asked: files come over https from {known} "
            "and nowhere else\n"
            "  a GitHub Enterprise server is named by the ini key tb_api_url"
        )

    def _left(self) -> float:
        if self._deadline is None:
            self._deadline = time.monotonic() + self.limits.seconds
        return self._deadline - time.monotonic()

    def _exchange(self, url: str, headers: dict[str, str], most: int) -> Answer:
        """One request in a thread of its own: a name server, a handshake or a header that drips
        are bound by no timeout of a socket."""
        left = self._left()
        answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        late = threading.Event()
        arguments = (self.request(url, headers), most, max(left, 0.001), late, answers)
        threading.Thread(target=self._read, args=arguments, daemon=True).start()
        try:
            answer = answers.get(timeout=max(left, 0))
        except queue.Empty:
            late.set()
            answer = TimeoutError()
        if isinstance(answer, Answer):
            return answer
        if isinstance(answer, SourceError):
            raise answer
        raise SourceError(self._failed(url, answer)) from answer

    def request(
        self, url: str, headers: Mapping[str, str] | None = None
    ) -> urllib.request.Request:
        """What is sent for ``url``: with the token where that is the API's own scheme and host."""
        request = urllib.request.Request(url, headers=dict(headers or {}))
        request.add_header("User-Agent", "pytest-transformer-validate")
        same = urlsplit(url)[:2] == urlsplit(self.api)[:2]
        if same and self.token.value:
            request.add_unredirected_header("Authorization", f"Bearer {self.token.value}")
        return request

    def _read(
        self,
        request: urllib.request.Request,
        most: int,
        seconds: float,
        late: threading.Event,
        answers: queue.SimpleQueue[Answer | Exception],
    ) -> None:
        try:
            with contextlib.closing(self._open(request, seconds)) as response:
                answers.put(_answer(response, request.full_url, most, late))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that asked
            answers.put(error)

    def _open(self, request: urllib.request.Request, seconds: float) -> Any:
        if self._opener is None:
            self._opener = _make_opener()
        try:
            return self._opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            return error

    def _failed(self, url: str, error: Exception) -> str:
        host = urlsplit(url).netloc
        if isinstance(error, TimeoutError) or "timed out" in str(error):
            return (
                f"{host} did not send everything within {self.limits.seconds:g} s\n"
                "  a copy that was accepted before is used without network (tb.lock); or "
                "download the files and name their folder"
            )
        if isinstance(error, http.client.IncompleteRead):
            return f"the answer of {host} was cut after {len(error.partial)} bytes; run again"
        inner = getattr(error, "reason", error)
        text = clipped(inner) or type(inner).__name__
        return "\n".join([f"no answer from {host}: {text}", *_proxies(url)])

    def _refused(self, answer: Answer) -> str:
        host = urlsplit(answer.url).netloc
        said = rate.message(answer)
        if answer.status == 401:
            return self.token.refused(host)
        if rate.limited(answer):
            return rate.explain(answer, host, self.token, self.limits.wait)
        if answer.status >= 500:
            spent = self.limits.seconds - self._left()
            return (
                f"{host} answered {answer.status} to all of {self.limits.tries} requests in "
                f"{spent:.1f} s{said}\n  try again later"
            )
        return f"{host} answered {answer.status} to {clipped(answer.url, 120)}{said}"


def _make_opener() -> urllib.request.OpenerDirector:
    """http and https through the proxies of the environment; no redirect, which the Client looks
    at itself, and none of urllib's other schemes."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _answer(response: Any, url: str, most: int, late: threading.Event) -> Answer:
    headers = {key.lower(): value for key, value in response.headers.items()}
    body = bytearray()
    while not late.is_set():
        chunk = response.read1(_CHUNK)
        body += chunk
        if len(body) > most:
            raise SourceError(
                f"{urlsplit(url).netloc} sent more than {most} bytes for {clipped(url, 120)}\n"
                "  so much is not fetched: clone it with git and name its folder"
            )
        if not chunk:
            break
    length = headers.get("content-length", "")
    if length.isdecimal() and response.status != 304 and int(length) != len(body):
        raise http.client.IncompleteRead(bytes(body), int(length) - len(body))
    return Answer(response.status, headers, bytes(body), url)


def _joined(url: str, place: str) -> str:
    """Where a redirect leads; what is no URL is given back, and refused as a host."""
    try:
        return urljoin(url, place)
    except ValueError:
        return place


def _split(url: str) -> Any:
    """The parts of a URL, ``None`` where it is none or holds a user name."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    known = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
    return parts if known else None


def _proxies(url: str) -> list[str]:
    used = urllib.request.getproxies().get(urlsplit(url).scheme)
    if not used:
        return []
    name = f"{urlsplit(url).scheme}_proxy"
    return [f"  a proxy is in use: see {name.upper()} or {name} in the environment"]
