from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.signature import Signature, read_signature


def test_a_call_of_the_models_own_is_no_forward():
    model = type("Model", (nn.Module,), {})()
    with pytest.raises(SubjectError, match="Model defines no forward$"):
        read_signature(model, vision=False)
    model = type("Model", (nn.Module,), {"__call__": lambda self, x: x})()
    with pytest.raises(SubjectError, match="no forward, but __call__: call it forward"):
        read_signature(model, vision=False)


def signature_of(forward, *, vision: bool = False) -> Signature:
    model = type("Model", (nn.Module,), {"forward": forward})()
    return read_signature(model, vision=vision)


def test_usual_names_become_roles():
    def forward(self, idx, targets=None, attention_mask=None, use_cache=False): ...

    names = signature_of(forward).names
    assert names == {
        "input_ids": "idx",
        "attention_mask": "attention_mask",
        "labels": "targets",
        "use_cache": "use_cache",
    }


def test_an_unknown_first_name_is_the_main_input():
    def forward(self, sentence, mask=None): ...

    assert signature_of(forward).names["input_ids"] == "sentence"


def test_whose_text_it_is_is_no_text():
    def forward(self, user_ids, item_seq, target_item): ...

    assert signature_of(forward).names["input_ids"] == "item_seq"


def test_x_is_the_image_of_a_vision_model():
    def forward(self, x): ...

    assert signature_of(forward, vision=True).names == {"pixel_values": "x"}


def test_source_and_target():
    def forward(self, src, tgt): ...

    assert signature_of(forward).names == {"input_ids": "src", "decoder_input_ids": "tgt"}


def test_a_required_target_is_what_the_decoder_reads():
    def forward(self, source, target): ...

    assert signature_of(forward).names["decoder_input_ids"] == "target"


@pytest.mark.parametrize("first", ["source", "src", "encoder_input_ids"])
@pytest.mark.parametrize("second", ["tokens", "ids", "input_ids"])
def test_tokens_behind_a_source_are_what_the_decoder_reads(first, second):
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("self", first, second)
    ]

    def forward(*_): ...

    forward.__signature__ = inspect.Signature(parameters)
    assert signature_of(forward).names == {"input_ids": first, "decoder_input_ids": second}


@pytest.mark.parametrize("second", ["tgt_idx", "x_dec", "batch_tgt", "dec_input_ids", "ys"])
def test_names_of_what_a_decoder_reads(second):
    scope = {}
    exec(f"def forward(self, first, {second}): ...", scope)
    assert signature_of(scope["forward"]).names["decoder_input_ids"] == second


def test_what_nobody_knows_is_the_decoders_where_the_task_says_so():
    def forward(self, question, answer, src_mask, flag=False): ...

    model = type("Model", (nn.Module,), {"forward": forward})()
    names = read_signature(model, vision=False, seq2seq=True).names
    assert names == {"input_ids": "question", "decoder_input_ids": "answer", "mask": "src_mask"}
    with pytest.raises(SubjectError, match=r"answer,(.|\n)*declare it: --tb-task=seq2seq"):
        read_signature(model, vision=False)
    with pytest.raises(SubjectError) as caught:
        read_signature(model, vision=False, translates=False)
    assert "seq2seq" not in str(caught.value)


def test_a_mask_that_is_called_like_the_text_is_about_it():
    def forward(self, context, context_mask=None, future_mask=None): ...

    assert signature_of(forward).names == {"input_ids": "context", "mask": "context_mask"}


def test_tokens_in_front_of_a_source_are_left_as_they_are():
    def forward(self, tokens, src=None): ...

    assert signature_of(forward).names == {"input_ids": "tokens"}


def test_intermediates_of_a_builder_export():
    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output, ffn_1_output): ...

    signature = signature_of(forward)
    assert signature.names == {"input_ids": "input_0_tokens"}
    assert signature.intermediates == ("mhsa_0_output", "residual_0_output", "ffn_1_output")


def test_positional_only():
    def forward(self, x, /, attention_mask=None): ...

    assert signature_of(forward).positional == {"input_ids"}


@pytest.mark.parametrize("with_kwargs", [False, True])
def test_a_hook_of_the_model_is_told_of_what_is_given_by_place(with_kwargs):
    class Model(nn.Module):
        def forward(self, src, tgt, attention_mask=None): ...

    model = Model()
    model.register_forward_pre_hook(lambda _module, *_given: None, with_kwargs=with_kwargs)
    expected = set() if with_kwargs else {"input_ids", "decoder_input_ids"}
    assert read_signature(model, vision=False).positional == expected


def test_an_unknown_required_input_is_named_with_the_signature():
    def forward(self, input_ids, graph_edges): ...

    with pytest.raises(SubjectError, match=r"requires graph_edges(.|\n)*forward\(.*graph_edges"):
        signature_of(forward)


def test_a_forward_that_hands_everything_on_is_the_inherited_one():
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(5, 2), nn.Linear(2, 5)

        def forward(self, token_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor: ...

    class Changed(Base):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) / 2

    names = read_signature(Changed(), vision=False).names
    assert names == {"input_ids": "token_ids", "attention_mask": "attention_mask"}


def test_a_forward_that_hands_everything_to_a_method_is_that_method():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, *args, **kwargs):
            return self.two(self._forward(*args, **kwargs))

        def _forward(self, ids, attention_mask=None): ...

    names = read_signature(Model(), vision=False).names
    assert names == {"input_ids": "ids", "attention_mask": "attention_mask"}


def test_a_wrapper_is_read_through():
    class Inner(nn.Module):
        def forward(self, token_ids: Tensor) -> Tensor: ...

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    assert read_signature(Wrapper(), vision=False).names == {"input_ids": "token_ids"}

    class WithMore(Wrapper):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(2, 2)

        def forward(self, *args, **kwargs):
            return self.more(self.inner.forward(*args, **kwargs))

    assert read_signature(WithMore(), vision=False).names == {"input_ids": "token_ids"}
    compiled = torch.compile(Inner(), backend="eager")
    assert read_signature(compiled, vision=False).names == {"input_ids": "token_ids"}
