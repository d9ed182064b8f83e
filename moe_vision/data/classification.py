# SPDX-License-Identifier: Apache-2.0
"""From a data set of classified images to what a classifier trains on."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from moe_vision.data.samples import ClassificationSource, Sample
from moe_vision.data.seeded import SeededPipeline
from moe_vision.data.transforms import Transform, classify_transform


class ClassificationPipeline(SeededPipeline):
    """The centre of each image for evaluation, or a random crop, flipped, changed and partly erased, for training.

    A sample depends on (seed, epoch, index) alone, so any number of loader workers gives the same samples.

    Args:
        source: Data set of images and labels, such as `ClassFolders`.
        image_size: Side of the square images in pixels.
        augment: Augment (training) or only resize and crop (evaluation).
        seed: Seed of the augmentation.

    Shape:
        - Output: image (3, image_size, image_size), float32 in [0, 1], and ``{"label": int, "image_id": int}``

    Examples:
        >>> import torch
        >>> from moe_vision.data import ClassificationPipeline
        >>> class Grey:
        ...     classes = ("grey",)
        ...     def __len__(self):
        ...         return 1
        ...     def __getitem__(self, index):
        ...         return torch.full((3, 50, 40), 128, dtype=torch.uint8), {"label": 0, "image_id": index}
        >>> image, target = ClassificationPipeline(Grey(), 32, augment=True)[0]
        >>> image.shape, target
        (torch.Size([3, 32, 32]), {'label': 0, 'image_id': 0})
    """

    def __init__(self, source: ClassificationSource, image_size: int, *, augment: bool = False, seed: int = 0) -> None:
        super().__init__(seed)
        self.source = source
        self.transform = _train_transform(image_size) if augment else classify_transform(image_size)

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """Make the sample of one image."""
        image, target = self.source[index]
        image = self.transform(image.as_subclass(Tensor))
        return image.contiguous(), {"label": target["label"], "image_id": index}


def _train_transform(size: int) -> Transform:
    steps = [
        v2.RandomResizedCrop(size, scale=(0.25, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.TrivialAugmentWide(),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(0.25),
    ]
    return v2.Compose(steps)  # type: ignore[no-any-return]
