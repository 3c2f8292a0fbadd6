"""%pytest and %%pytest in a real kernel: one for all tests, which is part of what is tested."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.interactive.conftest import LOOKING, MODEL

if TYPE_CHECKING:
    from gisthost import Host

    from tests.interactive.conftest import Kernel

TWO = '-k "load or causality"'
QUIET = "-q --color=no"

# What a run may not change, as text.
STATE = """
import logging, os, signal, sys, threading, warnings
def state():
    mine = ("test_", "conftest", "helper", "used")
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGALRM
    return repr((
        sys.path, sys.meta_path, sorted(name for name in sys.modules if name.startswith(mine)),
        warnings.filters, dict(os.environ), os.getcwd(), [signal.getsignal(n) for n in signals],
        sys.stdout, sys.stderr, sys.stdin, sys.excepthook, sys.displayhook, sys.gettrace(),
        logging.root.handlers, logging.root.level, torch.get_rng_state().sum().item(),
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), net.training,
        [thread.name for thread in threading.enumerate()],
    ))
def files():
    # What is open besides the kernel's own: its sockets, its history
    folder, found = "/proc/self/fd", []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if os.path.islink(f"{folder}/{name}"):
            found.append(os.readlink(f"{folder}/{name}"))
    return sorted(n for n in found if ".ipython" not in n and not n.startswith("socket"))
"""
LEFT = """
import os, sys, warnings
os.environ["LEFT"] = "1"
sys.path.append("/left")
warnings.simplefilter("error", ResourceWarning)
from pytest_transformer_validate import Measurement, check
@check(tier=1)
def left_over(probe):
    return Measurement(value=1.0)
"""


@pytest.fixture(scope="module", autouse=True)
def loaded(kernel: Kernel) -> None:
    said = kernel("import xdist\n%load_ext pytest_transformer_validate")
    assert (said.error, said.stdout, said.stderr) == ("", "", "")


def test_the_package_alone_imports_nothing() -> None:
    code = (
        "import sys, pytest_transformer_validate as package\n"
        "package.load_ipython_extension\n"
        "print(sorted({'torch', 'IPython', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_variable_is_a_model(kernel: Kernel) -> None:
    said = kernel(f"%pytest {TWO} --tb-model=net --color=no")
    assert "net: task causal_lm" in said.stdout
    assert re.search(r"== 2 passed, \d+ deselected in ", said.stdout)
    assert "warning" not in said.stdout
    assert said.stderr == ""
    assert "<strong>passed (exit 0): 2 checks</strong>" in said.html


@pytest.mark.parametrize(
    "made", ["Net", "lambda: Net()", "__import__('functools').partial(Net)", "Net().double()"]
)
def test_what_makes_a_model_is_one(kernel: Kernel, made: str) -> None:
    kernel(f"made = {made}")
    said = kernel(f"%pytest {QUIET} -k load --tb-model=made")
    assert "1 passed" in said.stdout, said


def test_the_result_has_it_all(kernel: Kernel) -> None:
    kernel(LOOKING.replace("Net", "Looking"))
    said = kernel(f"r = %pytest {QUIET} {TWO} --tb-model=Looking\nprint(r)")
    assert "%pytest --tb-model=Looking 'Looking::tier1::causality'" in said.stdout
    assert "failed (exit 1): 1 of 2 checks" in said.stdout
    assert kernel.value("(r.passed, bool(r), int(r.exit_code), len(r), len(r.tests))") == (
        False, False, 1, 2, 0,
    )  # fmt: skip
    assert kernel.value("[f.check for f in r.failures]") == ["causality"]
    assert kernel.value("[x.status for x in r.records]") == ["passed", "failed"]
    page = kernel("r").html
    assert "logits of a causal LM must not change" in page.partition("<details>")[0]
    assert "<svg" in page
    assert "<script" not in page
    again = re.search("again: (%pytest .*)", said.stdout)
    assert again is not None
    assert "1 failed in " in kernel(f"{again[1]} {QUIET}").stdout
    assert "1 failed, 67" in kernel(f"%pytest {QUIET} --lf --tb-model=Looking").stdout


def test_again_gives_the_same(kernel: Kernel) -> None:
    run = f"r = %pytest {QUIET} -k 'causality or determinism or gradient or shape' --tb-model=net"
    facts = "[(x.name, x.status, x.numbers) for x in r]"
    kernel(f"{run}\nfirst = {facts}")
    kernel(f"{run}\nagain = {facts}")
    assert kernel.value("len(first) > 5, first == again") == (True, True)


def test_what_is_defined_again_is_seen(kernel: Kernel) -> None:
    for text, passed in ((MODEL, True), (LOOKING, False), (MODEL, True)):
        kernel(text.replace("Net", "Again") + "\nagain = Again()")
        kernel(f"r = %pytest {QUIET} -k causality --tb-model=again --tb-model=Again")
        assert kernel.value("[x.status == 'passed' for x in r]") == [passed, passed]


def test_tests_in_a_cell(kernel: Kernel) -> None:
    kernel("import pytest\n@pytest.fixture\ndef five():\n    return 5")
    kernel("limit = 3\ndef test_of_another_cell(): assert False")
    said = kernel(
        f"%%pytest {QUIET}\n"
        "def test_fixture(five):\n    assert five <= limit\n"
        "class TestGroup:\n    @pytest.mark.parametrize('n', [1, 2])\n"
        "    def test_n(self, n):\n        assert n\n"
    )
    assert "assert 5 <= 3" in said.stdout
    assert "<cell>:2: AssertionError" in said.stdout
    assert "1 failed, 2 passed" in said.stdout
    assert "failed (exit 1): 1 of 3 tests" in said.html
    assert "<summary>cell::test_fixture</summary>" in said.html
    kernel("limit = 5")
    again = kernel(f"%%pytest {QUIET}\ndef test_fixture(five):\n    assert five <= limit\n")
    assert "1 passed" in again.stdout
    assert kernel.value("sorted({'TestGroup', 'test_fixture'} & set(dir()))") == []


def test_a_cell_gets_the_models_of_its_line_and_runs_no_check(kernel: Kernel) -> None:
    said = kernel(
        f"%%pytest {QUIET} --tb-model=net --tb-model=Net\n"
        "def test_logits(tb_subject, tb_batch):\n"
        "    assert tb_subject(tb_batch).logits.shape[-1] == 32\n"
    )
    assert "2 passed" in said.stdout
    assert "2 tests" in said.html


@pytest.mark.parametrize(
    ("cell", "word"),
    [("def test_a(:\n    pass\n", "SyntaxError"), ("1 / 0\n", "ZeroDivisionError")],
)
def test_a_cell_that_does_not_run(kernel: Kernel, cell: str, word: str) -> None:
    said = kernel(f"%%pytest {QUIET}\n{cell}")
    assert word in said.stdout
    assert "<cell>" in said.stdout
    assert "exit 2" in said.html or "exit 1" in said.html


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--tb-model=nett", "no variable of this notebook has that name (did you mean net?)"),
        ("--tb-model=number", "is a variable of this notebook, and no model: its type is int"),
        ("--tb-model=text", "text is a text of this notebook: write --tb-model=$text"),
        ("-n 2 --tb-model=net", "net is a variable of this process, and no worker of pytest-xdist "
         "has it: give -n 0"),
        ("--tb-model=net --tb-model=gist:" + "a" * 20, "net is a variable of this process, and no "
         "worker has it: run the two apart"),
        ("-k 'load", "No closing quotation"),
    ],
)  # fmt: skip
def test_what_cannot_run_says_why(kernel: Kernel, line: str, words: str) -> None:
    kernel("text, number = 'model.py', 7")
    said = kernel(f"%pytest {QUIET} {line}")
    assert words in said.stderr
    assert "exit 4" in said.html or said.stderr.startswith("UsageError: %pytest")


def test_a_cell_stays_in_this_process(kernel: Kernel) -> None:
    said = kernel(f"%%pytest {QUIET} -n 1\ndef test_a(): pass\n")
    assert "the tests of the cell are in this process, and no worker" in said.stderr


def test_files_are_read_again(kernel: Kernel) -> None:
    run = f"r = %pytest {QUIET} -k causality --tb-model=model.py --tb-model=used.nets:Net"
    (kernel.folder / "used").mkdir()
    kernel.write("used/__init__.py", "")
    kernel.write("model.py", "from helper import Net as Base\nclass Model(Base): pass\n")
    kernel.write(
        "test_own.py", "import helper\ndef test_a(): assert hasattr(helper.torch, 'nn')\n"
    )
    for text in (MODEL, LOOKING, MODEL + "\n"):
        passed = text is not LOOKING
        kernel.write("helper.py", text)
        kernel.write("used/nets.py", text)
        kernel(run)
        assert kernel.value("[x.status == 'passed' for x in r]") == [passed, passed]
        kernel("import helper, used.nets; mine = helper.Net, used.nets.Net")
        assert kernel.value("helper.Net is mine[0] and used.nets.Net is mine[1]")
    assert "1 passed" in kernel(f"%pytest {QUIET} test_own.py").stdout
    kernel.write("test_own.py", "def test_a(): assert 'edited' == 'now'\n")
    assert "'edited' == 'now'" in kernel(f"%pytest {QUIET} test_own.py").stdout


def test_nothing_stays(kernel: Kernel) -> None:
    kernel(STATE)
    kernel(f"%pytest {QUIET} {TWO} --tb-model=net")  # what is made once in a process
    kernel("before, opened = state(), files()")
    kernel.write("conftest.py", LEFT)
    said = kernel(f"%pytest {QUIET} -k 'load or causality or left' --tb-model=net")
    kernel(f"%%pytest {QUIET}\nimport os\ndef test_a(tmp_path): os.chdir(tmp_path)\n")
    (kernel.folder / "conftest.py").unlink()
    kernel("after, more = state(), files()")
    assert "3 passed" in said.stdout
    assert kernel.value("after") == kernel.value("before")
    assert kernel.value("more") == kernel.value("opened")
    assert kernel("print('heard')").stdout == "heard\n"
    kernel("from pytest_transformer_validate.checks.registry import all_checks")
    assert kernel.value("[c.name for c in all_checks() if c.name == 'left_over']") == []


def test_a_check_that_is_defined_again_replaces_the_first(kernel: Kernel) -> None:
    for number in (1.0, 2.0):
        said = kernel(
            "from pytest_transformer_validate import Measurement, check\n"
            f"@check(tier=1)\ndef of_cell(probe):\n    return Measurement(value={number})\n"
        )
        assert not said.error
        kernel(f"r = %pytest {QUIET} -k of_cell --tb-model=net")
        assert kernel.value("r[0].numbers['value']") == number


def test_checks_are_listed_and_compared(kernel: Kernel) -> None:
    said = kernel(f"%pytest {QUIET} --co -k load --tb-model=net")
    assert "net::tier1::load" in said.stdout
    assert "nothing was to run (exit 0)" in said.html
    kernel("import copy; old = copy.deepcopy(net)")
    said = kernel(f"%pytest {QUIET} -k reference --tb-model=net --tb-reference=old")
    assert "1 passed" in said.stdout


def test_plugins_may_be_off(kernel: Kernel) -> None:
    run = f"%pytest {QUIET} -k load --tb-model=net"
    assert "1 passed" in kernel(f"{run} -p no:xdist -p no:html").stdout
    off = f"%%pytest {QUIET} -p no:transformer_validate -p no:cacheprovider"
    assert "1 passed" in kernel(f"{off}\ndef test_a():\n    assert net\n").stdout


def test_the_extension_can_be_loaded_again(kernel: Kernel) -> None:
    assert not kernel("%reload_ext pytest_transformer_validate").error
    assert "1 passed" in kernel(f"%pytest {QUIET} -k load --tb-model=net").stdout
    kernel("%unload_ext pytest_transformer_validate")
    assert "not found" in kernel("%pytest").stderr
    assert not kernel("%load_ext pytest_transformer_validate").error


def test_a_gist_runs_in_a_worker(kernel: Kernel, host: Host) -> None:
    """Accepted as on a command line; what was read is what runs."""
    host.serve({"model.py": MODEL, "config.json": '{"vocab_size": 32}'})
    kernel(f"import os\nos.environ['GITHUB_API_URL'] = {host.url!r}")
    kernel("from pytest_transformer_validate.notebook import open_model")
    kernel(f"model = open_model('gist:{host.gist_id}')")
    shown = kernel("model.show()")
    assert "by octocat, revision a1a1" in shown.stdout
    assert "Embedding" in shown.html
    run = "r = %pytest -k load --color=no {model.options(accepted=ok)}"
    refused = kernel(f"ok = False\n{run}")
    assert "nobody has accepted yet" in refused.stderr
    done = kernel(f"ok = True\n{run}")
    assert "fetched code runs in workers" in done.stdout
    assert "1 passed" in done.stdout, done
    assert kernel.value("(r.passed, [x.model for x in r])") == (
        True,
        [f"gist:{host.gist_id}@a1a1a1a1a1a1"],
    )
    assert (kernel.folder / "tb.lock").exists()
    loaded = kernel("type(model.load(accepted=True).model).__name__")
    assert loaded.value == "'Net'"
    assert "nobody has accepted" in kernel("model.load()").error


def test_a_run_can_be_interrupted(kernel: Kernel) -> None:
    waiting = f"%%pytest {QUIET}\ndef test_a():\n    print(flush=True)\n    import time\n"
    kernel("import threading, signal, os")
    kernel("threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()")
    said = kernel(f"{waiting}    time.sleep(60)\n")
    assert "interrupted (exit 2)" in said.html, said
    assert "1 passed" in kernel(f"%%pytest {QUIET}\ndef test_a(): pass\n").stdout
