"""After each of many models that change the process, the next model's results are the same bits.

A witness runs before and after every one of them. What it notes is a number: of its weights,
outputs and gradients, and of everything in the process that it can see.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHECKS = """
import gc, locale, os, random, signal, sys, threading, warnings, zlib
import torch
from pytest_transformer_validate.checks import registry
from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.measures.measurement import Measurement

registry._registry.clear()
registry._BUNDLED = ()

def seen():
    "What a model sees of the process."
    return (
        os.getcwd(), sorted(dict(os.environ, PYTEST_CURRENT_TEST="").items()),
        locale.setlocale(locale.LC_ALL),
        sys.getrecursionlimit(), sys.gettrace() is None, gc.isenabled(), sys.excepthook is HOOK,
        signal.getsignal(signal.SIGUSR1), sys.stdout is None, random.random(),
        [entry for entry in sys.path if "elsewhere" in entry],
        [filter[0] for filter in warnings.filters if filter[2] is FutureWarning],
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.rand(3).tolist(),
        torch.get_float32_matmul_precision(), torch.get_default_device(),
        (torch.tensor(1e-310, dtype=torch.float64) * 1).item(),
        sys.modules["torch"] is torch, torch.equal is EQUAL,
        os.path.join is JOIN, len(sys.path_hooks), signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    )

HOOK, EQUAL, JOIN = sys.excepthook, torch.equal, os.path.join

@check(tier=1)
def load(probe):
    "The model loads."
    return Measurement(value=float(probe.context()["parameters"]))

@check(tier=1)
def number(probe):
    "One number for everything."
    with probe.running("number", grad=True) as subject:
        logits = subject(probe.batch(2, 4, "number")).logits
        logits.sum().backward()
        tensors = [logits, *subject.model.parameters()]
        tensors += [parameter.grad for parameter in subject.model.parameters()]
        data = [tensor.detach().numpy().tobytes() for tensor in tensors]
    return Measurement(value=float(zlib.crc32(b"".join(data) + repr(seen()).encode())))
"""

MODEL = """
import atexit, builtins, gc, locale, logging, os, random, signal, sys, threading, warnings
import torch
from torch.nn import functional as F
{top}

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.head = torch.nn.Linear(8, 32)
        torch.nn.init.normal_(self.head.weight)
        {start}

    def forward(self, input_ids):
        {body}
        return self.head(F.softmax(self.embed(input_ids), dim=-1))
"""

# Where the code goes and the code; these get a verdict of their own, whatever it is.
POLLUTING: Mapping[str, tuple[str, str]] = {
    "default_dtype": ("top", "torch.set_default_dtype(torch.float64)"),
    "default_dtype_late": ("body", "torch.set_default_dtype(torch.float16)"),
    "default_device": ("start", "torch.set_default_device('meta')"),
    "seeds": ("body", "torch.manual_seed(7); random.seed(7)"),
    "gradients": ("top", "torch.set_grad_enabled(False)"),
    "inference": ("start", "torch.inference_mode().__enter__()"),
    "threads": ("start", "torch.set_num_threads(3)"),
    "determinism": ("top", "torch.use_deterministic_algorithms(True)"),
    "precision": ("top", "torch.set_float32_matmul_precision('medium')"),
    "denormals": ("start", "torch.set_flush_denormal(True)"),
    "autocast": ("start", "torch.autocast('cpu', dtype=torch.bfloat16).__enter__()"),
    "forward_of_linear": ("top", "torch.nn.Linear.forward = lambda self, x: x @ self.weight.T"),
    "call_of_layers": ("top", "torch.nn.Linear.__call__ = lambda self, x: x @ self.weight.T"),
    "softmax": ("top", "old = F.softmax; F.softmax = lambda *a, **k: 2 * old(*a, **k)"),
    "softmax_late": ("body", "F.softmax = torch.log_softmax"),
    "init": ("top", "torch.nn.init.normal_ = torch.nn.init.zeros_"),
    "method": ("top", "torch.Tensor.softmax = lambda self, dim: self * 0"),
    "equality": ("top", "torch.equal = lambda *_: True"),
    "random": ("top", "random.random = lambda: 0.5"),
    "hook": (
        "start",
        "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o + 1)",
    ),
    "mode": (
        "start",
        "type('M', (torch.overrides.TorchFunctionMode,), {'__torch_function__': "
        "lambda self, f, t, a=(), k=None: f(*a, **(k or {})) if 'softmax' not in str(f) "
        "else a[0]})().__enter__()",
    ),
    "saved_tensors": (
        "start",
        "torch.autograd.graph.saved_tensors_hooks(lambda t: t * 0, lambda t: t).__enter__()",
    ),
    "warnings": ("top", "warnings.simplefilter('error', FutureWarning)"),
    "folder": ("top", "os.chdir('/')"),
    "folder_late": ("body", "os.chdir('/')"),
    "environment": ("top", "os.environ['ELSEWHERE'] = '1'; os.environ.pop('HOME', None)"),
    "path": ("top", "sys.path.insert(0, '/elsewhere')"),
    "torch_is_gone": ("start", "sys.modules.pop('torch')"),
    "recursion": ("body", "sys.setrecursionlimit(5000)"),
    "excepthook": ("top", "sys.excepthook = threading.excepthook = lambda *_: os.abort()"),
    "signals": ("start", "signal.signal(signal.SIGUSR1, signal.SIG_IGN)"),
    "blocked_signals": ("body", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])"),
    "mask_of_files": ("top", "os.umask(0o777)"),
    "finders": (
        "top",
        "class Finder:\n    def find_spec(*_): sys.exit()\nsys.meta_path.insert(0, Finder())",
    ),
    "hooks_of_paths": ("body", "sys.path_hooks.clear(); sys.path_importer_cache.clear()"),
    "alarm": ("body", "signal.signal(signal.SIGALRM, lambda *_: os.abort())"),
    "atexit": ("top", "atexit.register(os.abort) and None; atexit.unregister(os.abort)"),
    "streams": ("start", "sys.stdout = sys.stderr = sys.stdin = None"),
    "locale": ("top", "locale.setlocale(locale.LC_ALL, 'C')"),
    "garbage": ("body", "gc.disable()"),
    "trace": ("body", "sys.settrace(lambda *_: None)"),
    "files": ("top", "import io, pathlib; io.open = pathlib.Path.open = os.path.join = None"),
    "tracebacks": (
        "top",
        "import linecache, traceback; linecache.getline = traceback.walk_tb = 0",
    ),
    # not ``len``, with which execnet's thread counts the bytes of what a worker is sent meanwhile
    "print": ("top", "builtins.print = builtins.sorted = lambda *_: 0"),
}
assert len(POLLUTING) >= 25

ONE_BY_ONE = """
import sys
import conftest
from pytest_transformer_validate import validate

def noted(name):
    records = {record.check: record for record in validate(f"{name}.py")}
    assert records["number"].status == "passed", records["number"].message
    return records["number"].numbers["value"]

expected = noted("witness")
for name in sys.argv[1:]:
    validate(f"p_{name}.py")
    assert noted("witness") == expected, name
"""


@pytest.fixture
def folder(pytester: pytest.Pytester) -> Path:
    """Every polluting model, and as many witnesses."""
    pytester.makeconftest(CHECKS)
    pytester.makeini("[pytest]\nstrict = true\n")
    sound = MODEL.format(top="", start="", body="")
    for name, (place, code) in POLLUTING.items():  # names of no module
        text = MODEL.format(**({"top": "", "start": "", "body": ""} | {place: code}))
        (pytester.path / f"p_{name}.py").write_text(text)
        (pytester.path / f"after_{name}.py").write_text(sound)
    (pytester.path / "witness.py").write_text(sound)
    return pytester.path


def test_the_codes_do_what_they_say(folder: Path) -> None:
    """Outside of any room they change what a witness sees: it can tell."""
    script = (
        "import conftest, sys\n"
        "print(conftest.seen())\n"
        "for name in sys.argv[1:]:\n"
        "    with open(f'p_{name}.py') as file: exec(file.read(), {})\n"
        "print(conftest.seen())\n"
    )
    names = ["default_dtype", "gradients", "precision", "warnings", "environment", "path"]
    done = python(folder, script, *names)
    before, after = done.stdout.splitlines()
    assert before != after
    assert "/elsewhere" in after
    assert "torch.float64" in after


def test_in_this_process_one_by_one(folder: Path) -> None:
    done = python(folder, ONE_BY_ONE, *POLLUTING)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["in_process", "in_a_worker"])
def test_in_one_run(folder: Path, pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    models = ["--tb-model=witness.py"]
    for name in POLLUTING:
        models += [f"--tb-model=p_{name}.py", f"--tb-model=after_{name}.py"]
    result = pytester.runpytest_subprocess(*models, "--tb-json=out.json", *workers, timeout=200)
    assert result.ret in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    data = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    found = {r["model"]: r for r in data["records"] if r["check"] == "number"}
    expected = found["witness.py"]["numbers"]["value"]
    wrong = [
        (name, found[f"after_{name}.py"]["message"])
        for name in POLLUTING
        if found[f"after_{name}.py"]["numbers"].get("value") != expected
    ]
    assert wrong == []


def python(folder: Path, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *args]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
