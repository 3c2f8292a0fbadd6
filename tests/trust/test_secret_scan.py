"""No credential is committed: the hook, with real git, and what it lets pass."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.credentials import HEX, MIXED, NAMED, PEM, PEM_END, TOKENS

ROOT = Path(__file__).parent.parent.parent
HOOK = ROOT / ".github" / "hooks" / "pre-commit"
FORMS = ("{}", "token = '{}'", '{{"token": "{}"}}', "x={},")

pytestmark = pytest.mark.skipif(
    not (shutil.which("git") and shutil.which("bash")), reason="git and bash are not here"
)


class Repository:
    """A repository in a folder of its own, in which the hook is in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "n")
        self.git("config", "user.email", "n@example.org")
        shutil.copy(HOOK, path / ".git" / "hooks" / "pre-commit")

    def git(self, *args: str) -> subprocess.CompletedProcess[str]:
        known = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        known |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        return subprocess.run(
            ["git", *args], cwd=self.path, env=known, capture_output=True, text=True, check=False
        )

    def stage(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        assert self.git("add", "--", name).returncode == 0

    def commit(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.git("commit", "-q", "-m", "words", *args)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_every_family_is_found_in_every_form_and_no_value_is_printed(
    repository: Repository,
) -> None:
    lines = [form.format(token) for token in TOKENS.values() for form in FORMS]
    lines += [text.format(value) for text, value in NAMED]
    repository.stage("src/a file.py", "\n".join(["# first", *lines]) + "\n")
    repository.stage("key.pem", PEM + PEM_END)
    done = repository.commit()
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("  src/a\\ file.py:")]
    assert sorted({int(line.split(":")[1]) for line in told}) == list(range(2, len(lines) + 2))
    assert "  key.pem:1: private key" in done.stderr
    for way_out in ("environment", "--no-verify", "revoke"):
        assert way_out in done.stderr
    for value in (*TOKENS.values(), HEX, MIXED):
        assert value not in done.stderr + done.stdout
    assert repository.git("log").returncode != 0, "nothing was committed"


def test_no_verify_lets_one_commit_pass(repository: Repository) -> None:
    repository.stage("a.py", TOKENS["openai"])
    assert repository.commit().returncode == 1
    assert repository.commit("--no-verify").returncode == 0
    repository.stage("b.py", "x = 1")
    assert repository.commit().returncode == 0, "what was committed before is not read again"
    repository.stage("c.py", TOKENS["openai"])
    assert repository.commit().returncode == 1


def test_it_reads_what_is_staged_not_the_work_tree(repository: Repository) -> None:
    repository.stage("a.py", TOKENS["github, personal"])
    (repository.path / "a.py").write_text("clean")
    assert repository.commit().returncode == 1
    repository.stage("a.py", "clean")
    (repository.path / "a.py").write_text(TOKENS["github, personal"])
    assert repository.commit().returncode == 0


def test_it_works_from_a_folder_below_on_odd_names_and_on_nothing(repository: Repository) -> None:
    assert repository.commit("--allow-empty").returncode == 0
    for name in ("1:stage.py", "-dash.py", "two\nlines.py", "modèle.py", "*.py"):
        repository.stage(name, TOKENS["hugging face"])
    (repository.path / "below").mkdir()
    done = repository.git("-C", "below", "commit", "-q", "-m", "words")
    assert done.returncode == 1
    assert done.stderr.count("Hugging Face token") == 5
    assert repository.git("rm", "-r", "-q", "--cached", "--", ".").returncode == 0
    repository.stage("a.py", "x = 1")
    assert repository.commit().returncode == 0
    repository.git("rm", "-q", "a.py")
    assert repository.commit().returncode == 0


def test_it_reads_the_files_that_it_is_given(repository: Repository) -> None:
    repository.stage("a.py", TOKENS["openai"])
    repository.stage("b.py", "x = 1")
    for name, status in (("a.py", 1), ("b.py", 0)):
        done = subprocess.run(["bash", HOOK, name], cwd=repository.path, check=False)
        assert done.returncode == status


def test_nothing_of_this_repository_looks_like_a_credential() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        pytest.skip("not in a repository")
    done = subprocess.run(
        ["bash", HOOK, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_configurations_that_are_saved_are_not_added(repository: Repository) -> None:
    shutil.copy(ROOT / ".gitignore", repository.path / ".gitignore")
    (repository.path / "config_20250101_120000.json").write_text("{}")
    assert repository.git("add", "config_20250101_120000.json").returncode == 1


def test_pre_commit_runs_the_same_hook_and_fetches_nothing() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert "entry: .github/hooks/pre-commit" in text
    assert "- repo: local" in text
    assert text.count("repo:") == 1
    assert os.access(HOOK, os.X_OK)
