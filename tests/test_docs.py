"""The docs hold everything there is, and what they say to type works. That they build without a
warning, and that every link inside leads somewhere, is the build's own test (``.ci/run``)."""

from __future__ import annotations

import contextlib
import html
import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_transformer_validate
from pytest_transformer_validate import test_functions, training, validate
from pytest_transformer_validate.checks.registry import Check, all_checks
from pytest_transformer_validate.errors import MissingDependency
from pytest_transformer_validate.options import INI_ONLY, OPTIONS
from pytest_transformer_validate.report.record import STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
START = (DOCS / "start.md").read_text(encoding="utf-8")
OVER = (DOCS / "moving-over.md").read_text(encoding="utf-8")
HOMES, _, CHANGED = OVER.partition("## What changed in the checks")
CHECKS = [check for check in all_checks() if check.function.__module__.startswith("pytest_t")]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", START, re.DOTALL)


@pytest.fixture(scope="module")
def generated() -> Iterator[Any]:
    """The module that fills in the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("generated")
        for name in ("generated", "reasons"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pages(generated: Any) -> dict[str, str]:
    """Every page as Sphinx reads it."""
    return {name: generated.fill((DOCS / name).read_text(encoding="utf-8")) for name in PAGES}


def test_every_page_is_in_the_contents(pages: dict[str, str]) -> None:
    listed = re.findall(r"^[\w-]+$", pages["index.md"], re.MULTILINE)
    assert sorted(f"{name}.md" for name in listed) == [
        name for name in PAGES if name != "index.md"
    ]


def test_nothing_is_left_to_fill_in(pages: dict[str, str]) -> None:
    assert [name for name, text in pages.items() if "<!-- generated" in text] == []


def test_every_check_has_a_section(pages: dict[str, str]) -> None:
    for check in CHECKS:
        page = f"checks-tier{check.tier}.md"
        section = pages[page].partition(f"\n## {check.name}\n")[2].partition("\n## ")[0]
        assert "Tasks: " in section, check.name
        assert all(f"`{name} = " in section or f", `{name}" in section for name in check.limits)
        assert f"[{check.name}]({page}#{check.name})" in pages["checks.md"]


def test_every_family_of_mistakes_stands_with_its_check(generated: Any) -> None:
    mutants = generated.MUTANTS.values()
    catalogue = "".join(generated.checks(tier) for tier in "123")
    assert {m.check for m in mutants} <= {check.name for check in CHECKS}
    assert all(f"| {generated.FAMILIES[m.family]} |" in catalogue for m in mutants)
    assert all(m.undetectable in catalogue for m in mutants)


def test_every_deviation_stands_with_its_check(generated: Any) -> None:
    catalogue = "".join(generated.checks(tier) for tier in "123")
    missing = [name for name in generated.DEVIATIONS if f"`{name}`" not in catalogue]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dropout", "no dropout is declared"),  # a skip in the check's own module
        ("kv_cache", "forward takes … and returns no cache"),  # one of a pass
        ("gradient_flow", "its expert was given no token"),  # a reason in the record
        ("position_sensitivity", "no module of the encoder could be asked"),  # a note
    ],
)
def test_what_a_check_spares_is_said(generated: Any, name: str, words: str) -> None:
    section = generated.checks("1").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert f"\n- {words}\n" in section


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_limits_and_cases_are_explained(check: Check) -> None:
    text = check.function.__doc__ or ""
    named = set(re.findall(r"\w+", " ".join(re.findall(r"``(.+?)``", text))))
    assert {*check.limits, *check.cases} <= named


def test_every_option_is_in_the_reference(pages: dict[str, str]) -> None:
    text = pages["options.md"]
    for option in OPTIONS:
        assert re.search(rf"^\| `{option.flag}( \w+)?` \| `{option.name}` \|", text, re.MULTILINE)
    assert all(f"`{key}`" in text for key in (*INI_ONLY, "tb_api_url"))


def test_options_that_pages_name_exist(pages: dict[str, str]) -> None:
    flags = {option.flag for option in OPTIONS}
    for name, text in pages.items():
        assert set(re.findall(r"--tb-[a-z]+(?:-[a-z]+)*", text)) <= flags, name


def test_every_fixture_and_hook_is_there(pages: dict[str, str]) -> None:
    from pytest_transformer_validate import fixtures, hookspec

    names = [name for name in vars(fixtures) if name.startswith("tb_")]
    assert len(names) == 8
    assert all(re.search(rf"^\| `{name}` \| \w", pages["fixtures.md"], re.M) for name in names)
    hooks = [name for name in vars(hookspec) if name.startswith("pytest_tb_")]
    assert all(f"hookspec.{name}" in pages["fixtures.md"] for name in hooks)


@pytest.mark.parametrize(
    "package", [pytest_transformer_validate, training, test_functions], ids=lambda p: p.__name__
)
def test_every_public_name_is_in_the_reference(pages: dict[str, str], package: Any) -> None:
    text = pages["api.md"]
    described = re.findall(
        rf"^\.\. [\w:]+:: {package.__name__}\.(\w+)(?:\(|$)", text, re.MULTILINE
    )
    assert described == package.__all__


def test_every_status_is_explained() -> None:
    text = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(STATUSES)
    codes = {str(int(code)) for code in pytest.ExitCode}
    assert codes <= set(re.findall(r"^\| (\d) \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("home", "names"),
    re.findall(r"^\| `[\w.]+` \| `(\w+)` \| (.+) \|$", HOMES, re.MULTILINE),
)
def test_names_of_the_notebooks_have_their_home(home: str, names: str) -> None:
    module = importlib.import_module(f"pytest_transformer_validate.{home}")
    for name in re.findall(r"`(\w+)`", names):
        with contextlib.suppress(MissingDependency):  # Lightning, which its one name needs
            assert getattr(module, name) is not None
        assert home == "test_functions" or name in module.__all__


def test_functions_of_the_notebooks_are_all_named() -> None:
    assert all(f"`{name}`" in OVER for name in test_functions.__all__)


def test_checks_that_took_over_exist() -> None:
    rows = re.findall(r"^\| `test_\w+` \| (.+?) \|", CHANGED, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert named
    assert named <= {check.name for check in CHECKS}


def test_what_the_start_page_says_to_type_works(pytester: pytest.Pytester, warm: None) -> None:
    [model] = [text for kind, text in BLOCKS if kind == "python"]
    install, *commands = [text.split() for kind, text in BLOCKS if kind == "console"]
    good, bad = [text.splitlines() for kind, text in BLOCKS if kind == "text"]
    assert install[:4] == ["python", "-m", "pip", "install"]
    assert [command[0] for command in commands] == ["pytest"] * 3
    sound = pytester.makepyfile(model=model)
    result = pytester.runpytest_inprocess(*commands[0][1:])
    assert result.ret == 0
    assert _digits(good[0]) in map(_digits, result.outlines)
    counted = re.search(r"(\d+) passed  (\d+) skipped", good[1])
    assert counted
    result.assert_outcomes(passed=int(counted[1]), skipped=int(counted[2]), deselected=None)
    sound.write_text(model.replace("is_causal=True", "is_causal=False"), encoding="utf-8")
    result = pytester.runpytest_inprocess(*commands[1][1:])
    assert result.ret == 1
    lines = [_digits(line) for line in result.outlines]
    assert [line for line in bad if _digits(line) not in lines] == []
    sound.write_text(model, encoding="utf-8")
    result = pytester.runpytest_inprocess(*commands[2][1:])
    assert result.ret == 0
    assert (pytester.path / "report.html").stat().st_size > 0
    assert (pytester.path / "records.json").stat().st_size > 0


def test_the_picture_of_the_readme_shows_what_happens(
    pytester: pytest.Pytester, warm: None
) -> None:
    picture = (DOCS / "caught.svg").read_text(encoding="utf-8")
    shown = re.findall(r"<text [^>]*>(.+?)</text>", html.unescape(picture))
    model = (ROOT / "examples/gpt/model.py").read_text(encoding="utf-8")
    pytester.makepyfile(model=model.replace("is_causal=visible is None", "is_causal=False"))
    for file in (ROOT / "examples/gpt").glob("*.json"):
        shutil.copy(file, pytester.path)
    result = pytester.runpytest_inprocess("--tb-model=model.py", "-k", "causality or mask_effect")
    result.assert_outcomes(failed=2, deselected=None)
    failures = result.stdout.str().partition("= FAILURES =")[2].partition("= transformer val")[0]
    said = [_digits(line.strip()) for line in failures.splitlines() if line.startswith("  ")]
    assert len(said) == 10
    assert set(said) <= set(map(_digits, shown)), "draw the lines of docs/caught.svg anew"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what a run imports late: pytester forgets modules, and torch bears it only once."""
    for name in ("session", "start", "fixtures"):
        importlib.import_module(f"pytest_transformer_validate.{name}")
    path = tmp_path_factory.mktemp("warm") / "model.py"
    path.write_text(next(text for kind, text in BLOCKS if kind == "python"), encoding="utf-8")
    str(validate(path))


def _digits(line: str) -> str:
    """The line without the measured numbers, which differ between machines in their digits."""
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", line)
