"""What the checks of attention weights share: the sites that they judge, and small words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import NotApplicable
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.sites import Site


def attention_sites(probe: Probe) -> list[Site]:
    """Attention over tokens. Raises NotApplicable where there is none, or none was captured."""
    found = over_tokens(probe, "eval")
    if found:
        return found
    named = probe.attention_weights.named()
    if named is None:
        raise NotApplicable("no attention found")
    if probe.attention_weights.sites():
        raise NotApplicable(
            f"failed to capture: {named} attends in blocks, not over the tokens of a whole text"
        )
    raise NotApplicable(
        f"failed to capture: {named} is called attention, and no weights over tokens were seen: "
        "no softmax that meets values, no fused attention, none returned "
        "(linear attention makes none; kernels outside of torch hide them)"
    )


def over_tokens(probe: Probe, which: str) -> list[Site]:
    """The sites whose queries or keys are as many as the tokens of a text; all of an image."""
    passes = probe.attention_weights
    found = passes.long() if which == "long" else passes.sites(which)
    if probe.subject.vision:
        return [s for s in found if s.normal != "none"]
    own = passes.long_length if which == "long" else probe.subject.sizes[1]
    least = min(own, passes.source_length or own)
    return [s for s in found if max(s.shape) >= least]


def over_own_text(probe: Probe, sites: list[Site], length: int = 0) -> list[Site]:
    """Self-attention over the sequence that the output follows, of ``length`` tokens (default:
    as many as probes take)."""
    length = length or probe.subject.sizes[1]
    translates = probe.subject.task.task_type == "seq2seq"
    if probe.subject.vision or (translates and probe.attention_weights.source_length == length):
        return []  # what an encoder does looks like what a decoder does
    return [s for s in sites if s.shape == (length, length)]


def few(notes: list[str]) -> tuple[str, ...]:
    """The first few of the notes, each once."""
    return tuple(dict.fromkeys(notes))[:4]


def eps(site: Site) -> float:
    import torch

    return float(torch.finfo(site.weights.dtype).eps)


def tiny(site: Site) -> float:
    import torch

    return float(torch.finfo(site.weights.dtype).tiny)


def exactly_zero() -> Limit:
    return Limit(value=0.0, rule="exactly 0")


def _shape(site: Site) -> str:
    heads = len(site.weights)
    return f"{heads} x {site.shape[0]} x {site.shape[1]}"
