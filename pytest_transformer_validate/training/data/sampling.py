"""Which examples make which batch: decided by seed, epoch and position alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator


class BatchOrder(Sampler[list[int]]):
    """Lists of indices, one a batch of this rank.

    A global batch is ``world * batch_size`` examples of one order that all ranks share; this rank
    takes every ``world``-th from ``rank`` on. Every rank gives the same number of batches: in the
    last one of an epoch a rank may have none, then ``spare`` says so and one example stands in
    whose labels must not count.

    Args:
        size: number of examples.
        batch_size: examples a rank and batch.
        seed: of the order; with the epoch it decides everything.
        shuffle: else the order is 0, 1, 2...
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size, self.batch_size = size, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world = rank, world
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return math.ceil(self.size / (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        start, self.start = self.start, 0
        for at in range(start, len(self)):
            width = self.batch_size * self.world
            whole = order[at * width : (at + 1) * width]
            yield whole[self.rank :: self.world] or whole[:1]

    def spare(self, at: int) -> bool:
        """Whether batch ``at`` of an epoch holds nothing of this rank's own."""
        return self.size - at * self.batch_size * self.world <= self.rank

    def order(self) -> list[int]:
        """The indices of this epoch."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        return torch.randperm(self.size, generator=generator).tolist()

    def state_dict(self, position: int) -> dict[str, Any]:
        """Where an epoch stands after ``position`` batches."""
        return {"epoch": self.epoch, "position": position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there: the next pass starts behind that many batches."""
        self.epoch, self.start, self.seed = state["epoch"], state["position"], state["seed"]
