"""The action and the workflows: what they may do, and their steps as plain shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.plugin.conftest import MODEL, PASSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What a runner without network needs to install a checkout into a folder of its own.
OFFLINE = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell steps run on Linux")


def loaded(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = loaded(path).get("jobs", {})
    return found


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for step in loaded(ACTION)["runs"]["steps"]:
        yield ACTION.name, step
    for path in WORKFLOWS:
        for job in jobs(path).values():
            yield from ((path.name, step) for step in job["steps"])


def test_what_is_used_is_pinned_by_hash() -> None:
    used = [(name, step["uses"]) for name, step in steps() if "uses" in step]
    assert len(used) > 5
    for name, action in used:
        assert action == "./" or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), (name, action)


def test_one_action_has_one_hash() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in [ACTION, *WORKFLOWS])
    pins = dict.fromkeys(re.findall(r"uses: ([\w/-]+)@(\w+ # v[\d.]+)", text))
    assert len(pins) == len({action for action, _ in pins})
    assert text.count("uses: actions/") == len(
        re.findall(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+\n", text)
    )


def test_no_expression_is_pasted_into_a_shell() -> None:
    for name, step in steps():
        assert "${{" not in step.get("run", ""), (name, step)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_read_and_nothing_else(path: Path) -> None:
    assert loaded(path)["permissions"] == {}
    assert "pull_request_target" not in loaded(path)["on"]
    for job in jobs(path).values():
        assert job["permissions"] == {"contents": "read"}
        assert int(job["timeout-minutes"]) <= 60
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] == "false"


def test_every_input_is_used_and_described() -> None:
    action = loaded(ACTION)
    used = set(re.findall(r"inputs\.(\w+)", ACTION.read_text(encoding="utf-8")))
    assert used == set(action["inputs"])
    for given in action["inputs"].values():
        assert given["description"]
        assert ("default" in given) != (given.get("required") == "true")


def shell(
    script: str, folder: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """A step as the runner runs it."""
    python = str(Path(sys.executable).parent)
    environ = {**os.environ, **environ, "PATH": os.pathsep.join([python, os.environ["PATH"]])}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        command,
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


class Runner:
    """Runs the shell steps of the action in a folder, with inputs."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder = folder
        self.environ = {"PYTHONPATH": str(site), "GITHUB_ACTIONS": "true"}
        self.environ |= {"GITHUB_WORKSPACE": str(folder)}
        self.environ |= {"GITHUB_STEP_SUMMARY": str(folder / "summary.md")}

    def run(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        action = loaded(ACTION)
        given = {key: each.get("default", "") for key, each in action["inputs"].items()} | inputs
        (step,) = (step for step in action["runs"]["steps"] if step["name"] == name)
        known = {f"inputs.{key}": value for key, value in given.items()}
        known["github.action_path"] = str(ROOT)
        environ = {key: _evaluated(text, known) for key, text in step["env"].items()}
        return shell(step["run"], self.folder, {**self.environ, **environ})


def _evaluated(text: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: known[found[1]], text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the action has installed the package."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("action")
    runner = Runner(folder, folder / "site")
    runner.environ |= {**OFFLINE, "PIP_TARGET": str(folder / "site")}
    done = runner.run("Install", extras="report,xdist")
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def runner(tmp_path: Path, site: Path) -> Runner:
    (tmp_path / "a b.py").write_text(MODEL)
    (tmp_path / "other.py").write_text(MODEL)
    (tmp_path / "conftest.py").write_text(PASSING)
    return Runner(tmp_path, site)


def test_what_is_installed_is_complete(site: Path) -> None:
    assert (site / "pytest_transformer_validate" / "report" / "schema.json").is_file()
    assert (site / "pytest_transformer_validate" / "py.typed").is_file()


def test_the_action_validates_and_reports(runner: Runner) -> None:
    done = runner.run("Validate", models="a b.py\nother.py\n", tier="1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = runner.folder / "transformer-validation"
    names = {path.name for path in report.iterdir()}
    assert names >= {"records.json", "junit.xml"}
    data = json.loads((report / "records.json").read_text(encoding="utf-8"))
    assert {record["tier"] for record in data["records"]} == {1}
    assert len(data["models"]) == 2
    assert r"| other\.py | 4 passed |" in (runner.folder / "summary.md").read_text()
    again = runner.run(
        "Validate",
        models="other.py",
        tier="1 2",
        arguments="-k\nsound",
        report="more",
    )
    assert again.returncode == 0, again.stdout + again.stderr
    data = json.loads((runner.folder / "more" / "records.json").read_text(encoding="utf-8"))
    assert [record["check"] for record in data["records"]] == ["sound"]


def test_a_failure_fails_the_step(runner: Runner) -> None:
    (runner.folder / "other.py").write_text("raise RuntimeError('no')")
    done = runner.run("Validate", models="other.py")
    assert done.returncode == 1
    assert "\n::error file=other.py,line=1,title=other.py%3A load (tier 1)::" in done.stdout


def test_an_input_is_no_shell(runner: Runner) -> None:
    for inputs in ({"models": "$(touch hacked)`touch hacked`; touch hacked"}, {"tier": "1;x"}):
        done = runner.run("Validate", **{"models": "other.py", **inputs})
        assert done.returncode == 4, done.stdout + done.stderr
        assert not (runner.folder / "hacked").exists()


def test_the_workflow_joins_the_records(runner: Runner) -> None:
    for name, model in (("one", "a b.py"), ("two", "other.py")):
        report = f"records/models-{name}"
        assert runner.run("Validate", models=model, tier="1", report=report).returncode == 0
    (step,) = (
        step
        for step in jobs(ROOT / ".github" / "workflows" / "models.yml")["page"]["steps"]
        if "run" in step
    )
    install, *rest = step["run"].splitlines()
    assert install == "python -m pip install --no-deps ."
    done = shell("\n".join(rest), runner.folder, runner.environ)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 models passed." in (runner.folder / "page.html").read_text(encoding="utf-8")
    assert "# Transformer validation" in (runner.folder / "summary.md").read_text(encoding="utf-8")


def test_the_matrix_names_models_that_are_there() -> None:
    matrix = jobs(ROOT / ".github" / "workflows" / "models.yml")["validate"]["strategy"]["matrix"]
    assert [row["name"] for row in matrix["include"] if not (ROOT / row["model"]).exists()] == []
