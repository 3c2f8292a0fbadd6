"""Where in a model a gradient is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.gradients import Gradients
    from pytest_transformer_validate.probe.probe import Probe


def where_lost(probe: Probe, found: Gradients, failing: set[str], *, last: bool = False) -> str:
    """The first module, in execution order, that loses the gradient on the way.

    A part of the model in which everything fails stands next to the break, and the break is in
    the module around it: named is that module, unless it is the whole model or has one such part
    only. ``last`` takes the last such module: trouble that starts late spoils everything before.
    """
    order = {name: index for index, name in enumerate(found.tokens)}
    owners = sorted({owner_of(n) for n in failing}, key=lambda o: (order.get(o, -1), o))
    idle = [n for n in failing if n not in found.used and not was_run(found, owner_of(n))]
    if idle:
        return _dead_part(probe, found, failing, owner_of(min(idle)))
    parts: dict[str, list[str]] = {}
    for owner in owners:
        part = _dead_part(probe, found, failing, owner)
        around = parts.setdefault(module_around(probe, part), [])
        if part not in around:
            around.append(part)
    inner = [module for module in parts if module] or [""]
    module = inner[-1] if last else inner[0]
    only = parts[module][0]
    whole = len(parts[module]) == 1 and (not module or probe.structure.holds_modules(only))
    return (only if whole else module) or probe.root


def _dead_part(probe: Probe, found: Gradients, failing: set[str], owner: str) -> str:
    """The outermost module around ``owner`` all of whose parameters fail."""
    module, best = owner, owner
    while module:
        inside = [n for n in found.norms if is_inside(owner_of(n), module)]
        if all(n in failing for n in inside) and not probe.structure.is_list(module):
            best = module
        module = module.rpartition(".")[0]
    return best


def module_around(probe: Probe, module: str) -> str:
    """The nearest module around it that has a forward."""
    above = module.rpartition(".")[0]
    while above and probe.structure.is_list(above):
        above = above.rpartition(".")[0]
    return above


def was_run(found: Gradients, module: str) -> bool:
    """Whether the module, or anything in it, was called."""
    if module == "":
        return True
    return module in found.tokens or any(is_inside(name, module) for name in found.tokens)


def is_inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def owner_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]
