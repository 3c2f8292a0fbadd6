"""Every form in which people name a Gist, through one parser; nothing is asked of anybody."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.sources.gist.api import Api
from pytest_transformer_validate.sources.wording import clipped

FORMS = """a Gist is named by
    gist:ID             its newest revision, or the one in tb.lock; 20 or 32 hex digits
    gist:ID@REVISION    one revision: 40 hex digits
    gist:ID:net.py      a file that is not called model.py; a class: gist:ID::Net
    https://gist.github.com/user/ID or .../ID/REVISION"""

_SPEC = re.compile(
    r"gist:(?P<id>[^@:]*)(@(?P<revision>[^:]*))?(:(?P<file>[^:]+))?(::(?P<name>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_URL = re.compile(r"(https?://)?(?P<host>[^/@?#]+)(?P<path>/[^?#]*)([?#].*)?", re.IGNORECASE)
_BARE = re.compile(r"gist\.github(usercontent)?\.com/", re.IGNORECASE)
_NOTEBOOK = re.compile(r"[#?&]gist_id=", re.IGNORECASE)
_ID = re.compile(r"[0-9a-f]{20}|[0-9a-f]{32}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,96}\.py")


@dataclass(frozen=True)
class GistName:
    """What a spec says: hex in lower case; ``file`` where it is not model.py, ``name`` a class."""

    id: str
    revision: str | None = None
    file: str | None = None
    name: str | None = None

    def short(self, revision: str | None, digits: int) -> str:
        """The form that heads node ids."""
        at = f"@{revision[:digits]}" if revision else ""
        file = f":{self.file}" if self.file else ""
        return f"gist:{self.id}{at}{file}" + (f"::{self.name}" if self.name else "")


def may_be_gist(spec: str) -> bool:
    """Whether ``is_gist`` may say yes, whatever the API."""
    return "://" in spec or bool(is_gist(spec, Api()))


def is_gist(spec: str, api: Api) -> bool:
    """Whether ``spec`` means a Gist, well-formed or not."""
    if spec[:5].lower() == "gist:" or _BARE.match(spec) or _NOTEBOOK.search(spec):
        return True
    url = _URL.fullmatch(spec)
    return bool(url and "://" in spec and url["host"].lower() in api.web_hosts)


def parse_gist(spec: str, api: Api) -> GistName:
    """What ``spec`` says. Raises SpecError for a form, an id or a revision that is none."""
    form = _SPEC.fullmatch(spec)
    if form:
        parts = (form["id"], form["revision"], form["file"], form["name"])
    elif _NOTEBOOK.search(spec):
        parts = _of_notebook(spec)
    else:
        parts = _of_url(spec, api)
    identity, revision, file, name = parts
    _require(spec, bool(_ID.fullmatch(identity.lower())), _about_id(identity))
    if revision is not None:
        _require(spec, bool(_REVISION.fullmatch(revision.lower())), _about_revision(revision))
    if file is not None:
        text = f"a file is called like net.py, given {clipped(ascii(file), 80)}"
        _require(spec, bool(_FILE.fullmatch(file)), text)
        file = None if file == "model.py" else file
    if name is not None:
        text = f"a class is a Python name, given {clipped(ascii(name), 80)}"
        _require(spec, name.isidentifier(), text)
    return GistName(identity.lower(), revision and revision.lower(), file, name)


_Parts = tuple[str, str | None, str | None, str | None]


def _of_notebook(spec: str) -> _Parts:
    """The fragment that opens a model in a notebook: ``#gist_id=ID&name=Class``."""
    pairs = parse_qs(re.split(r"[#?]", spec, maxsplit=1)[1].replace("#", "&"))
    values = {key.lower(): found[0] for key, found in pairs.items()}
    identity, _, revision = values.get("gist_id", "").partition("@")
    return identity, revision or None, None, values.get("name")


def _of_url(spec: str, api: Api) -> _Parts:
    url = spec if "://" in spec else f"https://{spec}"
    form = _URL.fullmatch(url)
    host = form["host"].lower() if form else ""
    _require(spec, host in api.web_hosts, "no URL of a Gist")
    parts = [unquote(part) for part in (form["path"] if form else "").split("/") if part]
    if parts[:1] == ["gist"] and host not in {"gist.github.com", "gist.githubusercontent.com"}:
        parts = parts[1:]
    if "raw" in parts:
        return _of_raw(spec, parts)
    if parts:
        parts[-1] = parts[-1].removesuffix(".git")
    at = next((i for i, part in enumerate(parts[:2]) if _ID.fullmatch(part.lower())), None)
    if at is None:
        return (parts[-1] if parts else ""), None, None, None
    rest = parts[at + 1 :]
    _require(spec, len(rest) <= 1, "after the id comes a revision and nothing else")
    return parts[at], (rest[0] if rest else None), None, None


def _of_raw(spec: str, parts: list[str]) -> _Parts:
    """``user/ID/raw/file.py``; digits before the file name a content, which is no revision."""
    before, after = parts[: parts.index("raw")], parts[parts.index("raw") + 1 :]
    text = "a raw URL with digits names one content of one file, and no revision"
    _require(spec, len(after) <= 1 and not _REVISION.fullmatch("".join(after).lower()), text)
    return (before[-1] if before else ""), None, (after[0] if after else None), None


def _about_id(identity: str) -> str:
    return f"the id of a Gist has 20 or 32 hex digits, given {clipped(ascii(identity), 80)}"


def _about_revision(revision: str) -> str:
    return (
        f"a revision has 40 hex digits, given {clipped(ascii(revision), 80)}; without one, the "
        "newest is taken and printed"
    )


def _require(spec: str, holds: bool, text: str) -> None:
    if not holds:
        raise SpecError(f"model {clipped(ascii(spec), 160)}: {text}\n  {FORMS}")
