"""validate(): the same checks without pytest, on objects and specs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_transformer_validate import Record, Result, validate
from pytest_transformer_validate.errors import MissingDependency, SpecError

if TYPE_CHECKING:
    from pathlib import Path


class Tiny(torch.nn.Module):
    """Sees only the token itself, and drops some of what it sees while training."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.drop = torch.nn.Dropout(0.1)
        self.head = torch.nn.Linear(8, 32)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.embed(input_ids)))


class Empty(torch.nn.Module):
    """Has nothing and gives nothing back."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        raise ValueError("nothing here")


RECORDS = [
    Record(model="m", tier=1, check="one", status="passed", numbers={"value": 1.0}),
    Record(model="m", tier=1, check="two", status="failed", message="two (tier 1): <b>no</b>"),
    Record(model="m", tier=2, check="three", status="skipped", message="no cache"),
]


def test_a_model_object_is_judged_and_left_as_it_was() -> None:
    model = Tiny().train()
    model.embed.weight.grad = torch.ones(32, 8)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    result = validate(model)
    assert result.passed, str(result)
    assert {record.model for record in result} == {"Tiny"}
    assert model.training
    assert model.drop.training
    assert torch.equal(torch.get_rng_state(), random)
    assert model.embed.weight.grad is not None
    assert torch.equal(model.embed.weight.grad, torch.ones(32, 8))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_spec_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\nclass Model(torch.nn.Module):\n"
        "    def __init__(self, width):\n        super().__init__()\n"
        "        self.embed = torch.nn.Embedding(32, width)\n"
        "        self.head = torch.nn.Linear(width, 32)\n"
        "    def forward(self, input_ids): return self.head(self.embed(input_ids))\n"
    )
    config = tmp_path / "other.json"
    config.write_text('{"width": 4}')
    (record,) = validate(path, config, checks="load")
    assert record.status == "passed"
    assert record.context["parameters"] == 32 * 4 + 4 * 32 + 32
    (record,) = validate(str(path), checks=["load"])
    assert record.status == "broken"
    assert "width" in record.message


def test_a_broken_model_is_no_exception() -> None:
    result = validate(Empty())
    assert not result.passed
    assert {record.status for record in result} <= {"broken", "blocked", "failed", "skipped"}


def test_a_task_is_declared() -> None:
    (record,) = validate(Tiny(), task="masked_lm", checks="load")
    assert record.context["task"].startswith("masked_lm")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": 4},
        {"tier": [1, 0]},
        {"checks": "lode"},
        {"task": "guessing"},
    ],
)
def test_what_names_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        validate(Tiny(), **wrong)  # type: ignore[arg-type]


def test_a_spec_takes_the_path_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.touch()
    with pytest.raises(SpecError, match="path of a config.json"):
        validate(path, {"width": 4})
    with pytest.raises(SpecError, match="no such file"):
        validate(path, tmp_path / "none.json")


def test_a_result_is_a_sequence() -> None:
    result = Result(RECORDS)
    assert len(result) == 3
    assert result[0] is RECORDS[0]
    assert list(result[1:]) == RECORDS[1:]
    assert not result.passed
    assert list(result.failures) == [RECORDS[1]]
    assert not Result([]).passed
    assert not Result(RECORDS[2:]).passed, "nothing was judged"
    assert Result(RECORDS[:1]).passed


def test_failures_can_be_raised() -> None:
    Result(RECORDS[:1]).raise_for_failures()
    with pytest.raises(AssertionError, match="^two") as caught:
        Result(RECORDS).raise_for_failures()
    assert caught.value.result[1] is RECORDS[1]  # type: ignore[attr-defined]


def test_a_result_reads_as_in_the_terminal() -> None:
    lines = str(Result(RECORDS)).splitlines()
    assert lines[0] == "two (tier 1): <b>no</b>"
    assert lines[2] == "m"
    assert lines[3].split() == ["tier", "1", "1", "passed", "1", "failed", "0.0", "s"]


def test_html_is_escaped() -> None:
    html = Result(RECORDS)._repr_html_()
    assert "&lt;b&gt;no" in html
    assert "<b>" not in html


def test_a_frame_has_a_row_a_record() -> None:
    pytest.importorskip("pandas")
    frame = Result(RECORDS).to_frame()
    assert list(frame["check"]) == ["one", "two", "three"]


def test_without_pandas_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency, match=r"pytest-transformer-validate\[report\]"):
        Result(RECORDS).to_frame()


def test_a_result_is_as_true_as_it_passed():
    assert Result([RECORDS[0]])
    assert not Result(RECORDS)
    assert not Result([])
    assert Result(RECORDS).failures
