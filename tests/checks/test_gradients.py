"""What excuses a parameter from having a gradient, and what does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.errors import CheckFailed
from tests import models
from tests.models import probe_of

CHECKS = {check.name: check.function for check in all_checks()}


class Pooled(models.Decoder):
    """A classifier with a token made to be read, appended behind the last block."""

    read = -1

    def __init__(self) -> None:
        super().__init__()
        self.summary = nn.Parameter(torch.randn(1, 1, 32))
        self.collect = models.Attention(32, 4)
        self.labels = nn.Linear(32, 5)
        del self.head

    def forward(self, input_ids):
        x = super().hidden(input_ids)
        one = self.summary.expand(len(x), -1, -1)
        one = one + self.collect(torch.cat([one, x], 1), causal=False)[:, :1]
        return self.labels(self.norm(torch.cat([x, one], 1))[:, self.read])


def test_the_token_that_is_made_to_be_read_is_read():
    assert CHECKS["gradient_flow"](probe_of(Pooled(), task="classification")).value == 0


def test_a_token_that_is_made_to_be_read_and_is_not_has_no_excuse():
    model = Pooled()
    model.read = 0
    with pytest.raises(CheckFailed, match="parameters get .*: collect.out.bias") as caught:
        CHECKS["gradient_flow"](probe_of(model, task="classification"))
    assert "summary" in caught.value.measurement.missing


class NoRegisters(models.Decoder):
    """A number of register tokens that is nought."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(0, 32))
        self.unread = nn.Parameter(torch.empty(0, 32))

    def hidden(self, input_ids, **given):
        registers = self.registers.expand(len(input_ids), -1, -1)
        return torch.cat([registers, super().hidden(input_ids, **given)], 1)


def test_an_empty_parameter_has_nothing_to_learn():
    measured = CHECKS["gradient_flow"](probe_of(NoRegisters()))
    assert measured.value == 0
    assert not [name for name in measured.explained if name in ("registers", "unread")]


class FrozenInference(models.Decoder):
    """A frozen body runs in inference mode, in front of a head that is trained."""

    def forward(self, input_ids):
        with torch.inference_mode():
            x = self.hidden(input_ids)
        return self.head(x.clone())


def test_a_frozen_part_may_run_in_inference_mode():
    model = FrozenInference().requires_grad_(False)
    model.head.requires_grad_(True)
    assert CHECKS["gradient_flow"](probe_of(model)).value == 0


class Coarse(nn.Module):
    """The smallest image is one patch, which has nothing to choose from."""

    dead = False

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 32, 64, 64), models.Block()
        self.head = nn.Linear(32, 10)

    def forward(self, pixel_values):
        x = self.stem(pixel_values).flatten(2).mT
        x = x + (x.detach() if self.dead else x)
        x = self.block(x, causal=False).mean(1)
        return self.head(x.detach() if self.dead else x)


def test_a_larger_image_gives_queries_something_to_choose_from():
    assert CHECKS["gradient_flow"](probe_of(Coarse())).value == 0
    model = Coarse()
    model.dead = True
    with pytest.raises(CheckFailed, match="parameters get none at all"):
        CHECKS["gradient_flow"](probe_of(model))
    with pytest.raises(CheckFailed, match="get no gradient|exactly zero"):
        CHECKS["gradient_flow"](probe_of(Coarse(), {"image_size": 64}))


class OwnQueries(models.Decoder):
    """The first token has a query of its own in the last layer, as where it sees everything."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.first = nn.Linear(32, 32), nn.Linear(32, 32)
        del self.head
        self.labels = nn.Linear(32, 5)

    def forward(self, input_ids):
        x = super().hidden(input_ids)
        query = torch.cat([self.first(x[:, :1]), self.query(x[:, 1:])], 1)
        return self.labels(self.norm(x + F.softmax(query @ x.mT, -1) @ x)[:, 0])


def test_queries_of_positions_that_are_not_pooled_are_excused():
    found = CHECKS["gradient_flow"](probe_of(OwnQueries(), task="classification")).explained
    assert found["query.weight"] == "only a result that nothing reads here depends on it"


class Waves(models.Decoder):
    """Positions from a parameter that is read where nothing is learned."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        if not learned:
            angles = torch.arange(48)[:, None] / 100 ** (torch.arange(16) / 16)
            self.positions.weight.data = torch.cat([angles.sin(), angles.cos()], 1)

    def hidden(self, ids):
        with torch.no_grad():
            places = self.positions(torch.arange(ids.size(1)))
        x = self.tokens(ids) + places
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_a_table_of_sines_and_cosines_needs_no_gradient_and_a_learned_one_does():
    found = CHECKS["gradient_flow"](probe_of(Waves(learned=False))).explained
    assert found == {"positions.weight": "a table of sines and cosines is not learned"}
    with pytest.raises(CheckFailed, match="positions.weight"):
        CHECKS["gradient_flow"](probe_of(Waves(learned=True)))


class Compresses(nn.Module):
    """Every 80 tokens are joined, for those behind them; ``cut`` where nothing is learned so."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.tokens, self.pool = nn.Embedding(models.VOCAB, 32), nn.Linear(32, 32)
        self.head, self.cut = nn.Linear(32, models.VOCAB), cut

    def forward(self, ids):
        x = self.tokens(ids)
        x = x + x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        blocks = ids.shape[1] // 80
        joined = self.pool(x)[:, : blocks * 80].unflatten(1, (blocks, 80)).mean(2)
        behind = F.pad(joined.repeat_interleave(80, 1), (0, 0, 80, 80))[:, : ids.shape[1]]
        return self.head(x + (behind.detach() if self.cut else behind))


def test_what_joins_many_tokens_gets_a_gradient_from_a_longer_text():
    config = {"max_position_embeddings": 256}
    found = CHECKS["gradient_flow"](probe_of(Compresses(), config)).explained
    assert found == dict.fromkeys(("pool.bias", "pool.weight"), "only a longer text reaches it")
    with pytest.raises(CheckFailed, match="pool"):
        CHECKS["gradient_flow"](probe_of(Compresses(cut=True), config))


def test_a_longer_text_is_asked_for_where_nothing_limits_texts():
    found = CHECKS["gradient_flow"](probe_of(Compresses())).explained
    assert found == dict.fromkeys(("pool.bias", "pool.weight"), "only a longer text reaches it")


class Turning(nn.Module):
    """Embeddings and weights are complex; ``cut`` where those of the weights get no gradient."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        drawn = torch.randn(models.VOCAB, 16, dtype=torch.complex64)
        self.table, self.cut = nn.Parameter(0.1 * drawn), cut
        self.turn = nn.Parameter(torch.randn(16, 16, dtype=torch.complex64) / 4)
        self.head = nn.Linear(32, models.VOCAB)

    def forward(self, ids):
        x = self.table[ids]
        x = x + x.cumsum(1) @ (self.turn.detach() if self.cut else self.turn)
        return self.head(torch.view_as_real(x).flatten(-2))


def test_complex_weights_have_gradients():
    CHECKS["gradient_flow"](probe_of(Turning()))
    with pytest.raises(CheckFailed, match="turn"):
        CHECKS["gradient_flow"](probe_of(Turning(cut=True)))


class Projections(nn.Module):
    """Attention whose projections stand in one list; ``last`` is that of its result."""

    def __init__(self, last) -> None:
        super().__init__()
        self.last, self.linears = last, nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x, causal=True, mask=None):
        q, k, v = (linear(x) for linear in self.linears[:3])
        return self.linears[self.last](F.scaled_dot_product_attention(q, k, v, is_causal=causal))


@pytest.mark.parametrize("last", [3, 0])
def test_a_projection_that_is_not_used_is_no_expert(last):
    model = models.Decoder()
    model.blocks[1].attention = Projections(last)
    if last:
        CHECKS["gradient_flow"](probe_of(model))
        return
    with pytest.raises(CheckFailed, match=r"blocks.1.attention.linears.3") as caught:
        CHECKS["gradient_flow"](probe_of(model))
    assert str(caught.value.where).startswith("blocks.1.attention")


class Routed(nn.Module):
    """Each token goes to one expert, by whose probability its answer is multiplied."""

    weight = staticmethod(lambda p: p)

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        p, chosen = self.router(x).softmax(-1).max(-1)
        answers = torch.stack([expert(x) for expert in self.experts], -1)
        one = F.one_hot(chosen, 4).to(x)
        return (answers * one[..., None, :]).sum(-1) * self.weight(p)[..., None], p.square().mean()


class Experts(models.Decoder):
    """A mixture of experts; the loss that spreads tokens over them is returned on request."""

    def __init__(self, weight=None, beside=True) -> None:
        super().__init__()
        self.mixture, self.beside = Routed(), beside
        if weight is not None:
            self.mixture.weight = weight

    def forward(self, input_ids):
        x = super().hidden(input_ids)
        y, spread = self.mixture(x)
        logits = self.head(x + y)
        return {"logits": logits, "aux_loss": spread} if self.beside else logits


NORMALISED = {
    "softmax over one": lambda p: p[..., None].softmax(-1)[..., 0],
    "divided by its sum": lambda p: p / (p + 1e-20),
}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("what", NORMALISED)
def test_a_router_whose_weights_are_always_one_learns_nothing(what, beside):
    with pytest.raises(CheckFailed, match="mixture.router.weight") as caught:
        CHECKS["gradient_flow"](probe_of(Experts(NORMALISED[what], beside)))
    assert "likely: the weights of the chosen experts are normalised to 1" in caught.value.message
    assert caught.value.where in {"mixture", "mixture.router"}


@pytest.mark.parametrize("beside", [True, False])
def test_a_router_that_learns_is_left_alone(beside):
    assert CHECKS["gradient_flow"](probe_of(Experts(None, beside))).value == 0


def test_a_router_that_learns_in_training_alone_is_left_alone():
    model = Experts()
    model.mixture.weight = lambda p: p if model.training else p[..., None].softmax(-1)[..., 0]
    assert CHECKS["gradient_flow"](probe_of(model)).value == 0


def test_a_router_that_learns_at_positions_that_are_not_read_is_left_alone():
    class Pools(Experts):
        """Of the one position that is read, the weight is 1; of others it is not."""

        def forward(self, input_ids):
            x = self.hidden(input_ids)
            y, spread = self.mixture(x)
            return {"logits": self.head((x + y)[:, 0]), "aux_loss": spread}

    def first_alone(p):
        return torch.cat([torch.ones_like(p[:, :1]), p[:, 1:]], 1)

    model = Pools(first_alone)
    model.head = nn.Linear(32, 5)
    found = CHECKS["gradient_flow"](probe_of(model, task="classification"))
    assert "mixture.router.weight" in found.explained


class InPlace(nn.Module):
    """A norm that writes into what it is given, which the residual still needs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x.mul_(scale) * self.weight


def test_a_value_that_is_written_over_before_the_backward_needs_it():
    model = models.Decoder()
    model.norm = InPlace()
    with pytest.raises(CheckFailed, match="is written over in place during the forward") as caught:
        CHECKS["gradient_flow"](probe_of(model))
    assert caught.value.where == "norm"


def test_what_an_earlier_check_met_is_said_by_the_one_that_judges_it():
    model = models.Decoder()
    model.norm = InPlace()
    probe = probe_of(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        probe.gradients()
    with pytest.raises(CheckFailed, match="is written over in place"):
        CHECKS["gradient_flow"](probe)


class Prompted(models.Decoder):
    """A learned vector beside the text, in front of which a frozen model sees it or not."""

    def __init__(self, *, in_front: bool) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.prompt = nn.Parameter(torch.randn(1, 1, 32))
        self.in_front = in_front

    def forward(self, input_ids):
        x = self.tokens(input_ids)
        prompt = self.prompt.expand(len(x), 1, 32)
        x = torch.cat([prompt, x] if self.in_front else [x, prompt], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 1:] if self.in_front else x[:, :-1]))


def test_a_model_that_no_training_changes_is_found_whatever_the_reason():
    CHECKS["gradient_flow"](probe_of(Prompted(in_front=True)))
    with pytest.raises(CheckFailed, match="follow none of the 1 parameters") as caught:
        CHECKS["gradient_flow"](probe_of(Prompted(in_front=False)))
    assert caught.value.measurement.missing == ("prompt",)


class Listed(models.Decoder):
    def __init__(self):
        super().__init__()
        self.more = [models.Block()]

    def hidden(self, ids):
        return self.more[0](super().hidden(ids))


def test_modules_in_a_plain_list_are_named():
    with pytest.raises(CheckFailed, match=r"modules that hold them: more\[0\]") as caught:
        CHECKS["gradient_flow"](probe_of(Listed()))
    assert caught.value.where == "more"


class Doubled(torch.autograd.Function):
    """Squares; ``derivative`` is what its backward takes for the derivative of x squared."""

    @staticmethod
    def forward(ctx, x, derivative):
        ctx.save_for_backward(x)
        ctx.derivative = derivative
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * ctx.derivative * x, None


class Squaring(nn.Module):
    def __init__(self, derivative: float) -> None:
        super().__init__()
        self.derivative = derivative

    def forward(self, x):
        return Doubled.apply(x, self.derivative)


def test_a_backward_that_is_not_the_derivative_is_found():
    model = models.Decoder()
    model.blocks[1].mlp.append(Squaring(2.0))
    assert CHECKS["gradient_flow"](probe_of(model)).value == 0
    model.blocks[1].mlp[-1].derivative = 1.9
    with pytest.raises(CheckFailed, match="the backward of Doubled, written by hand") as caught:
        CHECKS["gradient_flow"](probe_of(model))
    assert caught.value.where == f"blocks.1.mlp.{len(model.blocks[1].mlp) - 1}"


class AddAuxiliaryLoss(torch.autograd.Function):
    """A loss for balance, as mixtures of experts add it: seen by the backward alone."""

    @staticmethod
    def forward(_ctx, x, _loss):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient, torch.ones(())


class Balanced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 2)

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        return AddAuxiliaryLoss.apply(x * weights[..., :1], weights.square().sum())


def test_a_loss_that_only_the_backward_adds_is_meant():
    model = models.Decoder()
    model.blocks[1].mlp.append(Balanced())
    assert CHECKS["gradient_flow"](probe_of(model)).value == 0


class InTraining(models.Decoder):
    """Does something else in training mode."""

    way = "detach"

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            last = self.training and block is self.blocks[-1]
            if last and self.way == "drop the layer":
                continue
            cut = last and self.way == "no graph"
            with torch.set_grad_enabled(torch.is_grad_enabled() and not cut):
                y = block(x) - x
            x = x + (y.detach() if last and self.way == "detach" else y)
        return self.norm(x)


@pytest.mark.parametrize("way", ["detach", "no graph"])
def test_a_graph_that_is_cut_in_training_alone(way):
    model = InTraining()
    model.way = way
    with pytest.raises(CheckFailed, match="although they get one in evaluation") as caught:
        CHECKS["gradient_flow"](probe_of(model))
    assert caught.value.where in ("blocks.1", "(model)")


def test_a_layer_that_is_left_out_in_training_is_not_cut():
    model = InTraining()
    model.way = "drop the layer"
    assert CHECKS["gradient_flow"](probe_of(model)).value == 0


class Distilled(models.Decoder):
    """Gives what two heads say, and the mean of both where it is not trained."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(32, models.VOCAB)

    def forward(self, input_ids):
        x = self.hidden(input_ids)
        one, other = self.head(x), self.other(x)
        return (one, other) if self.training else (one + other) / 2


def test_a_result_that_is_given_in_training_alone_is_reached():
    assert CHECKS["gradient_flow"](probe_of(Distilled())).value == 0


def test_a_model_that_refuses_rows_is_not_trained_on_its_longest_text():
    class OneRow(models.Decoder):
        def forward(self, input_ids):
            if input_ids.shape[1] > 4096:
                pytest.exit("that takes minutes")
            if len(input_ids) > 1:
                raise ValueError("one text at a time")
            return super().forward(input_ids)

    probe = probe_of(OneRow(length=8), {"vocab_size": models.VOCAB, "n_positions": 131_072})
    assert probe.subject.max_length == 131_072
    with pytest.raises(ValueError, match="one text"):
        probe.gradients(noised=False)
