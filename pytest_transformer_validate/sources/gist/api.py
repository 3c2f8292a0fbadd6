"""Which GitHub is asked: github.com, or the server that ``tb_api_url`` names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.wording import clipped

GITHUB = "https://api.github.com"
VARIABLE = "GITHUB_API_URL"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Api:
    """The base URL of GitHub's REST API, without a trailing slash."""

    url: str = GITHUB

    @classmethod
    def of(cls, url: str | None = None) -> Self:
        """The one at ``url`` (the ini key ``tb_api_url``), else the one that the variable
        GITHUB_API_URL names, as GitHub's own runners set it, else github.com.

        Raises SpecError for what is no URL over https; http is for a server on this machine.
        """
        name = "tb_api_url" if url else VARIABLE
        given = (url or os.environ.get(VARIABLE) or GITHUB).strip().rstrip("/")
        try:
            parts = urlsplit(given)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or "@" in parts.netloc or parts.query or parts.fragment:
            why = "a URL without user name, query and fragment"
        elif parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
            why = "a URL over https"
        else:
            return cls(f"{parts.scheme}://{parts.netloc.lower()}{parts.path}")
        shown = clipped(repr(given), 100) if "@" not in given else "one with a user name"
        raise SpecError(
            f"{name} must be {why}, given {shown}\n"
            f"  for example {GITHUB}, or https://github.example.com/api/v3 for GitHub Enterprise"
        )

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts besides the API's that files are fetched from."""
        if self._site == "github.com":
            return frozenset({"gist.githubusercontent.com"})
        return frozenset({self._site, f"gist.{self._site}"})

    @property
    def web_hosts(self) -> frozenset[str]:
        """Hosts of the pages that people copy URLs from."""
        site = {"gist.github.com", "gist.githubusercontent.com"}
        return frozenset(site if self._site == "github.com" else {*site, *self.hosts})

    @property
    def _site(self) -> str:
        return urlsplit(self.url).netloc.removeprefix("api.")

    def gist(self, identity: str, revision: str | None = None) -> str:
        """Where the API describes a Gist."""
        return f"{self.url}/gists/{identity}" + (f"/{revision}" if revision else "")

    def page(self, identity: str) -> str:
        """Where people read a Gist."""
        if self._site == "github.com":
            return f"https://gist.github.com/{identity}"
        return f"{urlsplit(self.url).scheme}://{self._site}/gist/{identity}"
