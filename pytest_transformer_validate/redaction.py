"""What must never be shown: credentials, by the names and by the forms that they have."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import urllib.parse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REDACTED = "[redacted]"
SHORTEST = 8
_SHORTEST_LINE = 16

_NAMES = re.compile(r"AWS_.+|(.*_)?(TOKEN|KEY|SECRET|PASSWORD)", re.IGNORECASE)

# Forms that credentials have wherever they turn up; a group named ``keep`` is left as it is.
# .github/hooks/pre-commit knows the same families (tests/trust/test_secret_scan.py).
PATTERNS: Mapping[str, str] = {
    "private key": (
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----[\s\S]*?"
        r"(-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|\Z)"
    ),
    "Weights & Biases": (
        r"wandb_v[0-9]_[A-Za-z0-9_]{20,}|"
        r"(?P<keep>(?i:wandb)[\w.]{0,40}?(?i:key|login)\W{1,12}(?:key\W{1,5})?)"
        r"(?:local-)?[0-9a-f]{40}\b"
    ),
    "Hugging Face": r"(hf|api_org)_[A-Za-z0-9]{20,}",
    "OpenAI, Anthropic": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{0,40}?[A-Za-z0-9_]{16,}[A-Za-z0-9_-]*",
    "GitHub": r"(gh[pousr]_[A-Za-z0-9_]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "AWS": (
        r"(?<![A-Za-z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])|"
        r"(?P<keep>(?i:secret_?access_?key)\W{1,5})[A-Za-z0-9/+=]{40}"
    ),
    "password in a URL": r"(?P<keep>\b[A-Za-z][A-Za-z0-9+.-]{1,30}://)[^\s/?#'\"<>]+(?=@)",
}
_PATTERNS = tuple(re.compile(pattern) for pattern in PATTERNS.values())

_CURRENT_TEST = os.environ.encodekey("PYTEST_CURRENT_TEST")

_remembered: set[str] = set()


def secret_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that hold credentials (``*_TOKEN``, ``*_KEY``, ``*_SECRET``, ``*_PASSWORD``,
    ``AWS_*``), of ``os.environ`` by default."""
    environ = os.environ if environ is None else environ
    return {name: environ[name] for name in environ if _is_named_so(name)}


@functools.lru_cache(maxsize=1024)
def _is_named_so(name: str) -> bool:
    return _NAMES.fullmatch(name) is not None


def remember(values: Iterable[str]) -> None:
    """Redact these values from now on, also when they have left the environment."""
    _remembered.update(value for value in values if len(value) >= SHORTEST)


def secrets() -> frozenset[str]:
    """The values to look for now: of variables, of 8 characters or more, and remembered ones."""
    found = _environment.secrets()
    return found | _remembered if _remembered else found


def redact(text: str, values: frozenset[str] | None = None) -> str:
    """``text`` without credentials: neither ``values`` (those of ``secrets()``) nor anything that
    has the form of a token, a private key or a password in a URL."""
    if len(text) < SHORTEST:
        return text
    values = secrets() if values is None else values
    if values:
        text = _of_values(values).sub(REDACTED, text)
    for pattern in _PATTERNS:
        text = pattern.sub(_replaced, text)
    return text


class _Environment:
    """The credentials in the environment, looked for again only where a variable has changed."""

    def __init__(self) -> None:
        self._read: object = None
        self._secrets: frozenset[str] = frozenset()

    def secrets(self) -> frozenset[str]:
        """Values of 8 characters or more of the variables that hold credentials."""
        # Compared as Python keeps it: reading a variable decodes it, and there are many texts.
        now = vars(os.environ).get("_data")
        if now is not None:
            now = now.copy()
            now.pop(_CURRENT_TEST, None)  # which pytest writes three times for every test
        if now is None or now != self._read:
            self._read = now
            values = secret_variables().values()
            self._secrets = frozenset(value for value in values if len(value) >= SHORTEST)
        return self._secrets


_environment = _Environment()


def _replaced(found: re.Match[str]) -> str:
    return (found.groupdict().get("keep") or "") + REDACTED


@functools.lru_cache(maxsize=8)
def _of_values(values: frozenset[str]) -> re.Pattern[str]:
    """Finds the values in all forms that they have in texts; longer ones first."""
    forms = {form for value in values for form in _forms(value)}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))


def _forms(value: str) -> set[str]:
    """A value as it is, as Python, JSON, HTML and URLs write it, and its longer lines."""
    value = value.strip()
    lines = [line.strip() for line in value.splitlines()]
    forms = {value, *(line for line in lines if len(line) >= _SHORTEST_LINE)}
    for form in list(forms):
        forms |= {repr(form)[1:-1], json.dumps(form)[1:-1], html.escape(form)}
        forms |= {urllib.parse.quote(form), urllib.parse.quote(form, safe="")}
    return {form for form in forms if len(form) >= SHORTEST}
