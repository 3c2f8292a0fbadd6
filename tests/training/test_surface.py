"""What ``pytest_transformer_validate.training`` gives, and what it costs to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_transformer_validate import training
from pytest_transformer_validate.training.data import lightning
from tests.real import needed

NEEDS_LIGHTNING = {"TrainingCoordinator", "SimpleDataModule"}
FOREIGN = ("_pytest", "pytest", "pytorch_lightning", "transformers", "datasets", "pandas")
FOREIGN += ("wandb", "matplotlib", "pyarrow", "torchmetrics", "pynvml")


@pytest.mark.parametrize("name", sorted(set(training.__all__) - NEEDS_LIGHTNING))
def test_a_name_is_there(name):
    value = getattr(training, name)
    assert getattr(value, "__name__", name) == name


@pytest.mark.parametrize("name", sorted(NEEDS_LIGHTNING))
def test_a_name_that_needs_lightning_is_there(name):
    needed("pytorch_lightning")
    assert getattr(training, name).__name__ == name


@pytest.mark.parametrize("name", sorted(NEEDS_LIGHTNING))
def test_without_lightning_it_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    lightning._simple_data_module.cache_clear()
    with pytest.raises(ImportError, match=r"pytest-transformer-validate\[lightning\]"):
        getattr(training, name)()


def test_another_name_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = training.Trainr


def test_the_list_is_complete():
    assert set(training.__all__) == set(training._HOMES)
    assert set(training.__all__) <= set(dir(training))


def test_importing_imports_nothing_foreign():
    names = ", ".join(sorted(set(training.__all__) - NEEDS_LIGHTNING))
    code = (
        "import sys\n"
        "import pytest_transformer_validate.training\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "brought = set(sys.modules)  # torch itself takes pynvml where it is there\n"
        f"from pytest_transformer_validate.training import {names}\n"
        f"print(sorted((sys.modules.keys() - brought) & set({FOREIGN})))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
