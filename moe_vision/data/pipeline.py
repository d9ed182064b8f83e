# SPDX-License-Identifier: Apache-2.0
"""From a data set of images to what a detector trains on: square float images and plain tensors, reproducibly."""

import torch
from torch import Tensor

from moe_vision.data.affine import random_affine
from moe_vision.data.copy_paste import copy_paste
from moe_vision.data.mixup import mixup
from moe_vision.data.mosaic import mosaic, scale_jitter
from moe_vision.data.samples import DetectionSource, Sample
from moe_vision.data.seeded import SeededPipeline
from moe_vision.data.transforms import eval_transform, train_transform


class DetectionPipeline(SeededPipeline):
    """Letterboxed samples for evaluation, or augmented ones for training.

    To augment, four images are laid out as a mosaic, or one by scale jitter, which vary size and place; objects are
    pasted onto that; it is rotated and sheared, blended with another made likewise, flipped and changed in colour.

    A sample depends on (seed, epoch, index) alone, so any number of loader workers gives the same samples, and torch's
    global random state is left as it was.

    Args:
        source: Data set of images, boxes and perhaps masks, such as `VOCDetection` or `ShapeScenes`.
        image_size: Side of the square images in pixels.
        augment: Augment (training) or only letterbox (evaluation).
        mosaic: Probability of a mosaic of four images; otherwise one image with scale jitter.
        mosaic_epochs: Epochs from the first on with mosaic and mixup; all if None.
        mixup: Probability of a blend with another picture made likewise, see `mixup`.
        copy_paste: Probability of pasting objects of another image, see `copy_paste`; needs masks.
        rotate: Largest rotation in degrees, in [0, 180], see `random_affine`.
        shear: Largest shear in degrees, in [0, 45].
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        seed: Seed of the augmentation.

    Shape:
        - Output: image (3, image_size, image_size), float32 in [0, 1], and a target: `boxes` (N, 4), xyxy in pixels of
          that square, `labels` (N,), `image_id`, the index, and `size`, the (height, width) of the source's image, for
          `undo_letterbox` (it says nothing useful about an augmented sample); if the source has masks, also `masks`
          (N, image_size, image_size), bool

    Raises:
        ValueError: ``copy_paste`` is asked for, and the source has no masks.

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
        mixup: float = 0.0,
        copy_paste: float = 0.0,
        rotate: float = 0.0,
        shear: float = 0.0,
        hflip: float = 0.5,
        vflip: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if augment and copy_paste > 0 and len(source) and "masks" not in source[0][1]:
            raise ValueError(f"copy_paste must be 0 for data without masks, got {copy_paste}; open the data with masks")
        self.source = source
        self.image_size = image_size
        self.augment = augment
        self.mosaic = mosaic
        self.mosaic_epochs = mosaic_epochs
        self.mixup = mixup
        self.copy_paste = copy_paste
        self.rotate = rotate
        self.shear = shear
        self.transform = train_transform(hflip=hflip, vflip=vflip) if augment else eval_transform(image_size)

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """Make the sample of one image, or of several."""
        image, target = self.source[index]
        size = tuple(image.shape[-2:])
        if self.augment:
            image, target = self._augment((image, target))
        image, target = self.transform(image, target)
        objects = {key: target[key].as_subclass(Tensor) for key in ("boxes", "labels", "masks") if key in target}
        return image.as_subclass(Tensor).contiguous(), {**objects, "image_id": index, "size": size}

    def _augment(self, sample: Sample) -> Sample:
        picture = self._compose(sample)
        if not self._closed() and _happens(self.mixup):
            picture = mixup(picture, self._compose(self._others(1)[0]))
        return picture

    def _compose(self, sample: Sample) -> Sample:
        picture = self._lay_out(sample)
        if _happens(self.copy_paste):
            picture = copy_paste(picture, scale_jitter(self._others(1)[0], self.image_size))
        if self.rotate or self.shear:
            picture = random_affine(picture, rotate=self.rotate, shear=self.shear)
        return picture

    def _lay_out(self, sample: Sample) -> Sample:
        if torch.rand(()) >= (0.0 if self._closed() else self.mosaic):
            return scale_jitter(sample, self.image_size)
        return mosaic([sample, *self._others(3)], self.image_size)

    def _others(self, count: int) -> list[Sample]:
        return [self.source[index] for index in torch.randint(len(self.source), (count,)).tolist()]

    def _closed(self) -> bool:
        return self.mosaic_epochs is not None and self.epoch >= self.mosaic_epochs


def _happens(probability: float) -> bool:
    """Decide with torch's random numbers; an augmentation that is off draws none, and leaves those of the others."""
    return probability > 0 and torch.rand(()).item() < probability
