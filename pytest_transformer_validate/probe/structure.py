"""What a model is made of: its modules, its parameters, and which of them its code reads."""

from __future__ import annotations

import functools

import torch

from pytest_transformer_validate.probe.passes import Passes
from pytest_transformer_validate.subject.source import reads_module, reads_parameter

_WAVES = 4  # the width from which on drawn numbers do not have that length by chance
_ONE = 1.01  # in half precision, too

# Modules that treat every position alike and alone: asking them costs time and tells nothing.
POSITIONWISE = (
    torch.nn.Linear,
    torch.nn.Embedding,
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
    torch.nn.Dropout,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.ReLU,
    torch.nn.Tanh,
    torch.nn.Identity,
)


class Structure(Passes):
    """What can be said of a model without running it."""

    @property
    def frozen(self) -> int:
        """Number of parameters that ask for no gradient."""
        return sum(not p.requires_grad for p in self.probe.subject.model.parameters())

    @property
    def has_batch_norms(self) -> bool:
        """Whether a module computes statistics over the rows in training mode."""
        return bool(batch_norms(self.probe.subject.model))

    @property
    def steps(self) -> bool:
        """Whether a recurrent cell is there, which a forward steps from position to position."""
        cells = torch.nn.modules.rnn.RNNCellBase
        return any(isinstance(m, cells) for m in self.probe.subject.model.modules())

    def dimensions(self, parameter: str) -> int:
        """Number of axes of a parameter."""
        return dict(self.probe.subject.model.named_parameters())[parameter].dim()

    def is_list(self, module: str) -> bool:
        """Whether a module only holds others and has no forward."""
        kinds = (torch.nn.ModuleList, torch.nn.ModuleDict)
        return isinstance(self._modules[module], kinds)

    @functools.cached_property
    def _modules(self) -> dict[str, torch.nn.Module]:
        return dict(self.probe.subject.model.named_modules())

    def reads_module(self, module: str) -> bool:
        """See ``source.reads_module``."""
        return reads_module(self.probe.subject.model, module)

    def reads_parameter(self, parameter: str) -> bool:
        """See ``source.reads_parameter``."""
        return reads_parameter(self.probe.subject.model, parameter)

    def holds_waves(self, parameter: str) -> bool:
        """Whether a parameter is a table (positions, width) of sines and cosines: the squares of
        a row add up to half the width, but for a row of zeros for padding."""
        table = self.probe.subject.model.get_parameter(parameter).detach()
        if table.dim() != 2 or table.shape[1] < _WAVES or not float(table.abs().max()) <= _ONE:
            return False
        sums = table.abs().float().square().sum(1)
        waves = (sums - table.shape[1] / 2).abs() <= 0.01 * table.shape[1]
        return bool(waves.any()) and bool((waves | (sums == 0)).all())

    def holds_modules(self, module: str) -> bool:
        """Whether a module has submodules."""
        return next(self._modules[module].children(), None) is not None

    def list_siblings(self, module: str) -> list[str]:
        """Names of the other modules of the same class in the same list or sequence."""
        above, _, own = module.rpartition(".")
        holder = self._modules[above]
        if not isinstance(holder, torch.nn.ModuleList | torch.nn.Sequential):
            return []
        kind = type(self._modules[module])
        prefix = f"{above}." if above else ""
        return [
            prefix + name
            for name, other in holder.named_children()
            if name != own and type(other) is kind
        ]

    def idle_modules(self, ran: set[str]) -> list[str]:
        """The outermost modules with parameters of which nothing ran."""
        idle: list[str] = []
        for name, module in self.probe.subject.model.named_modules():
            touched = any(other == name or other.startswith(f"{name}.") for other in ran)
            inside = any(name.startswith(f"{other}.") for other in idle)
            if name and not touched and not inside and next(module.parameters(), None) is not None:
                idle.append(name)
        return idle


def batch_norms(model: torch.nn.Module) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    """The modules that compute statistics over the rows in training mode."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind)]
