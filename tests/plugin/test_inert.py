"""Unused, the plugin costs nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SPY = """
import sys
def pytest_unconfigure():
    tops = {name.partition(".")[0] for name in sys.modules}
    print("LOADED", *sorted(tops - set(sys.stdlib_module_names)))
    print("OURS", *sorted(n for n in sys.modules if n.startswith("pytest_transformer_validate.")))
"""
LIGHT = {"pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest_timeout"}
OURS = {"errors", "fixtures", "hookspec", "options", "plugin", "redaction", "task"}
OURS |= {"report", "report.record", "report.text", "report.trace"}


@pytest.fixture
def plain(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project without a model, in a pytest that loads no other plugin."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(spy=SPY, test_own="def test_one(): pass")
    pytester.makeini("[pytest]\nfilterwarnings = error\nstrict = true\n")
    return pytester


def run(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    plugins = ("spy", "pytest_timeout", "pytest_transformer_validate.plugin")
    words = [word for plugin in plugins for word in ("-p", plugin)]
    return project.run(sys.executable, "-m", "pytest", *words, *args)


def test_only_pytest_and_the_standard_library_are_imported(plain: pytest.Pytester) -> None:
    result = run(plain)
    assert result.ret == pytest.ExitCode.OK
    loaded = next(line for line in result.outlines if line.startswith("LOADED")).split()[1:]
    ours = next(line for line in result.outlines if line.startswith("OURS")).split()[1:]
    known = LIGHT | {"pytest_transformer_validate", "spy", "test_own", "py", "__mp_main__"}
    assert {name for name in loaded if not name.startswith(("_", "sitecustom"))} <= known
    assert {name.partition(".")[2] for name in ours} <= OURS


def test_no_header_no_files_no_summary(plain: pytest.Pytester) -> None:
    before = set(plain.path.iterdir())
    result = run(plain, "-p", "no:cacheprovider")
    assert "transformer-validate 0" not in result.stdout.str()
    assert "transformer validation" not in result.stdout.str()
    new = {path.name for path in set(plain.path.iterdir()) - before}
    assert new <= {"__pycache__", "stdout", "stderr"}


def test_no_hook_of_the_run_is_registered(plain: pytest.Pytester) -> None:
    plain.makeconftest(
        """
        def pytest_unconfigure(config):
            names = [name for name, _ in config.pluginmanager.list_name_plugin()]
            assert "transformer_validate_models" not in names
        """
    )
    assert run(plain).ret == pytest.ExitCode.OK


def test_the_marks_are_registered(plain: pytest.Pytester) -> None:
    result = run(plain, "-m", "tier1 or tier2 or tier3", "--strict-markers")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["a tier was asked for and no model: name one with --tb-model"])
    run(plain, "-m", "not tier3").stdout.no_fnmatch_line("*--tb-model*")
    run(plain, "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.tier1: *", "@pytest.mark.tier3: *"]
    )


# Gradients by captum, and what takes torch._dynamo: checkpoints, and programs.
NEEDY = "not attribution and not checkpointing_equivalence and not export_equivalence"


def test_a_whole_run_imports_nothing_that_it_does_not_need(pytester: pytest.Pytester) -> None:
    example = Path(__file__).parents[2] / "examples" / "gpt"
    code = (
        "import sys, pytest\n"
        f"chosen = ['-m', 'tier1 or tier2', '-k', {NEEDY!r}]\n"
        f"code = pytest.main(['-q', '--tb-model={example / 'model.py'}', *chosen])\n"
        "heavy = ('torch._dynamo', 'pandas', 'scipy', 'captum', 'matplotlib', 'transformers')\n"
        "print('imported:', [name for name in heavy if name in sys.modules])\n"
        "sys.exit(code)\n"
    )
    done = pytester.runpython_c(code)
    assert done.ret == 0
    done.stdout.fnmatch_lines(["imported: []"])
