"""What determinism, statelessness and dropout say and spare; see also tests/evidence."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of

CHECKS = {check.name: check.function for check in all_checks()}


def failure(name: str, model: nn.Module, config=None, task=None) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        CHECKS[name](probe_of(model, config, task))
    return caught.value


class Dropping(models.Decoder):
    """Dropout behind the embedding and behind every block."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.drop = nn.Dropout(p)
        self.drops = nn.ModuleList(nn.Dropout(p) for _ in self.blocks)

    def hidden(self, ids):
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(ids.size(1))))
        for block, drop in zip(self.blocks, self.drops, strict=True):
            x = drop(block(x))
        return self.norm(x)


# Healthy models that look like what is hunted...


class Functional(models.Decoder):
    def hidden(self, ids):
        return F.dropout(super().hidden(ids), 0.1, self.training)


class InPlace(Dropping):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1, inplace=True)

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        self.drop(x)
        return self.norm(self.blocks[0](x))


class MaxNorm(models.Decoder):
    """torch writes to the table of an embedding with a largest norm."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.VOCAB, 32, max_norm=1.0)


class StaticCache(models.Decoder):
    """Keys of the last call stay in a buffer of the state dict, and are overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(16, 48, 32))

    def hidden(self, ids):
        x = super().hidden(ids)
        rows, length, _ = x.shape
        with torch.no_grad():
            self.keys[:rows, :length] = x
        return x + 0 * self.keys[:rows, :length]


class GrowingTable(models.Decoder):
    """A table of positions that grows, as a parameter that is made again."""

    def __init__(self) -> None:
        super().__init__()
        self.grow(4)

    def grow(self, length):
        steps = torch.arange(length)[:, None] * torch.logspace(0, -3, 32)[None]
        self.table = nn.Parameter(steps.sin(), requires_grad=False)

    def hidden(self, ids):
        if ids.size(1) > len(self.table):
            self.grow(ids.size(1))
        return super().hidden(ids) + self.table[: ids.size(1)]


class Rescaled(models.Decoder):
    """Rescaled for a long text, and set back for a short one."""

    scale = 1.0

    def hidden(self, ids):
        self.scale = 48 / ids.size(1) if ids.size(1) > 48 else 1.0
        return super().hidden(ids) * self.scale


class MaskByLength(models.Decoder):
    kept: dict = {}  # noqa: RUF012 - people do

    def hidden(self, ids):
        t = ids.size(1)
        if t not in self.kept:
            self.kept[t] = torch.ones(t, t, dtype=torch.bool).tril()
        x = self.tokens(ids) + self.positions(torch.arange(t))
        for block in self.blocks:
            x = block(x, mask=self.kept[t])
        return self.norm(x)


class Adapted(nn.Linear):
    """A low-rank adapter that is folded into the weight in evaluation."""

    folded = False

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.a, self.b = nn.Parameter(torch.randn(2, width)), nn.Parameter(torch.randn(width, 2))

    def train(self, mode: bool = True):
        super().train(mode)
        if mode == self.folded:
            self.weight.data += (self.b @ self.a) * (-1 if self.folded else 1)
            self.folded = not mode
        return self

    def forward(self, x):
        y = super().forward(x)
        return y if self.folded else y + x @ self.a.T @ self.b.T


class WithAdapter(Dropping):
    def __init__(self) -> None:
        super().__init__()
        self.adapter = Adapted(32)

    def hidden(self, ids):
        return self.adapter(super().hidden(ids))


class LayerDrop(Dropping):
    """A layer is left out at random in training, with all of its dropout."""

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block, drop in zip(self.blocks, self.drops, strict=True):
            if not (self.training and random.random() < 0.5):
                x = drop(block(x))
        return self.norm(x)


class DropPath(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(len(x), *(1,) * (x.dim() - 1)) >= self.p
        return x * kept / (1 - self.p)


class Deeper(models.Decoder):
    """Stochastic depth: more of it with every layer, none in the first."""

    def __init__(self) -> None:
        super().__init__()
        for number, block in enumerate(self.blocks):
            block.path = DropPath(0.1 * number)

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = x + block.path(block(x))
        return self.norm(x)


class Frozen(Dropping):
    """A frozen first layer stays in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens.requires_grad_(False)
        self.blocks.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.drops.eval()
        return self


class Hidden(Dropping):
    """No head: the hidden states, dropped out last."""

    def forward(self, input_ids):
        return self.drop(self.hidden(input_ids))


class Normalised(Dropping):
    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(32)

    def hidden(self, ids):
        return self.batch_norm(super().hidden(ids).transpose(1, 2)).transpose(1, 2)


class OwnDropout(nn.Module):
    scaled = True

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        kept = x * (torch.rand_like(x) >= self.p)
        return kept / (1 - self.p) if self.scaled else kept


class WordDropout(nn.Module):
    """Whole tokens are dropped, which is not made up for."""

    def forward(self, x):
        return x * (torch.rand(*x.shape[:2], 1) >= 0.1) if self.training else x


def by_hand(dropout: nn.Module) -> Dropping:
    model = Dropping()
    model.drop = dropout
    return model


class Counts(models.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("used", torch.zeros(models.VOCAB, dtype=torch.long))

    def forward(self, input_ids):
        self.seen += input_ids.numel()
        self.used += input_ids.flatten().bincount(minlength=models.VOCAB)
        return super().forward(input_ids)


class Leftover(models.Decoder):
    """Made and never called; nothing else says that dropout is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)


HEALTHY = {
    "counters": Counts,
    "leftover": Leftover,
    "modules": Dropping,
    "functional": Functional,
    "in place": InPlace,
    "largest norm": MaxNorm,
    "static cache": StaticCache,
    "growing table": GrowingTable,
    "rescaled and back": Rescaled,
    "masks by length": MaskByLength,
    "adapter": WithAdapter,
    "layer drop": LayerDrop,
    "stochastic depth": Deeper,
    "frozen": Frozen,
    "batch norm": Normalised,
    "hidden states": Hidden,
    "by hand": lambda: by_hand(OwnDropout(0.2)),
    "word dropout": lambda: by_hand(WordDropout()),
    "translator": models.Translator,
    "patches": models.Patches,
    "time first": models.TimeMajor,
    "loss inside": models.Lecture,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_pass(name):
    probe = probe_of(HEALTHY[name]())
    CHECKS["determinism"](probe)
    CHECKS["statelessness"](probe)
    with contextlib.suppress(NotApplicable):
        CHECKS["dropout"](probe)


# ... and what is caught, beside the mutants.


def test_determinism_says_rule_numbers_and_place():
    class Noisy(models.Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            return x + 1e-6 * torch.randn_like(x)

    failed = failure("determinism", Noisy())
    lines = failed.message.splitlines()
    assert lines[0] == "in evaluation the same input must give the same logits"
    assert "under two random states: logits moved by" in lines[1]
    assert "(limit 0 = equal bit by bit)" in lines[1]
    assert lines[2] == "first module to differ: (model)"
    assert failed.where == "(model)"
    assert failed.measurement.value > 0


class OwnTrain(nn.Module):
    """Sets its own mode and nothing else's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))

    def train(self, mode: bool = True):
        self.training = mode
        return self

    def forward(self, x, causal=True, mask=None):
        return self.inner(x)


def test_the_module_that_keeps_the_mode_is_named():
    model = models.Decoder()
    model.blocks[1] = OwnTrain()
    assert failure("determinism", model).where == "blocks.1"


def test_kernels_without_an_order_have_a_limit():
    class Jitters(models.Decoder):
        calls = [0]  # noqa: RUF012 - outlives what is given back

        def forward(self, input_ids):
            logits = super().forward(input_ids)
            JITTER.append(1)
            return logits * (1 + 2e-7 * (len(JITTER) % 3))

    JITTER: list[int] = []
    measured = CHECKS["determinism"](probe_of(Jitters()))
    assert measured.limit.rule == "16 u"


def test_what_a_later_call_raises_is_told():
    class Short(models.Decoder):
        mask = None

        def hidden(self, ids):
            t = ids.size(1)
            if self.mask is None:
                self.mask = torch.ones(t, t, dtype=torch.bool).tril()
            x = self.tokens(ids) + self.positions(torch.arange(t))
            return self.norm(self.blocks[0](x, mask=self.mask[:t, :t]))

    failed = failure("statelessness", Short())
    assert "a longer text raised RuntimeError" in failed.message
    assert failed.where == "blocks.0.attention"


def test_what_training_may_change_is_no_state():
    class Counts(models.Decoder):
        steps = 0

        def hidden(self, ids):
            self.steps += self.training
            return super().hidden(ids) * (1 - 0.5**self.steps if self.steps else 1)

    measured = CHECKS["statelessness"](probe_of(Counts()))
    assert measured.value == 0


def test_a_python_seed_in_forward():
    class Seeds(models.Decoder):
        def forward(self, input_ids):
            random.seed(1)
            return super().forward(input_ids)

    assert "seeded the generator of: random" in failure("statelessness", Seeds()).message


def test_an_input_left_asking_for_a_gradient():
    class Asks(models.Patches):
        def forward(self, x):
            x.requires_grad_()
            return super().forward(x)

    failed = failure("statelessness", Asks())
    assert "wrote to the caller's pixel_values" in failed.message


def test_dropout_written_by_hand_keeps_the_mean():
    drop = OwnDropout(0.2)
    drop.scaled = False
    failed = failure("dropout", by_hand(drop))
    assert failed.where == "drop"
    assert "what is kept has to be divided by 1 - p" in failed.message


class Paths(nn.Module):
    """Drops whole rows: two draws are often alike."""

    def forward(self, x):
        kept = torch.rand(x.size(0), 1, 1) >= 0.3
        return x * kept / 0.7 if self.training else x


class Locked(OwnDropout):
    """Draws once for a shape and keeps what it drew."""

    def forward(self, x):
        if self.training and getattr(self, "mask", x[:0]).shape != x.shape:
            self.mask = super().forward(torch.ones_like(x))
        return x * self.mask if self.training else x


def test_rows_that_are_dropped_alike_by_chance_are_spared():
    CHECKS["dropout"](probe_of(by_hand(Paths())))


def test_a_mask_that_is_drawn_once_is_found_among_others():
    failed = failure("dropout", by_hand(Locked(0.2)))
    assert failed.where == "drop"
    assert "drops the same numbers in two forwards" in failed.message


def test_without_dropout_there_is_nothing_to_judge():
    with pytest.raises(NotApplicable, match="no dropout is declared"):
        CHECKS["dropout"](probe_of(models.Decoder()))


def test_a_dropout_that_is_not_called_is_noted():
    class Some(Dropping):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Dropout(0.1)

    measured = CHECKS["dropout"](probe_of(Some()))
    assert measured.notes == ("dropout modules that are not called: spare",)
    assert measured.modules == 3


@pytest.mark.parametrize("drops", [0.5, 0.0])
def test_a_dropout_of_another_head_moves_its_output(drops):
    class Valued(models.Decoder):
        def __init__(self):
            super().__init__()
            self.value = nn.Sequential(nn.Dropout(drops), nn.Linear(32, 1))
            self.kept = nn.Dropout(0.5).eval()
            self.kept.train = lambda mode=True: self.kept

        def forward(self, input_ids):
            x = self.hidden(input_ids)
            logits = self.head(x if drops else self.kept(x))
            return logits, self.value(x).squeeze(-1)

    if drops:
        assert CHECKS["dropout"](probe_of(Valued())).value == 0.0
    else:
        with pytest.raises(CheckFailed, match="two random states give the same logits"):
            CHECKS["dropout"](probe_of(Valued()))


def test_dropout_that_the_configuration_asks_for_and_nothing_calls():
    failed = failure("dropout", Leftover(), {"dropout": 0.1})
    assert "dropout is declared: drop" in failed.message
    assert failed.where == "(model)"


def test_a_model_that_writes_to_its_weights_is_not_called_random():
    class Shrinks(models.Decoder):
        def forward(self, input_ids):
            self.tokens.weight.data *= 0.999
            return super().forward(input_ids)

    with pytest.raises(Blocked, match="see statelessness"):
        CHECKS["determinism"](probe_of(Shrinks()))
    assert "wrote to tokens.weight" in failure("statelessness", Shrinks()).message


def test_a_training_forward_that_raises_is_not_judged_here():
    class Needs(Dropping):
        def forward(self, input_ids):
            if self.training:
                raise ValueError("give a length of 64")
            return super().forward(input_ids)

    with pytest.raises(NotApplicable, match="raises: ValueError: give a length of 64"):
        CHECKS["dropout"](probe_of(Needs()))


class Forgets(models.Decoder):
    """Sets a rate of dropout to zero in evaluation, and to nothing else ever again."""

    def __init__(self, module):
        super().__init__()
        self.drop = torch.nn.Dropout(0.2)
        self.module, self.dropout_p = module, 0.1

    def forward(self, input_ids):
        if not self.training and self.module:
            self.drop.p = 0.0
        elif not self.training:
            self.dropout_p = 0.0
        x = torch.nn.functional.dropout(self.hidden(input_ids), self.dropout_p, self.training)
        return self.head(self.drop(x))


@pytest.mark.parametrize(("module", "name"), [(True, "drop.p"), (False, "dropout_p")])
def test_a_rate_that_evaluation_sets_is_kept_for_training(module, name):
    caught = failure("statelessness", Forgets(module))
    assert f"a forward in evaluation changed {name}\n" in caught.message


class Sorted(models.Decoder):
    """A classifier, or, without labels to be told of, what makes a vector of a text."""

    def __init__(self):
        super().__init__()
        self.classes, self.drop = nn.Linear(32, 5), nn.Dropout(0.1)

    def forward(self, input_ids):
        return self.drop(self.classes(self.hidden(input_ids).mean(1)))


class SortedByLabels(Sorted):
    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids)
        return logits if labels is None else (F.cross_entropy(logits, labels), logits)


def test_classes_are_known_by_their_number_or_by_labels():
    CHECKS["dropout"](probe_of(Sorted(), task="classification"))
    for model, config in ((Sorted(), {"num_labels": 5}), (SortedByLabels(), None)):
        found = failure("dropout", model, config, "classification")
        assert "the logits themselves are dropped out" in str(found)
