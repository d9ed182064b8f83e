# SPDX-License-Identifier: Apache-2.0
"""From a data set of classified images to what a classifier trains on."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from moe_vision.data.samples import ClassificationSource, Sample
from moe_vision.data.seeded import SeededPipeline
from moe_vision.data.transforms import Transform, classify_train_transform, classify_transform


class ClassificationPipeline(SeededPipeline):
    """The centre of each image for evaluation, or a random crop, flipped, changed and partly erased, for training.

    A sample depends on (seed, epoch, index) alone, so any number of loader workers gives the same samples. Mixup and
    cutmix mix it with another image of the data set, not of its batch, which depends on more than that.

    Args:
        source: Data set of images and labels, such as `ClassFolders`.
        image_size: Side of the square images in pixels.
        augment: Augment (training) or only resize and crop (evaluation).
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        auto_augment: Random changes of colour and shape: ``trivial`` (TrivialAugment, arXiv:2103.10158), ``rand``
            (RandAugment, arXiv:1909.13719) or ``none``.
        erasing: Probability of erasing a rectangle (arXiv:1708.04896).
        mixup: Blend each image with another (arXiv:1710.09412) by a ratio from Beta(mixup, mixup); 0 is off.
        cutmix: Fill a rectangle of each image from another (arXiv:1905.04899), of a share of the area from
            Beta(cutmix, cutmix); 0 is off. With both mixup and cutmix each image sees one of them, by chance.
        seed: Seed of the augmentation.

    Shape:
        - Output: image (3, image_size, image_size), float32 in [0, 1], and ``{"label": int, "image_id": int}``;
          with mixup or cutmix ``label`` is the share of each class, (num_classes,), float32

    Raises:
        ValueError: If ``auto_augment`` is none of these.

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

    def __init__(
        self,
        source: ClassificationSource,
        image_size: int,
        *,
        augment: bool = False,
        hflip: float = 0.5,
        vflip: float = 0.0,
        auto_augment: str = "trivial",
        erasing: float = 0.25,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.source = source
        self.mixings: list[Transform] = []
        if not augment:
            self.transform = classify_transform(image_size)
            return
        self.transform = classify_train_transform(
            image_size, hflip=hflip, vflip=vflip, auto_augment=auto_augment, erasing=erasing
        )
        for mixing, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)):
            if alpha > 0:
                self.mixings.append(mixing(alpha=alpha, num_classes=len(source.classes)))

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """Make the sample of one image, or of two."""
        image, label = self._transformed(index)
        if self.mixings:
            other, other_label = self._transformed(int(torch.randint(len(self.source), ())))
            pair, labels = torch.stack([image, other]), torch.tensor([label, other_label])
            (image, _), (label, _) = v2.RandomChoice(self.mixings)(pair, labels)
        return image.contiguous(), {"label": label, "image_id": index}

    def _transformed(self, index: int) -> tuple[Tensor, Any]:
        image, target = self.source[index]
        return self.transform(image.as_subclass(Tensor)), target["label"]
