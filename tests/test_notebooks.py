"""notebooks/: executed as they are, and in step with their scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_transformer_validate.notebook import example
from tests.real import needed

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
# What the outputs of a run hold.
SHOWN = {
    "template": ["class GPT", "509.0K parameters", "tier 1   3", "tier 2   1", "training.ipynb"],
    "training": ["tier 3   4 passed", "loss by step", "epoch 5", "trained: task causal_lm"],
}
NAMES = list(SHOWN)


def cells(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["cells"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """By nbmake, in a folder of its own, from the first cell to the last."""
    needed("nbmake")
    for variable in ("CI", "GIST_ID", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two kernels on two cores are no race
    shutil.copy(FOLDER / f"{name}.ipynb", pytester.path)
    words = ("--nbmake", "--nbmake-timeout=300", "--overwrite", f"{name}.ipynb")
    result = pytester.runpytest_subprocess(*words, "-p", "no:transformer_validate")
    result.assert_outcomes(passed=1)
    done = json.loads((pytester.path / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    said = json.dumps([cell.get("outputs", []) for cell in done])
    assert (
        f"NO MODEL WAS NAMED: this is the example that comes with the plugin ({example()})" in said
    )
    assert "failed (exit" not in said
    assert "warnings summary" not in said
    assert [text for text in SHOWN[name] if text not in said] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_pair_is_in_step(name: str) -> None:
    jupytext = needed("jupytext")
    config = needed("jupytext.config").load_jupytext_config(str(FOLDER))
    notebook = jupytext.read(FOLDER / f"{name}.ipynb", config=config)
    script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    same = jupytext.writes(notebook, "py:percent", config=config) == script
    assert same, "run: jupytext --sync notebooks/*.py"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_kept_without_outputs(name: str) -> None:
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_the_template_installs_nothing_but_the_plugin() -> None:
    source = "\n".join("".join(cell["source"]) for cell in cells("template"))
    assert [line.strip() for line in source.splitlines() if "pip" in line] == [
        'subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PLUGIN], check=True)'
    ]
    assert 'PLUGIN = "pytest-transformer-validate[gist]"' in source


def test_the_code_is_shown_before_it_runs() -> None:
    source = "\n".join("".join(cell["source"]) for cell in cells("template"))
    order = ["environment()", "choose_model(", "model.show()", "model.missing()", "-k load"]
    order += ["-m tier1", "-m tier2", "go_on_in("]
    places = [source.index(word) for word in order]
    assert places == sorted(places)
