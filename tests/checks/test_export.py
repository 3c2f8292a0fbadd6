"""What export_equivalence says; programs take seconds, so there are few of them here."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.checks.tier2.export import aot_equivalence, export_equivalence
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of


def test_other_shapes_are_compared() -> None:
    found = export_equivalence(probe_of(models.Decoder()))
    assert list(found.shapes) == ["5x11", "1x11", "7x9", "2x48", "1x48"]
    assert found.value <= found.limit.value
    assert found.static == ()


class Fixed(models.Decoder):
    def forward(self, input_ids):
        rows = [self.hidden(input_ids[:, :step])[:, -1] for step in range(1, 4)]
        assert int(input_ids.shape[1]) > 0
        return self.head(self.hidden(input_ids)) + 0 * self.head(rows[0])[:, None]


def test_what_became_static_is_named_and_no_failure() -> None:
    probe = probe_of(Fixed())
    found = export_equivalence(probe)
    assert found.static == ("length of input_ids == 11",)
    assert found.notes == ("static: length of input_ids == 11",)
    assert list(found.shapes) == ["5x11", "1x11", "7x11", "2x11"]
    assert set(found.refused) == {"7x9", "2x48", "1x48"}
    with pytest.raises(CheckFailed, match="no more than 0 axes .*\n.*length of input_ids == 11"):
        export_equivalence(probe, static_axes=0)


class OneShape(models.Decoder):
    def forward(self, input_ids):
        assert int(input_ids.shape[0]) > 0
        assert int(input_ids.shape[1]) > 0
        return super().forward(input_ids)


def test_a_program_for_one_shape_is_not_enough() -> None:
    with pytest.raises(NotApplicable, match="for one shape only: (batch|length) of input_ids =="):
        export_equivalence(probe_of(OneShape()))


class Short(models.Decoder):
    def forward(self, input_ids):
        if input_ids.shape[1] > 24:
            return super().forward(input_ids) * 1.0
        return super().forward(input_ids)


def test_a_length_that_is_bounded_leaves_other_shapes() -> None:
    found = export_equivalence(probe_of(Short()))
    assert found.static == ()
    assert found.notes == ("only if length of input_ids <= 24",)
    assert list(found.shapes) == ["5x11", "1x11", "7x9", "7x11"]


class Otherwise(models.Attention):
    def forward(self, x, causal=True, mask=None):
        return super().forward(x, causal and not torch.compiler.is_compiling(), mask)


def test_another_path_while_exporting_is_found_where_it_is() -> None:
    model = models.Decoder()
    model.blocks[1].attention = Otherwise(32, 4)
    with pytest.raises(CheckFailed, match="what torch.export makes of the model") as caught:
        export_equivalence(probe_of(model))
    assert caught.value.where == "blocks.1.attention"


class Deciding(models.Decoder):
    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return logits if float(logits.sum()) > 1e9 else 2 * logits


def test_control_flow_by_data_is_a_reason(capsys) -> None:
    with pytest.raises(NotApplicable, match="torch.export does not take the model: .*data-dep"):
        export_equivalence(probe_of(Deciding()))
    assert capsys.readouterr() == ("", "")


def test_the_model_is_left_alone() -> None:
    model = models.Decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    export_equivalence(probe_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}


class Stopping(models.Decoder):
    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return logits + logits.sum().item() * 0


def test_graph_breaks_are_counted_with_their_reasons() -> None:
    importlib.import_module("torch._dynamo")  # from then on models run uncompiled elsewhere
    count, reasons = probe_of(Stopping()).exported.breaks()
    assert count == 1
    assert "item" in reasons[0]


def test_compilers_are_asked_for_only(monkeypatch) -> None:
    slow = {check.name for check in all_checks() if check.slow}
    assert {"compile_equivalence", "aot_equivalence"} <= slow
    assert "export_equivalence" not in slow
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotApplicable, match=r"no C\+\+ compiler"):
        aot_equivalence(probe_of(models.Decoder()))
