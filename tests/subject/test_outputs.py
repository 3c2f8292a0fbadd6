from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.outputs import describe, read_output
from tests.models import Result, Scores

LOGITS, HIDDEN, LOSS = torch.rand(2, 3, 7), torch.rand(2, 3, 4), torch.tensor(1.5)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (LOGITS, "tensor"),
        ((LOGITS, LOSS), "0"),
        ((LOSS, LOGITS), "1"),
        ([LOGITS, None], "0"),
        ({"hidden_states": (HIDDEN,), "logits": LOGITS}, "logits"),
        ({"encoding": LOGITS, "mask": torch.ones(2, 3, dtype=torch.bool)}, "encoding"),
        (
            OrderedDict(last_hidden_state=LOGITS, pooler_output=torch.rand(2, 4)),
            "last_hidden_state",
        ),
        (Scores(LOGITS, None), "scores"),
        (Result(LOGITS, HIDDEN), "logits"),
        (SimpleNamespace(hidden=HIDDEN, logits=LOGITS), "logits"),
        ((Result(LOGITS, None), [HIDDEN]), "logits"),
        (({"attention": HIDDEN}, LOGITS), "1"),
    ],
)
def test_logits_are_found(raw, field):
    output = read_output(raw)
    assert output.logits is LOGITS
    assert output.field == field


def test_loss_cache_and_others():
    cache = object()
    output = read_output(
        {"loss": LOSS, "logits": LOGITS, "past_key_values": cache, "h": (HIDDEN,)}
    )
    assert (output.loss, output.cache) == (LOSS, cache)
    assert output.others == (LOSS, HIDDEN)


@pytest.mark.parametrize("raw", [None, "text", [], {}, torch.ones(2, 3, dtype=torch.long), LOSS])
def test_what_came_back_is_said(raw):
    with pytest.raises(SubjectError, match="forward must return logits") as caught:
        read_output(raw)
    assert describe(raw) in str(caught.value)


class Lies(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("the model's class answers")


class Does(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("the model's class answers")


def test_a_tensor_of_the_models_own_class_is_read_as_a_tensor():
    source = torch.rand(2, 3, 7, requires_grad=True)
    with torch._C.DisableTorchFunctionSubclass():
        own = (source * 2).as_subclass(Lies)
    with torch._C.DisableTorchFunctionSubclass():
        other = LOGITS.as_subclass(Lies)
    output = read_output({"logits": own, "more": (other,)})
    assert type(output.logits) is torch.Tensor
    assert type(output.others[0]) is torch.Tensor
    output.logits.sum().backward()
    assert source.grad is not None
    assert type(read_output(torch.nn.Parameter(LOGITS)).logits) is torch.nn.Parameter


def test_a_tensor_that_is_nothing_but_its_class_is_refused():
    with pytest.raises(SubjectError, match="one of class Does, which does itself what torch"):
        read_output(LOGITS.as_subclass(Does))


def test_an_output_a_token_goes_first_where_the_task_has_one():
    pair = torch.rand(2, 2), LOGITS
    assert read_output(pair).logits is pair[0]
    assert read_output(pair, per_token=True).logits is LOGITS
    assert read_output(pair[:1], per_token=True).logits is pair[0]


def test_a_namespace_holds_a_cache_and_others():
    output = read_output(SimpleNamespace(logits=LOGITS, past_key_values=[HIDDEN], loss=LOSS))
    assert output.cache == [HIDDEN]
    assert output.loss is LOSS
    assert len(output.others) == 2
