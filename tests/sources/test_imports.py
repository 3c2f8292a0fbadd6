"""What model files import and this machine lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.imports import missing, package_of

if TYPE_CHECKING:
    from pathlib import Path

LACKING = """
from __future__ import annotations
import os, torch.nn as nn
import absent_a.part as a, json
from absent_b.deep import x
from . import beside
from .beside import y
import helper
def late():
    import absent_c
try:
    import optional_d
except ImportError:
    optional_d = None
try:
    import optional_e
except (OSError, ModuleNotFoundError):
    pass
try:
    import absent_f
finally:
    pass
try:
    import absent_g
except ValueError:
    pass
if TYPE_CHECKING:
    import only_h
else:
    import absent_i
class Net(nn.Module):
    import absent_a
"""


def test_what_has_to_be_there_and_is_not(tmp_path: Path) -> None:
    model, helper = tmp_path / "model.py", tmp_path / "helper.py"
    model.write_text(LACKING)
    helper.write_text("import absent_j, model")
    found = ["absent_a", "absent_b", "absent_c", "absent_f", "absent_g", "absent_i"]
    assert missing([model, helper]) == [*found, "absent_j"]


def test_a_file_that_is_no_python_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("def (")
    with pytest.raises(SourceError, match="model.py"):
        missing([path])


@pytest.mark.parametrize(("name", "package"), [("einops", "einops"), ("PIL", "pillow")])
def test_the_package_that_holds_a_module(name: str, package: str) -> None:
    assert package_of(name) == package
