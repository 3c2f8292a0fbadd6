from __future__ import annotations

import importlib
import textwrap

import pytest
from torch import nn

from pytest_transformer_validate.subject.source import reads_module, reads_parameter
from tests.models import First, Reads, Second


@pytest.mark.parametrize(
    ("number", "read"), [(0, True), (1, False), (2, True)], ids=["forward", "nowhere", "method"]
)
def test_a_submodule_is_read_or_only_assigned(number, read):
    model = Reads()
    name = [name for name, _ in model.named_children()][number]
    assert reads_module(model, name) is read


def test_what_another_class_reads_counts_where_it_is_a_base():
    assert [reads_module(First(), n) for n in ("one", "two", "three")] == [True, False, True]
    assert all(reads_module(Second(), n) for n in ("one", "two", "three"))


@pytest.mark.parametrize(("number", "read"), [(0, True), (1, False)], ids=["forward", "nowhere"])
def test_a_parameter_is_read_or_only_assigned(number, read):
    model = Reads()
    name = [name for name, _ in model.named_parameters(recurse=False)][number]
    assert reads_parameter(model, name) is read


def test_an_element_of_a_list_counts_as_read():
    assert reads_module(nn.Sequential(nn.Linear(2, 2)), "0")


def test_what_has_no_source_counts_as_read():
    namespace: dict[str, type] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x): return x\n", namespace)
    model = namespace["Made"]()
    model.part = nn.Linear(1, 1)
    model.scale = nn.Parameter(model.part.bias.detach())
    assert reads_module(model, "part")
    assert reads_parameter(model, "scale")


@pytest.mark.parametrize(
    ("reads", "read"),
    [
        ('getattr(config, "width", 2)', False),
        ('getattr(config, f"{x}_width", 2)', False),
        ('getattr(self, "part")(x)', True),
        ("getattr(self, x)(x)", True),
        ("[m(x) for m in self.children()]", True),
    ],
)
def test_a_name_that_is_asked_for_by_its_letters(tmp_path, monkeypatch, reads, read):
    """What is read of a configuration, whatever its name, reads no module."""
    name = f"asked_{reads.encode().hex()}"
    code = f"""
        from torch import nn

        config = None

        class Made(nn.Module):
            def __init__(self):
                super().__init__()
                self.part = nn.Linear(2, 2)

            def forward(self, x):
                return {reads}
    """
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    assert reads_module(importlib.import_module(name).Made(), "part") is read
