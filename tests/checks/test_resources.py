"""What memory_footprint and inference_speed count, judge and spare."""

from __future__ import annotations

import functools
import sys
from collections import deque

import pytest
import torch
from torch import nn

from pytest_transformer_validate import Probe, Subject
from pytest_transformer_validate.checks.tier1.resources import inference_speed, memory_footprint
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.measures.resources import percentile, ratios, times
from tests.models import VOCAB, Decoder, Lecture, Patches


def probe_of(model, **config):
    return Probe(Subject(model, config))


class Linear(nn.Module):
    """Whose bytes can be told beforehand: one table, one product."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, 16)
        self.head = nn.Linear(16, VOCAB, bias=False)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


def test_bytes_are_those_that_autograd_keeps():
    found = memory_footprint(probe_of(Linear()))
    # The ids (int64) for the table, and the vectors (float32) for the product.
    assert found.activations == {"2x8": 16 * (8 + 64), "4x8": 32 * (8 + 64), "2x16": 32 * (8 + 64)}
    assert found.by_length == {8: 16 * (8 + 64), 16: 32 * (8 + 64), 32: 64 * (8 + 64)}
    assert found.parameter_bytes == 2 * 16 * VOCAB * 4
    assert (found.value, found.per_token, found.length_growth) == (2.0, 72.0, "linear")
    assert found.limit.value == pytest.approx(2.2)


def test_work_is_counted():
    found = inference_speed(probe_of(Linear()))
    assert found.multiplications == 16 * 16 * VOCAB
    assert (found.operations_batch_ratio, found.products_length_ratio) == (1.0, 1.0)
    assert found.trials >= 1
    assert found.tokens_per_second == pytest.approx(16e3 / found.median_ms)


def test_a_shared_storage_counts_once():
    class Twice(Linear):
        def forward(self, input_ids):
            x = self.table(input_ids)
            return self.head(x) + self.head(x.view(-1, 16)).view(*input_ids.shape, -1)

    assert memory_footprint(probe_of(Twice())).per_token == 72.0


def test_growth_with_the_length_is_information():
    class Scores(Linear):
        def forward(self, input_ids):
            x = self.table(input_ids)
            return self.head((x @ x.transpose(1, 2)).softmax(-1) @ x)

    assert memory_footprint(probe_of(Scores())).length_growth == "quadratic"


def test_a_cache_is_measured_by_token():
    from pytest_transformer_validate.evidence.zoo import ZOO

    healthy = ZOO["llama"]
    found = memory_footprint(Probe(Subject(healthy.build(0), dict(healthy.config))))
    # Keys and values: 2 layers x 2 heads x 8 numbers of 4 bytes.
    assert found.cache_per_token == 2 * 2 * 2 * 8 * 4


def test_images_have_no_length():
    found = memory_footprint(probe_of(Patches()))
    assert list(found.activations) == ["2x1", "4x1"]
    assert (found.length_growth, found.per_token) == (None, None)
    assert list(found.by_length) == [1]
    assert inference_speed(probe_of(Patches())).tokens_per_second is None


class Short(Linear):
    """Which takes 16 tokens and no more."""

    def forward(self, input_ids):
        if input_ids.shape[1] > 16:
            raise ValueError("too long")
        return super().forward(input_ids)


def test_what_is_drawn_over_length_is_no_promise():
    probe = probe_of(Short())
    assert list(memory_footprint(probe).by_length) == [8, 16]
    assert list(inference_speed(probe).by_length) == [8, 16]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_batch_is_larger_than_declared(most):
    seen = []

    class Few(Linear):
        def forward(self, input_ids):
            seen.append(len(input_ids))
            return super().forward(input_ids)

    probe = probe_of(Few(), max_batch_size=most)
    memory_footprint(probe)
    inference_speed(probe)
    assert max(seen) <= most


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_no_text_is_longer_than_declared(length):
    probe = probe_of(Decoder(length=length), max_seq_len=length)
    memory_footprint(probe)
    inference_speed(probe)


# What is left behind by a call, and is no leak.


class LastMap(Decoder):
    """Keeps its last hidden states, with their graph."""

    def hidden(self, ids):
        self.last = super().hidden(ids)
        return self.last


class Queue(Decoder):
    kept: deque

    def __init__(self):
        super().__init__()
        self.kept = deque(maxlen=1000)

    def hidden(self, ids):
        x = super().hidden(ids)
        self.kept.append(x.detach())
        return x


class Segments(Decoder):
    """A memory of at most 40 positions, filled call by call."""

    def __init__(self):
        super().__init__()
        self.memory = torch.zeros(1, 0, 32)

    def hidden(self, ids):
        x = super().hidden(ids)
        self.memory = torch.cat([self.memory, x[:1].detach()], 1)[:, -40:].clone()
        return x


class Statistics(Decoder):
    """Logs one number a call."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def hidden(self, ids):
        x = super().hidden(ids)
        self.norms.append(x.detach().norm())
        return x


class Table(Decoder):
    """Caches a mask for each length."""

    @functools.cache  # noqa: B019 - as people write it
    def mask(self, length):
        return torch.ones(length, length).tril()

    def hidden(self, ids):
        self.mask(ids.size(1))
        return super().hidden(ids)


class Collected(Decoder):
    """Collects losses for a trainer, which takes them after each step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def reset_losses(self):
        self.losses.clear()

    def hidden(self, ids):
        x = super().hidden(ids)
        if self.training:
            self.losses.append(x.square().mean())
        return x


class Cycle(Decoder):
    """Leaves a cycle of references, which the collector takes."""

    def hidden(self, ids):
        x = super().hidden(ids)
        knot = [x]
        knot.append(knot)
        return x


class ClearedWithLabels(Lecture):
    """Collects in forward, and empties where it adds the losses up."""

    def __init__(self):
        super().__init__()
        self.extra = []

    def forward(self, idx, targets=None):
        logits, loss = super().forward(idx, targets)
        self.extra.append(logits.square().mean())
        if loss is not None:
            loss = loss + sum(self.extra)
            self.extra = []
        elif not self.training:
            self.extra = []
        return logits, loss


class Decoding(Decoder):
    """A cache inside, written in place at the position that forward is given."""

    def __init__(self):
        super().__init__()
        self.cache = torch.zeros(16, 48, 32)

    def forward(self, tokens, start_pos: int = 0):
        x = self.hidden(tokens)
        self.cache[: len(x), start_pos : start_pos + x.size(1)] = x
        return self.head(self.cache[: len(x), : start_pos + x.size(1)])


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (LastMap, None),
        (Queue, "a queue with a maximum length"),
        (Segments, None),
        (Statistics, "as much for a larger batch"),
        (Table, None),
        (Collected, "until reset_losses() is called"),
        (Cycle, None),
        (ClearedWithLabels, None),
        (Decoding, "the cache keeps the graph of every call"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_kept_for_a_reason_is_spared(kind, note):
    torch.manual_seed(0)
    notes = " ".join(memory_footprint(probe_of(kind())).notes)
    assert (note in notes) if note else notes == ""


def test_the_model_holds_no_more_than_before():
    model = Statistics()
    memory_footprint(probe_of(model))
    assert model.norms == []


def test_what_piles_up_is_named():
    class Piling(Decoder):
        def __init__(self):
            super().__init__()
            self.norm.seen = {"all": []}

        def hidden(self, ids):
            x = super().hidden(ids)
            self.norm.seen["all"].append(x.detach())
            return x

    with pytest.raises(CheckFailed) as failure:
        memory_footprint(probe_of(Piling()))
    assert failure.value.where == "norm"
    assert "eval mode leaves 2048 bytes in norm.seen" in failure.value.message
    measured = failure.value.measurement
    assert (measured.kept, measured.value, measured.limit.value) == (2048, 2048, 0)


def test_rows_in_pairs_are_a_square():
    class Pairs(Linear):
        def forward(self, input_ids):
            x = self.table(input_ids)
            pairs = (x.flatten(1)[:, None] * x.flatten(1)[None]).exp()
            return self.head(x + 0 * pairs.mean())

    with pytest.raises(CheckFailed, match="memory must grow with the batch, not with its square"):
        memory_footprint(probe_of(Pairs()))


def test_experts_are_no_square():
    """Tokens by expert depend on the data; a padded product may grow faster by chance."""
    name = "rows_in_one_sequence"
    assert MUTANTS[name].check == "memory_footprint"
    from pytest_transformer_validate.evidence.zoo import ZOO

    healthy = ZOO["moe"]
    for seed in range(3):
        probe = Probe(Subject(healthy.build(seed), dict(healthy.config)), seed=seed)
        memory_footprint(probe)
        inference_speed(probe)


def test_padding_to_the_busiest_expert_is_spared():
    class Padded(Linear):
        """Each of four experts gets as many rows as the busiest one."""

        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(4, 16, 16) * 0.1)

        def forward(self, input_ids):
            x = self.table(input_ids)
            flat = x.flatten(0, 1)
            chosen = input_ids.flatten() % 4
            most = int(chosen.bincount(minlength=4).max())
            padded = flat.new_zeros(4, most, 16)
            for expert in range(4):
                mine = flat[chosen == expert]
                padded = padded.index_put((torch.tensor(expert), torch.arange(len(mine))), mine)
            out = padded @ self.experts
            y = torch.stack([out[e, (chosen[:i] == e).sum()] for i, e in enumerate(chosen)])
            return self.head(x + y.view_as(x))

    for seed in range(4):
        torch.manual_seed(seed)
        probe = Probe(Subject(Padded()), seed=seed)
        memory_footprint(probe)
        inference_speed(probe)


def test_what_bears_no_hooks_is_still_counted():
    class Functional(Linear):
        def forward(self, input_ids):
            x = self.table(input_ids)
            with torch.enable_grad():
                step = torch.func.grad(lambda w: (x.detach() * w).square().sum())(torch.ones(16))
            return self.head(x + step)

    probe = probe_of(Functional())
    found = memory_footprint(probe)
    assert "cannot be counted here" in " ".join(found.notes)
    assert inference_speed(probe).multiplications == 16 * 16 * VOCAB


def test_a_model_that_raises_says_so_itself():
    class Raises(Linear):
        def forward(self, input_ids):
            if input_ids.shape == (2, 8):
                raise RuntimeError("not this shape")
            return super().forward(input_ids)

    with pytest.raises(RuntimeError, match="not this shape"):
        memory_footprint(probe_of(Raises()))


def test_training_mode_is_not_judged_where_it_does_not_run():
    class Never(Linear):
        def forward(self, input_ids):
            if self.training:
                raise RuntimeError("for inference only")
            return super().forward(input_ids)

    notes = memory_footprint(probe_of(Never())).notes
    assert notes == ("no call in training mode: for inference only",)


def test_a_loop_over_rows_is_a_note():
    class Looped(Decoder):
        def hidden(self, ids):
            return torch.cat([super(Looped, self).hidden(row[None]) for row in ids])

    notes = inference_speed(probe_of(Looped(), vocab_size=VOCAB)).notes
    assert "times as many operations for twice the batch: a loop over rows?" in " ".join(notes)


def test_a_loop_over_positions_is_a_note():
    class Recurrent(Linear):
        def forward(self, input_ids):
            x = self.table(input_ids)
            state, states = torch.zeros(len(x), 16), []
            for t in range(x.size(1)):
                state = torch.tanh(state + x[:, t])
                states.append(state)
            return self.head(torch.stack(states, 1))

    assert "a loop over positions?" in " ".join(inference_speed(probe_of(Recurrent())).notes)


def test_attention_to_memory_in_a_loop_is_spared():
    """Bahdanau's: every step looks at all states before it, which is quadratic and no more."""

    class Additive(Linear):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(32, 1)

        def forward(self, input_ids):
            x = self.table(input_ids)
            steps = []
            for t in range(x.size(1)):
                past = x[:, : t + 1]
                pair = torch.cat([past, x[:, t : t + 1].expand_as(past)], -1)
                weights = self.score(pair).softmax(1)
                steps.append((weights * past).sum(1))
            return self.head(torch.stack(steps, 1))

    inference_speed(probe_of(Additive()))


def test_a_compiled_model_is_counted():
    model = torch.compile(Decoder(), backend="eager")
    assert inference_speed(probe_of(model)).operations > 50


def test_counting_imports_no_compiler():
    loaded = "torch._dynamo" in sys.modules
    memory_footprint(probe_of(Linear()))
    assert ("torch._dynamo" in sys.modules) == loaded


def test_percentiles():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([1.0, 2.0], 95) == pytest.approx(1.95)
    assert times([0.001])["std_ms"] == 0.0
    assert times([0.001, 0.003])["mean_ms"] == pytest.approx(2.0)


def test_ratios_of_nothing_are_one():
    counts = probe_of(Linear()).resources.base()
    assert ratios(counts, counts).work == 1.0
    assert ratios(counts, counts).kind in {"products", "multiplications", "operations"}
