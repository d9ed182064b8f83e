# SPDX-License-Identifier: Apache-2.0
"""Samples that depend on a seed, an epoch and an index alone, however many workers prepare them."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch.utils.data import Dataset

from moe_vision.data.samples import Sample


def derive_seed(*numbers: int) -> int:
    """Mix non-negative numbers into one seed, so that neighbouring numbers give unrelated random streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class SeededPipeline(Dataset[Sample], ABC):
    """A data set whose random numbers are those of (seed, epoch, index); torch's global state stays as it was.

    Args:
        seed: Seed of all its random numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Make a sample, with torch's random numbers."""

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch: other random numbers."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also reseed the GPUs, and those are not forked here.
            torch.default_generator.manual_seed(derive_seed(self.seed, self.epoch, index))
            return self.sample(index)
