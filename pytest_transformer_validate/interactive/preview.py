"""A model before it runs: which one is meant, what its code says, what its imports lack."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.optional import import_torch
from pytest_transformer_validate.options import GIST_VARIABLE
from pytest_transformer_validate.redaction import redact
from pytest_transformer_validate.report import html
from pytest_transformer_validate.report.figures import curves
from pytest_transformer_validate.report.text import escaped
from pytest_transformer_validate.sources import imports
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.dotted import DottedSource
from pytest_transformer_validate.sources.fetch.consent import Terms
from pytest_transformer_validate.sources.fetch.resolve import fetch, resolve_all
from pytest_transformer_validate.sources.fetch.source import FetchedSource
from pytest_transformer_validate.sources.file import CONFIG_FILE, FileSource
from pytest_transformer_validate.sources.gist.source import GistSource
from pytest_transformer_validate.sources.parse import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.sources.base import Loaded, Source

_PACKAGE = Path(__file__).parents[1]
_BARE_ID = re.compile("[0-9a-fA-F]{20}|[0-9a-fA-F]{32}")
# What a page in Colab can be asked for; a frame of another origin does not tell its address.
ADDRESS = """(() => {
  const ways = [
    () => window.location.href,
    () => window.parent.location.href,
    () => document.referrer,
    () => document.baseURI,
  ];
  for (const way of ways) {
    try {
      const text = String(way() || "");
      if (/[#?&]gist_id=/i.test(text)) return text;
    } catch (error) {}
  }
  return "";
})()"""


def example() -> str:
    """The folder of the model that comes with the plugin: a small GPT."""
    shipped = _PACKAGE / "example"
    return str(shipped if shipped.is_dir() else _PACKAGE.parent / "examples" / "gpt")


def environment() -> None:
    """Print what is there: versions, and the device that ``--tb-device=auto`` takes."""
    torch = import_torch()
    gpu = torch.cuda.is_available()
    device = f"cuda ({torch.cuda.get_device_name()})" if gpu else "cpu"
    words = [f"Python {platform.python_version()}", f"device {device}"]
    for name in ("torch", "numpy", "pytest", "pytest-transformer-validate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            words.append(f"{name} {importlib.metadata.version(name)}")
    _say(", ".join(words))


def choose_model(form: str = "") -> str:
    """The spec of the model that is meant, said where it comes from.

    The first of: ``gist_id=ID&name=Class`` in the address of the notebook's page (in Colab, where
    the browser tells it), the environment variable ``GIST_ID``, ``form`` (an id, a URL, any
    spec). Without any it is the example that comes with the plugin. Raises SpecError for one that
    names nothing.
    """
    ways = (
        ("the address of this page", _of_page()),
        (f"{GIST_VARIABLE} in the environment", os.environ.get(GIST_VARIABLE, "")),
        ("the form", form),
    )
    named = [(where, _plain(text.strip())) for where, text in ways if text.strip()]
    if not named:
        _say(f"NO MODEL WAS NAMED: this is the example that comes with the plugin ({example()})")
        return example()
    (place, spec), *others = named
    _say(f"model: {spec} (from {place})")
    for where, other in others:
        if other != spec:
            _say(f"  not in force: {other} (from {where})")
    return spec


def _plain(text: str) -> str:
    """A spec in its plain form; an id alone is a Gist's."""
    spec = f"gist:{text}" if _BARE_ID.fullmatch(text) else text
    source = _parse(spec)
    return source.spec_at(source.revision) if isinstance(source, FetchedSource) else spec


def _of_page() -> str:
    """The address of the page, where Colab tells it; anywhere else a kernel cannot ask."""
    if "google.colab" not in sys.modules:
        return ""
    try:
        output = importlib.import_module("google.colab.output")
        return str(output.eval_js(ADDRESS, timeout_sec=10) or "")
    except Exception as error:  # noqa: BLE001 - without Javascript there are two other ways
        _say(f"the address of this page could not be read: {type(error).__name__}")
        return ""


def _parse(spec: str) -> Source:
    return parse(spec, rootdir=Path.cwd(), cwd=Path.cwd())


@dataclass(frozen=True)
class Preview:
    """A model whose files are here and of which nothing has run.

    ``spec`` names exactly this revision; ``sha256`` stands for the files of a fetched model, and
    is empty for one of the user's own; ``files`` are its Python files and its config.json.
    """

    spec: str
    source: Source
    files: tuple[Path, ...]
    about: str = ""
    sha256: str = ""

    def show(self) -> None:
        """Show the code and the configuration."""
        from IPython.display import Code, display

        _say("\n".join(filter(None, [self.spec, self.about])))
        for path in self.files:
            _say(f"\n{path.name}")
            text = escaped(redact(path.read_text(encoding="utf-8", errors="replace")))
            display(Code(text, language=path.suffix[1:]))

    def missing(self) -> list[str]:
        """Packages that hold what the code imports and this machine lacks, said with one line
        that installs them. Nothing of the model runs, and nothing is installed."""
        names = imports.missing(path for path in self.files if path.suffix == ".py")
        packages = [imports.package_of(name) for name in names]
        if names:
            _say(f"missing: {', '.join(names)}\n  %pip install {shlex.join(packages)}")
        else:
            _say("everything that the model imports is there")
        return packages

    def options(self, *, accepted: bool = False) -> str:
        """What ``%pytest`` is given for this model; ``accepted`` says that the code of a fetched
        one was read and may run."""
        trust = f" --tb-trust={self.sha256}" if accepted and self.sha256 else ""
        return shlex.quote(f"--tb-model={self.spec}") + trust

    def go_on_in(self, page: str) -> None:
        """Show the way to another notebook that opens this model."""
        from IPython.display import HTML, display

        source, fragment = self.source, ""
        if isinstance(source, GistSource):
            gist = source.gist
            at = f"@{gist.revision}" if gist.revision else ""
            fragment = f"#gist_id={gist.id}{at}" + (f"&name={gist.name}" if gist.name else "")
        address = html.text(page + fragment)
        display(HTML(f'<p>Next: <a href="{address}">{address}</a></p>'))
        _say(f"next: {page}, with this in its form: {self.spec}")

    def load(self, *, accepted: bool = False) -> Loaded:
        """The model in this process, in which its code runs with all that this process may do.
        Raises SpecError for a fetched one that was not accepted."""
        source = self.source
        if isinstance(source, FetchedSource):
            terms = Terms.of([self.sha256] if accepted else [], typed=False, recorded=False)
            [source] = resolve_all([source], terms, Path())
        return source.load(LoadOptions())


def open_model(spec: str) -> Preview:
    """The files of a model, fetched where it is somebody else's; nothing runs.

    Raises SpecError for a spec that names nothing, SourceError where a host does not give it.
    """
    source = _parse(spec)
    if not isinstance(source, FetchedSource):
        return Preview(spec, source, tuple(_own_files(source)))
    got = fetch(source)
    pin = got.pin
    spec = source.spec_at(pin.revision)
    files = (got.folder / path for path in sorted(pin.tree.files))
    return Preview(
        spec,
        _parse(spec),
        tuple(path for path in files if path.suffix == ".py" or path.name == CONFIG_FILE),
        f"by {pin.owner or 'nobody named'}, revision {pin.revision}, sha256 {pin.tree.sha256}",
        pin.tree.sha256,
    )


def _own_files(source: Source) -> Iterator[Path]:
    if isinstance(source, DottedSource):
        file = _file_of(source.module, [str(source.cwd), *sys.path])
        yield from filter(None, [file])
        return
    path = Path(getattr(source, "path", ""))
    yield from [path] if isinstance(source, FileSource) else sorted(path.glob("*.py"))
    config = (path.parent if isinstance(source, FileSource) else path) / CONFIG_FILE
    yield from filter(Path.is_file, [config])


def _file_of(module: str, folders: list[str]) -> Path | None:
    """Where a module lies; what it is in is not imported."""
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, folders)
        if spec is None:
            raise SpecError(f"no module {name!r} can be found")
        folders = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None


def show_curves(series: dict[str, Any], title: str) -> None:
    """Draw lines of numbers over one axis."""
    from IPython.display import HTML, display

    lines = {name: [float(number) for number in line] for name, line in series.items() if line}
    if lines:
        figure = curves(lines, title)
        caption = f"<figcaption>{html.text(figure.title)}</figcaption>"
        display(HTML(f"<figure>{caption}{figure.svg}</figure>"))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
