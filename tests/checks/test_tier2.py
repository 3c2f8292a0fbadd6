"""Tier 2 as a whole: what it shares with tier 1, what it costs, what it does without extras."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.runner import ModelRun
from pytest_transformer_validate.subject.subject import Subject
from tests.models import Decoder

# Programs take seconds and share no pass; how often a speed is measured depends on the machine.
APART = {"export_equivalence", "checkpointing_equivalence", "inference_speed"}
SECONDS = 10.0  # of one processor; issue and README promise 40 on two


def judge(probe, tier, without=APART):
    run = ModelRun("model")
    return {
        record.name: record
        for check in all_checks()
        if check.tier == tier and not check.slow and check.name not in without
        for case in check.cases or (None,)
        for record in [run.judge(check, case, lambda: probe).record]
    }


def forwards_of(probe, *tiers):
    """How often a Decoder runs, copies of it too."""
    ran = []
    handle = register_module_forward_hook(
        lambda module, *_: ran.append(None) if isinstance(module, Decoder) else None
    )
    try:
        for tier in tiers:
            judge(probe, tier)
    finally:
        handle.remove()
    return len(ran)


def new_probe():
    torch.manual_seed(0)
    return Probe(Subject(Decoder()))


def test_passes_are_shared_with_tier_1():
    first, second = (forwards_of(new_probe(), tier) for tier in (1, 2))
    both = new_probe()
    together = forwards_of(both, 1, 2)
    assert together <= first + second - 3  # a plain run, its dependency matrix
    assert forwards_of(both, 2) == 0


def test_without_the_extras_what_needs_them_is_skipped_with_the_line(monkeypatch):
    for name in ("captum", "captum.attr", "scipy", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    found = judge(new_probe(), 2)
    assert found["attribution"].status == "skipped"
    assert 'pip install "pytest-transformer-validate[analysis]"' in found["attribution"].message
    others = {name: r.status for name, r in found.items() if name != "attribution"}
    assert set(others.values()) <= {"passed", "skipped"}
    assert others["token_perturbation"] == others["layer_effect"] == "passed"
    assert not any("not installed" in r.message for n, r in found.items() if n != "attribution")


@pytest.mark.parametrize("trained", [False, True])
def test_the_whole_tier_takes_seconds(trained):
    probe = Probe(Subject(Decoder()), weights="loaded" if trained else "as given")
    start = time.process_time()
    found = judge(probe, 2, without=())
    assert time.process_time() - start < SECONDS
    assert not any(record.failure for record in found.values())
