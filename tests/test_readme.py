"""What the README says to type is what is run, and works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```console\n(.+)\n```", README)
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
INSTALL = "python -m pip install -r requirements.txt -e . && "


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """The first command without its installation; the report goes to a folder of its own."""
    report = tmp_path_factory.mktemp("readme") / "report.html"
    command = COMMANDS[0].removeprefix(INSTALL).replace("report.html", str(report))
    words = [sys.executable, *shlex.split(command)[1:], "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done, report


def test_two_commands_that_install_what_they_need():
    assert len(COMMANDS) == 2
    assert all(command.startswith(INSTALL) for command in COMMANDS)


def test_the_second_is_what_ci_runs():
    assert COMMANDS[1] in [
        line.strip() for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    ]


def test_the_first_passes(main_job):
    done, _ = main_job
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert re.search(r"\b\d+ passed", summary), summary
    assert "failed" not in summary
    assert "examples/gpt/model.py: task causal_lm" in done.stdout


def test_the_first_leaves_a_report(main_job):
    _, report = main_job
    assert "tier1::causality" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    folder = (ROOT / document).parent
    assert [target for target in targets if not (folder / target).exists()] == []


def test_architecture_names_every_room():
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    package = ROOT / "pytest_transformer_validate"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == named


def test_options_of_the_readme_exist():
    from pytest_transformer_validate.options import OPTIONS

    flags = {option.flag for option in OPTIONS}
    assert set(re.findall(r"--tb-[a-z-]+", README)) <= flags


def test_the_table_of_checks_is_that_of_the_registry():
    from pytest_transformer_validate.checks.registry import all_checks

    table = README.partition("## The checks")[2].partition("\n\n[")[0]
    tiers = re.split(r"^\| \*\*Tier \d.*$", table, flags=re.MULTILINE)[1:]
    bundled = [c for c in all_checks() if c.function.__module__.startswith("pytest_t")]
    for tier, rows in enumerate(tiers, 1):
        named = sorted(re.findall(r"`(\w+)`", rows))
        assert named == sorted(check.name for check in bundled if check.tier == tier)
