# SPDX-License-Identifier: Apache-2.0
"""Batches of samples: images stacked, targets in a list, an order that depends on seed and epoch alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from moe_vision.data.samples import Sample, Target
from moe_vision.data.seeded import SeededPipeline, derive_seed

Batch = tuple[Tensor, list[Target]]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack images of one size and list their targets.

    Shape:
        - Input: B samples of (3, S, S)
        - Output: images (B, 3, S, S) and B targets

    Examples:
        >>> images, targets = collate([(torch.zeros(3, 32, 32), {}), (torch.ones(3, 32, 32), {})])
        >>> images.shape, len(targets)
        (torch.Size([2, 3, 32, 32]), 2)
    """
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


class EpochShuffle(Sampler[int]):
    """A random order that depends on a seed and on the pipeline's epoch, so that epochs differ and can be repeated."""

    def __init__(self, pipeline: SeededPipeline, seed: int) -> None:
        self.pipeline = pipeline
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pipeline)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.pipeline.epoch))
        return iter(torch.randperm(len(self), generator=generator).tolist())


def build_loader(
    pipeline: SeededPipeline,
    batch_size: int,
    *,
    shuffle: bool = False,
    num_workers: int = 0,
    seed: int = 0,
    drop_last: bool = False,
) -> "DataLoader[Sample]":
    """Build a loader whose batches depend on the seeds and on the pipeline's epoch, not on the number of workers.

    Call `pipeline.set_epoch` before each epoch. Torch's global random state is neither read nor moved.

    Args:
        pipeline: Where the samples come from.
        batch_size: Images a batch.
        shuffle: Visit the samples in another random order each epoch.
        num_workers: Processes that prepare samples; 0 prepares them in this one.
        seed: Seed of the order.
        drop_last: Leave out a last batch that is not full.

    Examples:
        >>> from moe_vision.data import DetectionPipeline, ShapeScenes
        >>> loader = build_loader(DetectionPipeline(ShapeScenes(6), 64), batch_size=4, shuffle=True)
        >>> [len(targets) for images, targets in loader]
        [4, 2]
    """
    return DataLoader(
        pipeline,
        batch_size=batch_size,
        sampler=EpochShuffle(pipeline, seed) if shuffle else None,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=drop_last,
        # Workers hold a copy of the pipeline. They start anew each epoch, so that set_epoch reaches them.
        persistent_workers=False,
        # The loader draws a seed for its workers; without a generator of its own it would move the global one.
        generator=torch.Generator().manual_seed(seed),
    )
