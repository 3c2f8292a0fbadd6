from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.errors import Blocked
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.guard import fingerprint
from pytest_transformer_validate.subject.subject import Subject
from tests.models import Decoder


@pytest.fixture
def probe() -> Probe:
    torch.manual_seed(0)
    return Probe(Subject(Decoder()))


def test_a_pass_runs_once(probe):
    calls = []

    def counted(probe: Probe, case: str) -> int:
        calls.append(case)
        return len(calls)

    assert [probe.once(counted, c) for c in ("a", "b", "a")] == [1, 2, 1]


def test_a_pass_that_raises_blocks_who_needs_it_later(probe):
    def raises(probe: Probe) -> None:
        with probe.running("raises") as subject:
            subject.model.blocks[1].mlp(torch.ones(1, 3))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe.once(raises)
    with pytest.raises(
        Blocked, match=r"the pass raises raised in blocks\.1\.mlp\.0: RuntimeError"
    ):
        probe.once(raises)


def test_nothing_of_the_model_is_changed(probe):
    model = probe.subject.model.train()
    before = fingerprint(model), [p.clone() for p in model.parameters()]
    probe.gradients()
    probe.gradients(noised=True)
    probe.samples(noised=True)
    probe.position_gradients("eval")
    probe.row_swaps("full")
    assert fingerprint(model) == before[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before[1], strict=True))


def test_noise_moves_every_parameter_and_goes_again(probe):
    model = probe.subject.model
    before = [p.detach().clone() for p in model.parameters()]
    with probe.noised():
        moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(moved)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_batch_norms_follow_the_data_inside_noise_only():
    class Normed(Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.batch_norm = nn.BatchNorm1d(32)

        def forward(self, input_ids):
            return self.head(
                self.batch_norm(self.hidden(input_ids).transpose(1, 2)).transpose(1, 2)
            )

    probe = Probe(Subject(Normed()))
    norm = probe.subject.model.batch_norm
    with probe.noised():
        inside = norm.running_var.clone()
    assert not torch.equal(inside, torch.ones(32))
    assert torch.equal(norm.running_var, torch.ones(32))
    assert (norm.momentum, norm.training) == (0.1, True)


def test_the_seed_decides_the_numbers():
    torch.manual_seed(0)
    model = Decoder()
    one, same, other = (
        Probe(Subject(model), seed=s).row_swaps("full").reference for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_float64_repeats_what_runs_in_it(probe):
    value, how = probe.repeated(lambda p: float(p.eps))
    assert (value, how) == (torch.finfo(torch.float64).eps, "in float64")


def test_another_seed_where_float64_does_not_run():
    class Single(Decoder):
        def forward(self, input_ids):
            hidden = self.hidden(input_ids)
            assert hidden.dtype == torch.float32
            return self.head(hidden)

    probe = Probe(Subject(Single()), seed=3)
    _, how = probe.repeated(lambda p: float(p.row_swaps("full").own_effect))
    assert how == "with another seed (float64 does not run)"


def test_a_cast_to_float32_does_not_keep_a_repetition_from_float64():
    class Casts(Decoder):
        def hidden(self, ids):
            x = self.blocks[0](self.tokens(ids))
            weights = torch.softmax(x.to(torch.float32), dim=-1, dtype=torch.float32)
            return self.norm(x.float() + weights)

    def dtype(probe):
        return probe.forward(probe.batch(2, 5, "x")).logits.dtype

    found = []
    value, how = Probe(Subject(Casts())).repeated(lambda p: found.append(dtype(p)) or 0.0)
    assert (value, how, found) == (0.0, "in float64", [torch.float64])
