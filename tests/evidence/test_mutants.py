"""Every mutant differs from its parent, and the check that it is made for catches it."""

from __future__ import annotations

import dataclasses
import fnmatch
import traceback
from typing import TYPE_CHECKING

import pytest

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence import mutants, table
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.evidence.mutants.families import FAMILIES
from pytest_transformer_validate.evidence.mutants.surgery import ROOT
from pytest_transformer_validate.evidence.words import Words
from pytest_transformer_validate.report.record import Record

if TYPE_CHECKING:
    from pytest_transformer_validate.evidence.mutants.surgery import Mutant

UNBUILDABLE = {"tied_before_it_exists", "argument_not_in_config"}


@pytest.mark.parametrize("name", MUTANTS)
def test_mistake_applies(name: str) -> None:
    mutant = MUTANTS[name]
    parent = mutant.healthy.path.read_text(encoding="utf-8")
    assert (mutant.source() != parent) == bool(mutant.edits)
    assert mutant.edits or mutant.operate or mutant.tokenizer != Words()
    if name not in UNBUILDABLE:
        modules = {name or ROOT for name, _ in mutant.build().named_modules()}
        found = [fnmatch.filter(modules, where) for where in mutant.where]
        assert all(found), (mutant.where, modules)


@pytest.mark.parametrize("name", MUTANTS)
def test_check_catches_it(name: str) -> None:
    row = table.mutant_row(name)
    assert row.parent_status == "passed"
    expected = not row.mutant.undetectable
    assert row.caught is expected, [(r.name, r.status, r.message) for r in row.records]


def test_names_are_unique_and_checks_exist() -> None:
    checks = {check.name for check in all_checks()}
    modules = vars(mutants).values()
    assert {mutant.check for mutant in MUTANTS.values()} <= checks
    listed = [m.name for module in modules for m in getattr(module, "MUTANTS", ())]
    assert len(listed) == len(set(listed)) == len(MUTANTS)


JUDGED = {check.name for check in all_checks() if check.tier < 3}
FOUND = sorted({m.family for m in MUTANTS.values() if m.check in JUDGED})


@pytest.mark.parametrize("family", FOUND)
def test_a_family_is_found_in_three_different_models(family: str) -> None:
    members = [m for m in MUTANTS.values() if m.family == family and not m.undetectable]
    assert len({mutant.parent for mutant in members}) >= 3
    assert len({mutant.check for mutant in members}) == 1


def test_every_family_has_its_words() -> None:
    assert set(FOUND) <= set(FAMILIES) <= {mutant.family for mutant in MUTANTS.values()}


def test_a_lost_snippet_is_named() -> None:
    mutant = dataclasses.replace(MUTANTS["mask_missing"], edits=(("no such line", ""),))
    with pytest.raises(ValueError, match=r"mask_missing: 0 times in mha_decoder: 'no such line'"):
        mutant.source()


def test_a_traceback_shows_the_changed_line() -> None:
    with pytest.raises(AttributeError) as caught:
        MUTANTS["tied_before_it_exists"].build()
    shown = "".join(traceback.format_exception(caught.value))
    assert "<tied_before_it_exists: sdpa_gpt.py>" in shown
    assert "self.head.weight = self.wte.weight" in shown


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("blocks.0.attn", True),
        ("blocks.0", True),
        ("blocks", False),
        ("blocks.0.attn.proj", False),
        ("blocks.1.attn", False),
        ("(model)", False),
        (None, False),
    ],
)
def test_localised_is_the_module_or_its_parent(where: str | None, expected: bool) -> None:
    assert MUTANTS["mask_in_training_only"].localises(where) is expected


def test_any_layer_and_the_root_can_be_meant() -> None:
    every_layer, root = MUTANTS["hard_gate"], MUTANTS["layer_result_dropped"]
    assert every_layer.localises("layers.1.mlp")
    assert every_layer.localises("layers.0")
    assert not every_layer.localises("layers.1.mlp.up_proj")
    assert root.localises("(model)")
    assert not root.localises("layers.0")


def _row(mutant: Mutant, *statuses: str, parent: str = "passed") -> table.MutantRow:
    records = [
        Record(model="m", tier=1, check=mutant.check, status=status, case=str(number))
        for number, status in enumerate(statuses)
    ]
    return table.MutantRow(mutant, parent, tuple(records))


def test_a_crash_is_a_catch_only_where_the_mistake_is_to_raise() -> None:
    leak, raising = MUTANTS["mask_missing"], MUTANTS["position_table_one_short"]
    assert _row(leak, "failed").caught
    assert not _row(leak, "broken").caught
    assert _row(raising, "passed", "broken").caught
    assert not _row(raising, "blocked").caught
    assert not _row(leak, "failed", parent="failed").caught
    assert not _row(leak, "skipped").caught
