"""From a spec to a Source: strict, and without importing or running anything."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import SourceError, SpecError
from pytest_transformer_validate.sources.dotted import DottedSource
from pytest_transformer_validate.sources.file import CONFIG_FILE, FileSource
from pytest_transformer_validate.sources.folder import MODEL_FILE, FolderSource
from pytest_transformer_validate.sources.gist.api import Api
from pytest_transformer_validate.sources.gist.name import is_gist, may_be_gist
from pytest_transformer_validate.sources.gist.source import GistSource
from pytest_transformer_validate.sources.hub.source import HubSource
from pytest_transformer_validate.sources.huggingface import HuggingFaceSource
from pytest_transformer_validate.sources.jsonfile import read_object
from pytest_transformer_validate.sources.wording import clipped, listed, near

if TYPE_CHECKING:
    from pytest_transformer_validate.sources.base import Source

GRAMMAR = """a model is named by
    model.py                 a file; its class where there are several: model.py::Net
    runs/a                   a folder: a builder export or a Hugging Face directory
    package.module:attr      a class, an object or a factory that can be imported
    gist:ID                  a Gist, or its URL
    hf:org/name              a model of the Hugging Face Hub
  for example --tb-model=model.py, --tb-model=model.py::Net, --tb-model=runs/a, \
--tb-model=mylib.models:GPT"""

SCHEMES = ("gist", "hf")
_FOREIGN_SCHEMES = frozenset(
    {"data", "file", "ftp", "ftps", "git", "github", "gs", "http", "https", "hub", "huggingface"}
    | {"s3", "sftp", "ssh"}
)
_DOTTED = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attr>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)", re.IGNORECASE
)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def parse(spec: str, *, rootdir: Path, cwd: Path, api_url: str | None = None) -> Source:
    """The Source that ``spec`` names. Raises SpecError.

    Paths are relative to ``cwd``; ids of files and folders are relative to ``rootdir``;
    ``api_url`` is the API that Gists are asked of, ``None`` for GitHub's.
    """
    if not spec.strip():
        raise SpecError(f"no model named: {spec!r} is empty\n  {GRAMMAR}")
    if _UNPRINTABLE.search(spec):
        raise SpecError(f"{_quoted(spec)}: a spec holds no control characters\n  {GRAMMAR}")
    if may_be_gist(spec):
        api = Api.of(api_url)
        if is_gist(spec, api):
            return GistSource.parse(spec, api)
    if spec[:3].lower() == "hf:":
        return HubSource.parse(spec)
    path, name = _split(spec, cwd)
    if _mode(path) is not None:
        return _local(spec, path, name, rootdir, cwd)
    _refuse_scheme(spec, cwd)
    dotted = _DOTTED.fullmatch(spec)
    if dotted:
        return DottedSource(spec, spec, dotted["module"], dotted["attr"], cwd)
    if name is None and ":" in spec and not _is_path(spec):
        raise SpecError(f"{_quoted(spec)} is neither a path nor package.module:attr\n  {GRAMMAR}")
    raise SpecError(_not_there(spec, path, cwd))


def _split(spec: str, cwd: Path) -> tuple[Path, str | None]:
    """The path in a spec and the name after ``::``; what exists as it stands has no name."""
    whole = _absolute(cwd / spec)
    head, colons, name = spec.rpartition("::")
    if not colons or not head or _mode(whole) is not None:
        return whole, None
    return _absolute(cwd / head), name


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _mode(path: Path) -> int | None:
    """The file mode, or None where there is nothing that can be reached."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def _local(spec: str, path: Path, name: str | None, rootdir: Path, cwd: Path) -> Source:
    if name is not None and not name.isidentifier():
        raise SpecError(f"{_quoted(spec)}: after :: comes a class of the file, not {name!r}")
    short = _short(path, rootdir) + (f"::{name}" if name else "")
    mode = _mode(path) or 0
    if S_ISREG(mode):
        if path.suffix != ".py":
            raise SpecError(f"{_quoted(spec)}: a model file ends in .py{_advice(path)}")
        return FileSource(spec, short, path, name)
    if not S_ISDIR(mode):
        raise SpecError(f"{_quoted(spec)} is neither a file nor a folder")
    return _folder(spec, short, path, name, cwd)


def _folder(spec: str, short: str, path: Path, name: str | None, cwd: Path) -> Source:
    has_model = _mode(path / MODEL_FILE) is not None
    has_config = _mode(path / CONFIG_FILE) is not None
    if not has_model and not has_config:
        try:
            there = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise SpecError(f"{_quoted(spec)}: cannot read the folder: {error}") from error
        raise SpecError(
            f"{_quoted(spec)} is a folder without a model (found there: {listed(there)})\n"
            f"  looked for {MODEL_FILE} with {CONFIG_FILE} (a builder export), or {CONFIG_FILE} "
            "with architectures or model_type (a Hugging Face directory)\n"
            f"  a file in it is named by its path{_python_file(path, cwd)}"
        )
    if has_model or not _is_hugging_face(path / CONFIG_FILE):
        return FolderSource(spec, short, path, name)
    if name is not None:
        raise SpecError(
            f"{_quoted(spec)}: the class of a Hugging Face directory is named by architectures "
            f"in its {CONFIG_FILE}, not after ::"
        )
    return HuggingFaceSource(spec, short, path)


def _is_hugging_face(config: Path) -> bool:
    try:
        values = read_object(config, infinite=True)
    except SourceError:
        return False  # loading the folder says what is wrong with it
    return not values.keys().isdisjoint({"architectures", "model_type", "auto_map"})


def _short(path: Path, rootdir: Path) -> str:
    """The path as node ids hold it: below rootdir relative to it; elsewhere relative with ``..``
    where the two have a folder in common, else absolute. Never ``.``, which pytest reads."""
    for below, root in ((path, _absolute(rootdir)), (path.resolve(), rootdir.resolve())):
        if below != root and below.is_relative_to(root):
            return below.relative_to(root).as_posix()
    root = _absolute(rootdir)
    if path == root:
        return f"../{root.name}" if root.name else root.as_posix()
    with suppress(ValueError):
        common = Path(os.path.commonpath([path, root]))
        if common != Path(common.anchor):
            up = len(root.parts) - len(common.parts)
            return Path(*[".."] * up, path.relative_to(common)).as_posix()
    return path.as_posix()


def _refuse_scheme(spec: str, cwd: Path) -> None:
    """Raise for a spec that starts like a URL or with a scheme."""
    scheme = spec.partition(":")[0].lower() if _has_scheme(spec) else ""
    page = _HUB_PAGE.match(spec)
    if page:
        raise SpecError(
            f"{_quoted(spec)}: a model of the Hugging Face Hub is named by --tb-model=hf:{page[1]}"
        )
    known = near(scheme, SCHEMES)
    suspect = bool(known) or scheme in _FOREIGN_SCHEMES
    if "://" in spec or (suspect and not _importable(scheme, cwd)):
        raise SpecError(f"{_quoted(spec)}: unknown scheme {scheme!r}{known}\n  {GRAMMAR}")


def _has_scheme(spec: str) -> bool:
    return bool(re.match(r"[A-Za-z][\w+-]*:(?!:)", spec)) and not _DRIVE.match(spec)


def _importable(name: str, cwd: Path) -> bool:
    """Whether a module outside the standard library has this name; nothing is imported."""
    if name in sys.stdlib_module_names:
        return False
    return name in sys.modules or PathFinder.find_spec(name, [str(cwd), *sys.path]) is not None


def _not_there(spec: str, path: Path, cwd: Path) -> str:
    model, check, _ = spec.partition("::tier")
    if check:
        return (
            f"{_quoted(spec)} is the id of a check; a model and one of its checks are\n"
            f"  --tb-model={clipped(model)} '{clipped(spec)}'"
        )
    text = f"{_quoted(spec)} does not exist (working directory {clipped(cwd)})"
    folder = path.parent
    while _mode(folder) is None and folder != folder.parent:
        folder = folder.parent
    missing = path.relative_to(folder).parts[0] if path != folder else path.name
    names: list[str] = []
    with suppress(OSError):
        names = sorted(entry.name for entry in folder.iterdir())
    nearest = near(missing, names)
    where = f"\n  {folder} has no {clipped(missing, 80)!r}{nearest}"
    return text + where + ("" if path.suffix == ".py" or _is_path(spec) else f"\n  {GRAMMAR}")


def _is_path(spec: str) -> bool:
    return spec.endswith(".py") or bool(re.search(r"[/\\]", spec))


def _advice(path: Path) -> str:
    if path.name == CONFIG_FILE:
        return f"; name the folder: {path.parent.name or path.parent}"
    if path.suffix == ".ipynb":
        return "; export the notebook's model cells to one"
    if path.suffix in {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}:
        return "; weights are given by --tb-weights"
    return ""


def _python_file(path: Path, cwd: Path) -> str:
    files = sorted(path.glob("*.py"))
    if not files:
        return ""
    file = files[0].relative_to(cwd) if files[0].is_relative_to(cwd) else files[0]
    return f": --tb-model={file.as_posix()}"


def _quoted(spec: str) -> str:
    return f"model {clipped(repr(spec), 160)}"
