"""C28: which names are written to this machine."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.fetch.names import require_plain_names

BAD = ["../x.py", "/etc/x", "a\\..\\b", "C:x", ".", "..", "", "CON", "con.py", "LPT1.txt", "a\0b"]
BAD += ["a\nb", "x" * 300, "-rf.py", ".git", ".GIT", "__init__.py", "__main__.py", "torch.py"]
BAD += ["torch.cpython-311-x86_64-linux-gnu.so", "sitecustomize.py", "conftest.py", "random.py"]
BAD += ["numpy.py", "numpy.zip", "a b.py", "mödel.py", "x.", "a/b.py", "\u202egnp.py", "\x1b[2J"]


@pytest.mark.parametrize("name", BAD)
def test_c28_a_name_that_is_not_plain_or_hides_a_module(name):
    with pytest.raises(SourceError, match="which is not written here") as caught:
        require_plain_names(["model.py", name], entry="model.py")
    text = str(caught.value)
    assert ascii(name)[:40] in text
    assert text.replace("\n", "").isprintable()
    assert text.isascii()


def test_c28_names_that_differ_in_case_only():
    with pytest.raises(SourceError, match="in case only"):
        require_plain_names(["model.py", "Model.py"], entry="model.py")


@pytest.mark.parametrize(
    "name", ["config.json", "README.md", "blocks_2.py", ".gitignore", "a.b.py", "x" * 100, "numpy"]
)
def test_plain_names_are_written(name):
    require_plain_names(["model.py", name], entry="model.py")


def test_the_model_file_may_have_the_name_of_an_installed_package():
    require_plain_names(["transformers.py"], entry="transformers.py")
    with pytest.raises(SourceError, match="installed module transformers"):
        require_plain_names(["model.py", "transformers.py"], entry="model.py")
