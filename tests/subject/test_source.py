from __future__ import annotations

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
