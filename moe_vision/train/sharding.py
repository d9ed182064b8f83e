# SPDX-License-Identifier: Apache-2.0
"""Each process of a run takes its share of the very batches that one process would see."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler

from moe_vision.data import build_loader
from moe_vision.data.loader import Batch
from moe_vision.data.samples import Sample
from moe_vision.data.seeded import SeededPipeline
from moe_vision.train.settings import TrainSettings


def create_loader(pipeline: SeededPipeline, settings: TrainSettings, accelerator: Accelerator) -> Any:
    """Return a loader of this process's share of the batches of a run, on its device.

    Args:
        pipeline: Where the samples come from.
        settings: Their ``batch_size`` is that of the share.
        accelerator: It knows the processes.
    """
    size, workers = settings.batch_size * accelerator.num_processes, settings.num_workers
    loader = build_loader(pipeline, size, shuffle=True, num_workers=workers, seed=settings.seed)
    loader = shard_loader(loader, accelerator.process_index, accelerator.num_processes, settings.image_size)
    # Not by accelerator.prepare, which would fill up the last batch with images a second time.
    return prepare_data_loader(loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True)


class RankBatches(Sampler[list[int]]):
    """A rank's contiguous share of each batch; shares differ by one image at most.

    No image is left out or taken twice, and all ranks see as many batches. In a batch smaller than the number of ranks
    the last ones have no image.

    Args:
        batches: The whole batches, the same on all ranks.
        rank: This rank.
        ranks: Number of ranks.

    Examples:
        >>> from moe_vision.train.sharding import RankBatches
        >>> [list(RankBatches([[5, 1, 4, 2], [3]], rank, ranks=2)) for rank in range(2)]
        [[[5, 1], [3]], [[4, 2], []]]
    """

    def __init__(self, batches: Any, rank: int, ranks: int) -> None:
        self.batches = batches
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [int(index) for index in np.array_split(batch, self.ranks)[self.rank]]


def shard_loader(loader: DataLoader[Sample], rank: int, ranks: int, image_size: int) -> DataLoader[Sample]:
    """Return a loader of a rank's shares of a loader's batches, see `RankBatches`.

    Args:
        loader: Loader of whole batches, the same on all ranks.
        rank: This rank.
        ranks: Number of ranks.
        image_size: Side of the images in pixels.

    Examples:
        >>> from moe_vision.data import DetectionPipeline, ShapeScenes, build_loader
        >>> from moe_vision.train.sharding import shard_loader
        >>> whole = build_loader(DetectionPipeline(ShapeScenes(5), 64), batch_size=4)
        >>> [images.shape[0] for images, targets in shard_loader(whole, rank=1, ranks=2, image_size=64)]
        [2, 0]
    """
    if ranks == 1:
        return loader
    return DataLoader(
        loader.dataset,
        batch_sampler=RankBatches(loader.batch_sampler, rank, ranks),
        num_workers=loader.num_workers,
        collate_fn=partial(_collate_share, collate=loader.collate_fn, image_size=image_size),
        generator=loader.generator,
    )


def _collate_share(samples: list[Sample], collate: Callable[[Any], Batch], image_size: int) -> Batch:
    return collate(samples) if samples else (torch.zeros(0, 3, image_size, image_size), [])
