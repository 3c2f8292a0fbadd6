"""Models that want a green run, an end of the run, or no end at all: every one of them fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_transformer_validate.containment import deadline

if TYPE_CHECKING:
    from collections.abc import Mapping

# Two checks that a sound model passes, and that judge as the bundled ones do.
CHECKS = """
import torch
from pytest_transformer_validate.checks import registry
from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.measurement import Measurement

registry._registry.clear()
registry._BUNDLED = ()

@check(tier=1)
def load(probe):
    "The model loads."
    return Measurement(value=float(probe.context()["parameters"]))

@check(tier=1)
def same_twice(probe):
    "Two answers are the same, and finite."
    def run(probe):
        with probe.running("same") as subject:
            batch = probe.batch(2, 4, "same")
            return [subject(batch).logits for _ in range(2)]
    one, two = probe.once(run)
    if not torch.equal(one, two) or not torch.isfinite(one).all():
        raise CheckFailed("two answers must be the same", Measurement(value=1.0))
    return Measurement(value=0.0)
"""

# ``{top}`` runs at import, ``{start}`` when the model is made, ``{body}`` before it answers.
MODEL = """
import atexit, contextlib, ctypes, os, signal, sys, threading, time
import pytest, torch
{top}

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.head = torch.nn.Linear(8, 32)
        {start}

    def forward(self, input_ids):
        {body}
        return self.head(self.embed(input_ids))
"""

NAN = "return self.head(self.embed(input_ids)) * float('nan')"
FOREVER = "while True: time.sleep(0.01)"

# By name: where the code goes, the code, and words of the text that the failure has to have.
HOSTILE: Mapping[str, tuple[str, str, str]] = {
    "exit_at_import": ("top", "os._exit(0)", "os._exit(0)"),
    "exit_seven_in_init": ("start", "os._exit(7)", "os._exit(7)"),
    "exit_in_forward": ("body", "os._exit(0)", "os._exit(0)"),
    "exit_swallowed": (
        "body",
        "with contextlib.suppress(BaseException): os._exit(0)",
        "os._exit(0)",
    ),
    "exit_by_posix": ("body", "import posix; posix._exit(0)", "os._exit(0)"),
    "exit_in_thread": (
        "body",
        "thread = threading.Thread(target=os._exit, args=(0,)); thread.start(); thread.join()",
        "os._exit(0)",
    ),
    "replaces_process": ("body", "os.execv('/bin/true', ['true'])", "os.execv('/bin/true')"),
    "terminates": ("body", "os.kill(os.getpid(), signal.SIGTERM); time.sleep(1)", "kill("),
    "interrupts_all": ("body", "os.killpg(0, signal.SIGINT); time.sleep(1)", "killpg(0"),
    "interrupts_main": (
        "start",
        "import _thread; threading.Thread(target=_thread.interrupt_main).start(); time.sleep(1)",
        "interrupt_main()",
    ),
    "raises_a_signal": ("body", "signal.raise_signal(signal.SIGINT)", "raise_signal("),
    "sys_exit_at_import": ("top", "sys.exit(0)", "SystemExit"),
    "sys_exit": ("body", "sys.exit(0)", "SystemExit"),
    "pytest_exit_at_import": ("top", "pytest.exit('done', returncode=0)", "Exit"),
    "pytest_exit": ("body", "pytest.exit('done', returncode=0)", "Exit"),
    "interrupt_at_import": ("top", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    "interrupt": ("body", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    "skips": ("body", "pytest.skip('not today')", "Skipped"),
    "expects_failure": ("body", "pytest.xfail('known')", "XFailed"),
    "skips_by_unittest": ("body", "import unittest; raise unittest.SkipTest('x')", "SkipTest"),
    "not_applicable": (
        "body",
        "from pytest_transformer_validate.errors import NotApplicable; raise NotApplicable('x')",
        "NotApplicable",
    ),
    "not_applicable_at_import": (
        "top",
        "from pytest_transformer_validate.errors import NotApplicable; raise NotApplicable('x')",
        "NotApplicable",
    ),
    "loops": ("body", FOREVER, "Timeout"),
    "loops_at_import": ("top", FOREVER, "Timeout"),
    "loops_and_catches": (
        "body",
        "\n        for _ in range(200):"
        "\n            with contextlib.suppress(BaseException): time.sleep(0.02)",
        "Timeout",
    ),
    "sleeps": ("body", "time.sleep(1000)", "Timeout"),
    "deadlock": ("body", "lock = threading.Lock(); lock.acquire(); lock.acquire()", "Timeout"),
    "asks": ("body", "input('name? ')", "stdin"),
    "recursion": ("body", "return self.forward(input_ids)", "RecursionError"),
    "memory": ("body", "torch.empty(1 << 50)", "allocate"),
    "fork_bomb": (
        "body",
        "[os.fork() or time.sleep(600) for _ in range(100)]",
        "may fork 16 times",
    ),
    "unprintable": (
        "top",
        "class Bad(Exception):\n"
        "    def __str__(self): raise SystemExit(0)\n"
        "    __repr__ = __str__\n"
        "raise Bad",
        "unprintable",
    ),
    "long_text": ("top", "raise ValueError('x' * 50_000_000)", "ValueError: xxx"),
    "judge_of_equality": ("top", "torch.equal = lambda *_: True", "replaced torch.equal"),
    "judge_in_forward": (
        "body",
        "torch.Tensor.all = lambda *_: torch.tensor(True); " + NAN,
        "replaced torch.Tensor.all",
    ),
    "judge_of_kinds": ("top", "import builtins; del builtins.isinstance", "builtins.isinstance"),
    "judge_in_a_tensor": (
        "body",
        "\n        class Sound(torch.Tensor):"
        "\n            def all(self): return torch.ones(())"
        "\n            def isfinite(self): return self"
        "\n            @classmethod"
        "\n            def __torch_function__(cls, function, types, args=(), kwargs=None):"
        "\n                if function in (torch.equal, torch.isfinite): return args[0]"
        "\n                with torch._C.DisableTorchFunctionSubclass():"
        "\n                    return function(*args, **(kwargs or {}))"
        "\n        return (self.head(self.embed(input_ids)) * float('nan')).as_subclass(Sound)",
        "two answers",
    ),
    "judge_of_failures": (
        "top",
        "from pytest_transformer_validate import errors\n"
        "errors.CheckFailed.__init__ = lambda self, *_, **__: sys.exit(0)",
        "replaced pytest_transformer_validate.errors.CheckFailed.__init__",
    ),
    "judge_of_judges": (
        "top",
        "from pytest_transformer_validate.runner import ModelRun\n"
        "ModelRun._call = lambda *_: None",
        "replaced pytest_transformer_validate.runner.ModelRun._call",
    ),
    "judge_by_code": (
        "top",
        "from pytest_transformer_validate.runner import ModelRun\n"
        "ModelRun._call.__code__ = (lambda self, check, case, probe: None).__code__",
        "_call",
    ),
    "judge_of_reports": (
        "top",
        "from _pytest.reports import TestReport\n"
        "TestReport.from_item_and_call = classmethod(lambda *_: None)",
        "replaced _pytest.reports.TestReport.from_item_and_call",
    ),
    "torch_is_gone": ("top", "del sys.modules['torch']; import torch.nn.none", "torch.nn.none"),
    "not_a_number": ("body", NAN, "two answers"),
}
assert len(HOSTILE) >= 30

# They are sound, and leave something behind: the run has to end, green, and soon.
LITTERING = {
    "exit_at_the_end": ("top", "atexit.register(os._exit, 0)"),
    "endless_thread": ("start", "threading.Thread(target=time.sleep, args=(600,)).start()"),
    "exit_of_a_thread": (
        "start",
        "threading.Thread(target=lambda: (time.sleep(3), os._exit(0))).start()",
    ),
    "orphan": ("start", "os.fork() or time.sleep(600)"),
    "child_goes_on": ("start", "os.fork()"),
    "prints": ("body", "print('x' * 2_000_000)"),
    "closes_streams": (
        "body",
        "sys.stdout.close(); sys.stderr.buffer.close(); os.closerange(0, 3)",
    ),
    "loses_streams": ("top", "with sys.stdout: sys.__stderr__.detach(); os.dup2(0, 1)"),
}

# They take what there is, without touching it; the limits of a worker stop them.
GREEDY = {
    "hoards": ("body", "kept = [torch.empty(1 << 28) for _ in range(1000)]", "RLIMIT_DATA"),
    "hoards_in_numpy": (
        "start",
        "import numpy; self.x = [numpy.empty(1 << 27) for _ in range(1000)]",
        "ulimit -d",
    ),
    "writes": ("top", "open('large', 'wb').truncate(10 << 30)", "RLIMIT_FSIZE; ulimit -f"),
}


def write(project: pytest.Pytester, name: str, place: str, code: str) -> str:
    text = MODEL.format(**({"top": "", "start": "", "body": ""} | {place: code}))
    (project.path / f"{name}.py").write_text(text)
    return f"--tb-model={name}.py"


@pytest.fixture
def hostile(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CHECKS)
    pytester.makeini("[pytest]\nstrict = true\n")
    return pytester


def judged(project: pytest.Pytester) -> dict[str, list[dict[str, Any]]]:
    data = json.loads((project.path / "out.json").read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {}
    for record in data["records"]:
        found.setdefault(record["model"].removesuffix(".py"), []).append(record)
    return found


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["in_process", "in_workers"])
def test_no_hostile_model_is_green(hostile: pytest.Pytester, workers: tuple[str, ...]) -> None:
    models = [write(hostile, name, *how[:2]) for name, how in HOSTILE.items()]
    models.append(write(hostile, "sound", "top", ""))
    args = ("--tb-timeout=3", "--tb-json=out.json", *workers)
    result = hostile.runpytest_subprocess(*models, *args, timeout=300)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    found = judged(hostile)
    assert len(found) == len(models)
    assert [record["status"] for record in found.pop("sound")] == ["passed", "passed"]
    for name, records in found.items():
        assert len(records) == 2, name
        messages = [record["message"] for record in records]
        statuses = {record["status"] for record in records}
        assert statuses & {"failed", "broken"}, (name, records)
        assert "skipped" not in statuses, (name, records)
        assert any(HOSTILE[name][2] in message for message in messages), (name, messages)
        assert max(map(len, messages)) < 40_000, name


def test_a_worker_has_limits_and_the_next_model_all_there_is(hostile: pytest.Pytester) -> None:
    models = [write(hostile, name, *how[:2]) for name, how in GREEDY.items()]
    models.append(write(hostile, "sound", "top", ""))
    hostile.runpytest_subprocess(*models, "-n1", "--tb-json=out.json", timeout=120)
    found = judged(hostile)
    assert [record["status"] for record in found.pop("sound")] == ["passed", "passed"]
    for name, (*_, words) in GREEDY.items():
        messages = [r["message"] for r in found[name] if r["status"] == "broken"]
        assert len(messages) == 1, found[name]
        assert words in messages[0]


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["in_process", "in_workers"])
def test_what_is_left_behind_ends_with_the_run(
    hostile: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    models = [write(hostile, name, *how) for name, how in LITTERING.items()]
    models.append(write(hostile, "failing", "body", NAN))
    result = hostile.runpytest_subprocess(*models, *workers, timeout=120)
    result.assert_outcomes(passed=2 * len(LITTERING) + 1, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.duration < 60


def test_a_crash_in_this_process_names_the_check(hostile: pytest.Pytester) -> None:
    model = write(hostile, "crash", "body", "ctypes.string_at(0)")
    result = hostile.runpytest_subprocess(model, "-k", "same_twice")
    assert result.ret != pytest.ExitCode.OK
    result.stderr.fnmatch_lines(
        ["Fatal Python error: Segmentation fault", '*"crash.py::tier1::same_twice"*']
    )


def test_what_never_stops_is_ended_in_this_process(hostile: pytest.Pytester) -> None:
    conftest = hostile.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\nimport {deadline.__name__} as d\nd.GRACE = 1\n")
    model = write(hostile, "stuck", "body", "sum(range(10**13))")
    result = hostile.runpytest_subprocess(model, "--tb-timeout=1", timeout=120)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stderr.fnmatch_lines(["Timeout*", '*"stuck.py::tier1::load"*'])


# As a time limit that strikes between pytest and a fixture.
STRIKES = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    if fixturedef.argname == "tb_model" and "first" in request.node.nodeid:
        raise SystemExit(0)
"""


def test_a_fixture_that_was_caught_half_set_up_is_set_up_again(hostile: pytest.Pytester) -> None:
    conftest = hostile.path / "conftest.py"
    conftest.write_text(conftest.read_text() + STRIKES)
    models = [write(hostile, name, "top", "") for name in ("first", "second")]
    result = hostile.runpytest_subprocess(*models, timeout=120)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.no_fnmatch_line("*AssertionError*")


# Two more checks, to run after ``same_twice``.
MORE = """
@check(tier=1)
def then_another(probe):
    "It loads."
    return Measurement(value=0.0)

@check(tier=1)
def then_layers(probe):
    "Layers are torch's; the value tells."
    return Measurement(value=float("lambda" in torch.nn.Linear.extra_repr.__qualname__))
"""
LATE = "if 'same_twice' in os.environ['PYTEST_CURRENT_TEST']: {}"


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["in_process", "in_a_worker"])
def test_what_is_replaced_in_a_later_check(
    hostile: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    conftest = hostile.path / "conftest.py"
    conftest.write_text(conftest.read_text() + MORE)
    codes = {
        "torchs": "torch.equal = lambda *_: True",
        "ours": "from pytest_transformer_validate import runner; runner.ModelRun._said = str",
        "layer": "torch.nn.Linear.extra_repr = lambda self: ''",
    }
    models = [write(hostile, name, "body", LATE.format(code)) for name, code in codes.items()]
    models.append(write(hostile, "sound", "top", ""))
    hostile.runpytest_subprocess(*models, "--tb-json=out.json", *workers, timeout=120)
    found = judged(hostile)
    status = {name: [record["status"] for record in records] for name, records in found.items()}
    passed = ["passed"] * 4
    assert status.pop("torchs") == ["passed", "broken", "passed", "passed"]  # at once
    assert status.pop("ours") == ["passed", "passed", "passed", "broken"]  # with the last
    assert "replaced pytest_transformer_validate.runner" in found["ours"][-1]["message"]
    assert status == {"layer": passed, "sound": passed}
    values = [found[name][-1]["numbers"]["value"] for name in ("layer", "sound")]
    assert values == [1.0, 0.0]  # for the one model alone
