"""Every option of the plugin: the command line, its ini twin, and what they have to be."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.errors import SpecError
from pytest_transformer_validate.task import TASKS, canonical_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_transformer_validate.interactive.run_plugin import Notebook

DTYPES = {"float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
DTYPES |= {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
LARGEST_SEED = 2**32 - 1
EPOCHS = 3  # of --tb-epochs
BUDGET = 120.0  # seconds of --tb-time-budget
_SPECS = "model.py, model.py::Net, folder/, pkg.module:attr, gist:ID, hf:org/name"


@dataclass(frozen=True)
class Option:
    """One option: ``name`` is its ini key, ``--name`` with dashes its flag.

    ``ini_type`` is pytest's; a ``linelist`` may be given several times on the command line.
    """

    name: str
    ini_type: Any
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def add(self, parser: pytest.Parser, group: pytest.OptionGroup) -> None:
        parser.addini(self.name, self.help, type=self.ini_type, default=None)
        if self.ini_type == "bool":
            group.addoption(self.flag, action="store_true", default=None, help=self.help)
        else:
            action = "append" if self.ini_type == "linelist" else "store"
            group.addoption(
                self.flag, action=action, default=None, metavar=self.metavar, help=self.help
            )


OPTIONS = (
    Option("tb_model", "linelist", "SPEC", f"validate this model ({_SPECS}); may be repeated"),
    Option("tb_config", "linelist", "PATH", "config.json to use; once, or once a model in order"),
    Option("tb_tokenizer", "linelist", "PATH", "tokenizer to use; once, or once a model in order"),
    Option("tb_weights", "linelist", "PATH", "weights to load; once, or once a model in order"),
    Option("tb_task", "linelist", "TASK", f"{', '.join(TASKS)}; once, or once a model in order"),
    Option("tb_device", "string", "DEVICE", "cpu (default), cuda, cuda:N, mps or auto"),
    Option("tb_dtype", "string", "DTYPE", "float64, float32, bfloat16 or float16; default: as is"),
    Option("tb_seed", "int", "N", f"seed of all that is random, 0 to {LARGEST_SEED}; default 0"),
    Option("tb_timeout", "float", "SECONDS", "time limit of a check; default 300, 0: none"),
    Option("tb_allow_skipped", "bool", "", "a model of which nothing could be judged is no error"),
    Option("tb_json", "string", "PATH", "write the records as JSON to this file"),
    Option("tb_baseline", "string", "PATH", "fail where this file of --tb-json was better"),
    Option("tb_reference", "string", "SPEC", f"model to compare with ({_SPECS})"),
    Option("tb_trust", "linelist", "SHA256", "accept fetched code: new, or the hash it has"),
    Option("tb_offline", "bool", "", "fetch nothing; what is in the cache is used"),
    Option("tb_train", "bool", "", "run checks of tier 3, which train copies of the model"),
    Option("tier3", "bool", "", "short for -m tier3 --tb-train"),
    Option("tb_data", "string", "PATH", "csv, tsv, json, jsonl, text or parquet to fine-tune on"),
    Option("tb_epochs", "int", "N", f"how often the data is gone through; default {EPOCHS}"),
    Option(
        "tb_time_budget",
        "float",
        "SECONDS",
        f"time limit of one training; default {BUDGET:g}, 0: none",
    ),
)
PER_MODEL = ("tb_config", "tb_tokenizer", "tb_weights", "tb_task")
INI_ONLY = {
    "tb_limits": "limits of checks, one a line: gradient_flow.floor = 1e-9",
    "tb_expect_fail": "deviations that are known, one a line: check or check[case]: reason",
}
API_URL = "GitHub's REST API; https://github.example.com/api/v3 for GitHub Enterprise"
# Where pytest's own keys stand in the files that it reads.
_SECTIONS = frozenset({"pytest", "tool:pytest", "tool.pytest", "tool.pytest.ini_options"})
_KEY = re.compile(r"""["']?([\w-]+)["']?\s*[=:]""")
GIST_VARIABLE = "GIST_ID"
# Under this name pytest knows the notebook that a run was started in.
NOTEBOOK = "transformer_validate_notebook"


def add_options(parser: pytest.Parser) -> None:
    """Register every option and ini key."""
    group = parser.getgroup("transformer_validate", "validation of transformers")
    for option in OPTIONS:
        option.add(parser, group)
    for name, text in INI_ONLY.items():
        parser.addini(name, text, type="linelist", default=None)
    parser.addini("tb_api_url", API_URL, type="string", default=None)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the options say about the whole run."""

    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    timeout: float = 300.0
    allow_skipped: bool = False
    json: Path | None = None
    baseline: Path | None = None
    train: bool = False
    data: Path | None = None
    epochs: int = EPOCHS
    budget: float = BUDGET
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budgets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    expect_fail: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: pytest.Config) -> Settings:
        """Read and check the options. Raises UsageError for a wrong one."""
        return cls(
            device=_device(value(config, "tb_device") or "cpu"),
            dtype=_dtype(value(config, "tb_dtype")),
            seed=_seed(value(config, "tb_seed")),
            timeout=_seconds("tb_timeout", value(config, "tb_timeout"), Settings.timeout),
            allow_skipped=bool(value(config, "tb_allow_skipped")),
            json=_json(config),
            baseline=existing_path(config, "tb_baseline", value(config, "tb_baseline")),
            train=bool(value(config, "tb_train") or value(config, "tier3")),
            data=_data(config),
            epochs=_epochs(value(config, "tb_epochs")),
            budget=_seconds("tb_time_budget", value(config, "tb_time_budget"), BUDGET),
        )


def value(config: pytest.Config, name: str) -> Any:
    """The value of the command line, else of the ini file, else ``None``."""
    given = config.getoption(name)
    return given if given is not None else ini(config, name)


def asked_for(config: pytest.Config) -> bool:
    """Whether there may be models in this run. Imports nothing."""
    if value(config, "tb_model") or gist_of_environment(config):
        return True
    return bool(config.hook.pytest_tb_models.get_hookimpls())


def gist_of_environment(config: pytest.Config) -> str | None:
    """The Gist that the environment names, where the command line names no model."""
    given = os.environ.get(GIST_VARIABLE, "").strip()
    return given if given and config.getoption("tb_model") is None else None


def notebook(config: pytest.Config) -> Notebook | None:
    """The notebook that the run was started in."""
    found: Notebook | None = config.pluginmanager.get_plugin(NOTEBOOK)
    return found


def ini(config: pytest.Config, name: str) -> Any:
    """The value of the ini file or ``None``. Raises UsageError for one of the wrong type."""
    try:
        return config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:
        place = _places(config.inipath).get(name, name)
        raise pytest.UsageError(f"{place}: {error}") from error


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """What was typed may hold credentials and control characters: the texts of UsageErrors that
    are raised within are fit to be shown."""
    try:
        yield
    except pytest.UsageError as error:
        from pytest_transformer_validate.report.text import printable

        raise pytest.UsageError(*(printable(str(text)) for text in error.args)) from error


def refuse_unknown(config: pytest.Config) -> None:
    """Raise UsageError for an ini key that starts like ours and is none: pytest warns only, and
    the run would go on without what was meant."""
    known = [option.name for option in OPTIONS] + [*INI_ONLY, "tb_api_url"]
    typed = [line.partition("=")[0].strip() for line in config.getoption("override_ini") or []]
    places = {name: f"-o {name}" for name in typed} | _places(config.inipath)
    for key, place in places.items():
        if key.startswith(("tb_", "tb-")) and key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise pytest.UsageError(f"{place}: unknown key; {hint}")


def _places(path: Path | None) -> dict[str, str]:
    """``file:line: key`` of every key of pytest in its configuration file."""
    found: dict[str, str] = {}
    inside = False
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = [] if path is None else path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            if line.startswith("["):
                inside = line.partition("]")[0].strip("[ ") in _SECTIONS
            key = _KEY.match(line)
            if inside and key:
                found[key[1]] = f"{path}:{number}: {key[1]}"
    return found


def base(config: pytest.Config, name: str) -> Path:
    """The folder that a relative path in option ``name`` is relative to."""
    if config.getoption(name) is None and config.inipath is not None:
        return config.inipath.parent
    return config.invocation_params.dir


def per_model(config: pytest.Config, name: str, count: int) -> list[str | None]:
    """One value of option ``name`` a model."""
    given = value(config, name) or []
    if len(given) in (0, 1):
        return [*(given or [None])] * count
    if len(given) != count:
        raise pytest.UsageError(
            f"{_flag(name)} must be given once for all models or once a model in their order, "
            f"given {len(given)} times for {count} model{'s'[: count != 1]}"
        )
    return list(given)


def existing_path(config: pytest.Config, name: str, given: str | None) -> Path | None:
    """The path in a value of option ``name``. Raises UsageError where nothing is there."""
    if given is None:
        return None
    path = _path(config, name, given)
    if not given or not _holds(path.exists):
        raise pytest.UsageError(f"{_flag(name)}={given}: no such file or folder: {path}")
    return path


def task(given: str | None) -> str | None:
    """The task that ``--tb-task`` names. Raises UsageError for an unknown one."""
    try:
        return None if given is None else canonical_task(given)
    except SpecError as error:
        raise pytest.UsageError(f"--tb-task: {error}") from error


def check_device(name: str) -> None:
    """Raises UsageError when the device is not there. Imports torch unless it is cpu or auto."""
    if name in {"cpu", "auto"}:
        return
    import torch

    seen = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        seen.append("mps")
    known = {*seen, *(device.partition(":")[0] for device in seen)}
    if name not in known:
        raise pytest.UsageError(
            f"--tb-device={name} is not here; devices seen: {', '.join(seen)}; "
            "auto takes the best of them"
        )


def _path(config: pytest.Config, name: str, given: str) -> Path:
    try:
        return base(config, name) / Path(given).expanduser()
    except RuntimeError as error:
        raise pytest.UsageError(f"{_flag(name)}={given}: {error}") from error


def _holds(test: Callable[[], bool]) -> bool:
    """What a question about a path answers; a name that no file can have names nothing."""
    try:
        return test()
    except (OSError, ValueError):
        return False


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _device(given: str) -> str:
    kind, _, index = given.partition(":")
    if kind not in {"cpu", "cuda", "mps", "auto"} or (index and not index.isdigit()):
        raise pytest.UsageError(
            f"--tb-device must be cpu, cuda, cuda:N, mps or auto, given {given!r}"
        )
    return given


def _dtype(given: str | None) -> str | None:
    if given is None:
        return None
    if given not in DTYPES:
        raise pytest.UsageError(f"--tb-dtype must be one of {', '.join(DTYPES)}, given {given!r}")
    return DTYPES[given]


def _seed(given: str | int | None) -> int:
    if given is None:
        return 0
    text = str(given).strip()
    if not (text.isascii() and text.isdigit() and int(text) <= LARGEST_SEED):
        raise pytest.UsageError(
            f"--tb-seed must be a whole number from 0 to {LARGEST_SEED}, given {text!r}"
        )
    return int(text)


def _seconds(name: str, given: str | float | None, default: float) -> float:
    if given is None:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise pytest.UsageError(
            f"{_flag(name)} must be a number of seconds, 0 for no limit, given {given!r}"
        )
    return seconds


def _epochs(given: str | int | None) -> int:
    if given is None:
        return EPOCHS
    text = str(given).strip()
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise pytest.UsageError(f"--tb-epochs must be a whole number from 1 on, given {text!r}")
    return int(text)


def _data(config: pytest.Config) -> Path | None:
    given = value(config, "tb_data")
    path = existing_path(config, "tb_data", given)
    if path is not None and path.is_dir():
        raise pytest.UsageError(f"--tb-data must name a file, given {given!r}, a folder")
    return path


def _may_be_file(path: Path) -> bool:
    """Whether the path is no folder, and one that a file can have."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _json(config: pytest.Config) -> Path | None:
    given = value(config, "tb_json")
    if given is None:
        return None
    path = _path(config, "tb_json", given)
    if not given or not _may_be_file(path) or not _holds(path.parent.is_dir):
        raise pytest.UsageError(
            f"--tb-json must name a file in a folder that is there, given {given!r} ({path})"
        )
    return path
