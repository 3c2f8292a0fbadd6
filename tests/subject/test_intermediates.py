from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.subject import Subject


class Export(nn.Module):
    """A builder export: its parameters ask for what its submodules compute."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_0 = nn.Embedding(11, 8)
        self.mhsa_0 = nn.Linear(8, 8)
        self.norm_0 = nn.LayerNorm(8)
        self.ffn_0_up = nn.Linear(8, 16)
        self.ffn_0_down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11)

    def forward(
        self, input_0_tokens: Tensor, residual_0_output: Tensor, ffn_0_output: Tensor
    ) -> Tensor:
        self.mhsa_0(self.embedding_0(input_0_tokens))
        x = self.norm_0(residual_0_output)
        self.ffn_0_down(torch.relu(self.ffn_0_up(x)))
        return self.head(x + ffn_0_output)

    def by_hand(self, ids: Tensor) -> Tensor:
        x = self.embedding_0(ids)
        x = self.norm_0(x + self.mhsa_0(x))
        return self.head(x + self.ffn_0_down(torch.relu(self.ffn_0_up(x))))


def test_values_and_gradients_are_those_of_the_whole_computation():
    model = Export()
    subject = Subject(model)
    batch = subject.batch(2, 5)
    output, expected = subject(batch).logits, model.by_hand(batch["input_ids"])
    torch.testing.assert_close(output, expected)
    parameters = list(model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(output.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_what_no_submodule_produces_is_named():
    class Lost(Export):
        def forward(self, input_0_tokens: Tensor, mlp_7_output: Tensor) -> Tensor:
            return self.head(self.mhsa_0(self.embedding_0(input_0_tokens)) + mlp_7_output)

    with pytest.raises(SubjectError, match=r"asks for mlp_7_output(.|\n)*that ran:.*mhsa_0"):
        _ = Subject(Lost()).facts


def test_values_that_depend_on_themselves_do_not_settle():
    class Circle(Export):
        def forward(self, input_0_tokens: Tensor, mhsa_0_output: Tensor) -> Tensor:
            return self.head(self.mhsa_0(mhsa_0_output * 2 + self.embedding_0(input_0_tokens)))

    with pytest.raises(SubjectError, match="in a circle"):
        _ = Subject(Circle()).facts
