"""The model with the weights of its linear layers as whole numbers of 8 bits."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from pytest_transformer_validate.errors import NotApplicable, error_line
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.quiet import quietly


@dataclass(frozen=True)
class Quantised:
    """Outputs (n, V) with and without; ``layers`` of ``of`` linear layers were quantised."""

    logits: torch.Tensor
    expected: torch.Tensor
    layers: int
    of: int


class Quantisation(Passes):
    """Passes over a quantised copy, on the CPU."""

    @remembered
    def outputs(self) -> Quantised:
        """The outputs of one text from the model and from its copy, by torch's dynamic
        quantisation: weights once, inputs of each layer at every call. Raises NotApplicable."""
        subject = self.probe.subject
        linear = [m for m in subject.model.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise NotApplicable("there is no nn.Linear to quantise")
        if subject.dtype != torch.float32:
            raise NotApplicable("dynamic quantisation starts from float32")
        rows, length = subject.sizes
        batch = self.probe.batch(rows, length, "quantised")
        expected = self.probe.forward(batch).logits
        try:
            with quietly():
                model = copy.deepcopy(subject.model).to("cpu").eval()
                model = torch.ao.quantization.quantize_dynamic(
                    model, {nn.Linear}, dtype=torch.qint8, inplace=True
                )
            probe = type(self.probe)(subject.twin(model), seed=self.probe.seed)
            with quietly():
                logits = probe.forward(batch.to("cpu")).logits
        except Exception as error:
            line = error_line(error)
            raise NotApplicable(f"dynamic quantisation does not take the model: {line}") from error
        kinds = (type(module).__module__ for module in model.modules())
        layers = sum(".quantized.dynamic" in kind for kind in kinds)
        flat = expected.flatten(0, -2), logits.flatten(0, -2)
        return Quantised(flat[1], flat[0].cpu(), layers, len(linear))
