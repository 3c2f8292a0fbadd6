"""What a host says about too many requests and about tokens, and what to do about it."""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.sources.wording import clipped

if TYPE_CHECKING:
    from pytest_transformer_validate.sources.fetch.http import Answer

VARIABLES = ("GITHUB_TOKEN", "GH_TOKEN")
_REMAINING = "x-ratelimit-remaining"
_RESET = "x-ratelimit-reset"
_DIGITS = 10  # of a time in seconds since 1970


@dataclass(frozen=True)
class Token:
    """A token and the variable that it is from; its text shows neither in ``repr``."""

    variable: str = ""
    value: str = ""

    def __repr__(self) -> str:
        return f"<token of {self.variable or 'nobody'}>"

    @classmethod
    def of_environment(cls) -> Token:
        """The first of GITHUB_TOKEN and GH_TOKEN that is set."""
        for variable in VARIABLES:
            value = os.environ.get(variable, "").strip()
            if value and value.isascii() and value.isprintable():
                return cls(variable, value)
        return NO_TOKEN

    def refused(self, host: str) -> str:
        """What to say to 401."""
        if not self.value:
            return f"{host} wants a token (401); set {VARIABLES[0]}"
        return (
            f"{host} does not know the token in {self.variable} (401)\n"
            f"  put a valid one into {self.variable}, or remove it: public Gists need none"
        )


NO_TOKEN = Token()


def limited(answer: Answer) -> bool:
    """Whether the answer is about too many requests."""
    return answer.status == 429 or (
        answer.status == 403
        and ("retry-after" in answer.headers or answer.headers.get(_REMAINING) == "0")
    )


def seconds_to_wait(answer: Answer) -> float | None:
    """Seconds until the host answers again; ``None`` where that is not what it said."""
    return _seconds(answer, time.time()) if limited(answer) else None


def explain(answer: Answer, host: str, token: Token, budget: float) -> str:
    """When the host answers again, and what helps now."""
    now = time.time()
    wait = _seconds(answer, now)
    when = "it does not say until when"
    if math.isfinite(wait):
        local = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now + wait))
        utc = time.strftime("%H:%M:%S UTC", time.gmtime(now + wait))
        when = f"until {local} ({utc}), in {wait:.0f} s"
    lines = [
        f"{host} takes no more requests for now ({answer.status}){message(answer)}",
        f"  {when}; at most {budget:g} s are waited for",
    ]
    if not token.value:
        lines.append(f"  with a token in {VARIABLES[0]} it takes many more an hour")
    lines.append("  a copy that was accepted before is used without network: leave --tb-trust out")
    return "\n".join(lines)


def message(answer: Answer) -> str:
    """``: `` and what the host itself says, shortened and on one line; else nothing."""
    try:
        said = json.loads(answer.body).get("message")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return f": {clipped(said)}" if isinstance(said, str) and said.strip() else ""


def _seconds(answer: Answer, now: float) -> float:
    """Seconds until the host answers again; infinite where nobody knows."""
    after = answer.headers.get("retry-after", "").strip()
    if after.isdecimal() and len(after) < _DIGITS:
        return float(after)
    reset = answer.headers.get(_RESET, "").strip()
    if reset.isdecimal() and len(reset) <= _DIGITS:
        return max(0.0, int(reset) - now)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return math.inf
