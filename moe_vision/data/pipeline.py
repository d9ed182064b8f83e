# SPDX-License-Identifier: Apache-2.0
"""From a data set of images to what a detector trains on: square float images and plain tensors, reproducibly."""

import torch
from torch import Tensor

from moe_vision.data.mosaic import mosaic, scale_jitter
from moe_vision.data.samples import DetectionSource, Sample
from moe_vision.data.seeded import SeededPipeline
from moe_vision.data.transforms import eval_transform, train_transform


class DetectionPipeline(SeededPipeline):
    """Letterboxed samples for evaluation, or augmented ones (mosaic, scale jitter, flips, colour) for training.

    A sample depends on (seed, epoch, index) alone, so any number of loader workers gives the same samples, and torch's
    global random state is left as it was.

    Args:
        source: Data set of images, boxes and perhaps masks, such as `VOCDetection` or `ShapeScenes`.
        image_size: Side of the square images in pixels.
        augment: Augment (training) or only letterbox (evaluation).
        mosaic: Probability of a mosaic of four images; otherwise one image with scale jitter.
        mosaic_epochs: Epochs from the first on with mosaic; all if None.
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        seed: Seed of the augmentation.

    Shape:
        - Output: image (3, image_size, image_size), float32 in [0, 1], and a target: `boxes` (N, 4), xyxy in pixels of
          that square, `labels` (N,), `image_id`, the index, and `size`, the (height, width) of the source's image, for
          `undo_letterbox` (it says nothing useful about an augmented sample); if the source has masks, also `masks`
          (N, image_size, image_size), bool

    Examples:
        >>> from moe_vision.data import ShapeScenes
        >>> pipeline = DetectionPipeline(ShapeScenes(8), image_size=128, augment=True)
        >>> pipeline.set_epoch(1)
        >>> image, target = pipeline[3]
        >>> image.shape, target["image_id"], target["size"]
        (torch.Size([3, 128, 128]), 3, (160, 160))
    """

    def __init__(
        self,
        source: DetectionSource,
        image_size: int,
        *,
        augment: bool = False,
        mosaic: float = 1.0,
        mosaic_epochs: int | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.source = source
        self.image_size = image_size
        self.augment = augment
        self.mosaic = mosaic
        self.mosaic_epochs = mosaic_epochs
        self.transform = train_transform(hflip=hflip, vflip=vflip) if augment else eval_transform(image_size)

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """Make the sample of one image, or of four."""
        image, target = self.source[index]
        size = tuple(image.shape[-2:])
        if self.augment:
            image, target = self._compose((image, target))
        image, target = self.transform(image, target)
        objects = {key: target[key].as_subclass(Tensor) for key in ("boxes", "labels", "masks") if key in target}
        return image.as_subclass(Tensor).contiguous(), {**objects, "image_id": index, "size": size}

    def _compose(self, sample: Sample) -> Sample:
        closed = self.mosaic_epochs is not None and self.epoch >= self.mosaic_epochs
        if torch.rand(()) >= (0.0 if closed else self.mosaic):
            return scale_jitter(sample, self.image_size)
        others = torch.randint(len(self.source), (3,)).tolist()
        return mosaic([sample, *(self.source[index] for index in others)], self.image_size)
