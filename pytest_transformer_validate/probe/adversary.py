"""How few tokens have to be replaced until the prediction is another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import Blocked, NotApplicable, error_line
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.vectors import Reader, each_token, read

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.subject import Subject

_ROUNDS = 4  # tokens that are replaced at most
_TRIED = 8  # replacements that are run in each round
_SOURCE = "input_ids"


@dataclass(frozen=True)
class Attack:
    """``margins`` of the first prediction over the next best, before and after each swap;
    ``swaps`` are (position, old id, new id); ``flipped`` whether the prediction changed."""

    margins: tuple[float, ...]
    swaps: tuple[tuple[int, int, int], ...]
    flipped: bool


class Adversary(Passes):
    """A search guided by the gradient."""

    @remembered
    def attack(self) -> Attack:
        """Replace one token after the other: the gradient of the margin at the vectors says which
        replacements lower it most, and the best of a few is kept."""
        probe = self.probe
        batch = probe.batch(1, probe.subject.sizes[1], "adversary")
        pool = probe.batch(min(8, probe.subject.most_rows), probe.subject.sizes[1], "candidates")
        with probe.running("adversary", grad=True) as subject:
            try:
                return _search(subject, batch, pool)
            except (NotApplicable, Blocked):
                raise
            except Exception as error:
                line = error_line(error)
                raise NotApplicable(f"no gradient can be taken in eval mode: {line}") from error


def _search(subject: Subject, batch: Batch, pool: Batch) -> Attack:
    with torch.no_grad():
        candidates = [t.flatten(0, 1) for t in read(subject, pool)[_SOURCE]]
        first = _read(subject, batch, batch)
    if first.shape[-1] < 2:
        raise NotApplicable("one logit a text: there is no other prediction")
    own = int(first[0].argmax())
    margins = [float(_margin(first, own)[0])]
    swaps: list[tuple[int, int, int]] = []
    ids = pool[_SOURCE].flatten()
    for _ in range(_ROUNDS):
        gains = _gains(subject, batch, candidates, own)
        for position in {p for p, _, _ in swaps} | ({len(gains) - 1} if subject.ends else set()):
            gains[position] = float("-inf")
        best = gains.flatten().topk(min(_TRIED, subject.most_rows, gains.numel())).indices
        places, chosen = best // gains.shape[1], ids[best % gains.shape[1]]
        tried = batch[_SOURCE].repeat(len(best), 1)
        tried[torch.arange(len(best)), places] = chosen
        with torch.no_grad():
            found = _margin(_read(subject, batch, batch.with_(input_ids=tried)), own)
        winner = int(found.argmin())
        place = int(places[winner])
        swaps.append((place, int(batch[_SOURCE][0, place]), int(chosen[winner])))
        margins.append(float(found[winner]))
        batch = batch.with_(input_ids=tried[winner : winner + 1])
        if margins[-1] < 0:
            break
    return Attack(tuple(margins), tuple(swaps), margins[-1] < 0)


def _gains(
    subject: Subject, batch: Batch, candidates: list[torch.Tensor], own: int
) -> torch.Tensor:
    """(T, C): by how much each candidate at each position lowers the margin, to first order."""
    with torch.no_grad():
        found = read(subject, batch)
    roles = tuple(role for role, tensors in found.items() for _ in tensors)
    vectors = [t.detach().requires_grad_() for tensors in found.values() for t in tensors]
    logits = Reader(batch, roles, _last(subject, batch)).logits(subject, vectors)
    sources = [v for role, v in zip(roles, vectors, strict=True) if role == _SOURCE]
    gradients = torch.autograd.grad(_margin(logits, own).sum(), sources, allow_unused=True)
    total = torch.zeros(sources[0].shape[1], len(candidates[0]), device=sources[0].device)
    for vector, gradient, candidate in zip(sources, gradients, candidates, strict=True):
        if gradient is not None:
            slopes = gradient[0].flatten(1)
            now = (slopes * vector[0].detach().flatten(1)).sum(1, keepdim=True)
            total += now - slopes @ candidate.flatten(1).T
    return total


def _read(subject: Subject, like: Batch, batch: Batch) -> torch.Tensor:
    """(N, V): the output whose prediction is attacked; roles that are not ids are those of
    ``like``, in as many rows."""
    rows = batch[_SOURCE].shape[0]
    inputs = {r: t.expand(rows, *t.shape[1:]).clone() for r, t in like.inputs.items()}
    given = like.with_(**{**inputs, _SOURCE: batch[_SOURCE]})
    logits = subject(given).logits
    last = _last(subject, given)
    return (logits if last is None else logits[:, last]).flatten(1)


def _last(subject: Subject, batch: Batch) -> int | None:
    if not each_token(subject):
        return None
    return batch.inputs.get("decoder_input_ids", batch.main).shape[1] - 1


def _margin(logits: torch.Tensor, own: int) -> torch.Tensor:
    """(N,): the logit of the first prediction over the largest other one."""
    others = logits.clone()
    others[:, own] = float("-inf")
    return logits[:, own] - others.amax(1)
