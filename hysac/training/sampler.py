"""Which quadruplets each training step sees: the same for a seed, wherever a run resumes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

Key = tuple[int, int]
"""Epoch and index of one item."""


class StepSampler(Sampler[list[Key]]):
    """The micro-batches of this process, from one step to another, across epochs.

    Each epoch is a new permutation and drops the rows that do not fill a step. A step's rows are the same
    however they are divided into processes and micro-batches.

    Args:
        size: number of items.
        batch_size: items of a micro-batch.
        accum_freq: micro-batches of a step, on each process.
        rank, world_size: this process's place.
        seed: of the permutations.
        start, stop: first step, and the one after the last.

    Raises:
        ValueError: there are fewer items than one step needs.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        accum_freq: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start: int = 0,
        stop: int = 0,
    ) -> None:
        self.size, self.batch_size, self.accum_freq = size, batch_size, accum_freq
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.start, self.stop = start, stop
        self.step_size = batch_size * accum_freq * world_size
        self.steps_per_epoch = size // self.step_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"the training set has {size} quadruplets, fewer than the {self.step_size} of one step: "
                f"batch_size {batch_size} x accum_freq {accum_freq} x {world_size} processes"
            )

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accum_freq

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = None, torch.empty(0)
        share = self.batch_size * self.accum_freq
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._order(epoch)
            first = (step % self.steps_per_epoch) * self.step_size + self.rank * share
            rows = order[first : first + share].tolist()
            for begin in range(0, share, self.batch_size):
                yield [(epoch, row) for row in rows[begin : begin + self.batch_size]]

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch, 0))
        return torch.randperm(self.size, generator=generator)


class SeededItems(Dataset[Any]):
    """A data set whose random augmentation depends only on the seed, the epoch and the item.

    So a resumed run sees the pixels that an uninterrupted one sees, with any number of workers.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        with _seeded(_mix(self.seed, epoch, index + 1)):
            return self.dataset[index]


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generators, and give them their states back; the GPU's are not touched."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
