# SPDX-License-Identifier: Apache-2.0
"""Settings of a run: their ranges."""

import pytest

from moe_vision.train import TrainSettings


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("epochs", 0, "at least 1"),
        ("image_size", 100, "a multiple of 32"),
        ("image_size", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("eval_every", 0, "at least 1"),
        ("warmup_epochs", -1, "at least 0"),
        ("close_mosaic", -1, "at least 0"),
        ("num_workers", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("balance", -0.1, "at least 0"),
        ("lr", 0.0, "above 0"),
        ("lr", float("nan"), "above 0"),
        ("clip_norm", 0.0, "above 0"),
        ("mosaic", 1.5, r"in \[0, 1\]"),
        ("mixup", 1.5, r"in \[0, 1\]"),
        ("copy_paste", -0.1, r"in \[0, 1\]"),
        ("hflip", 2.0, r"in \[0, 1\]"),
        ("vflip", -1.0, r"in \[0, 1\]"),
        ("erasing", 1.1, r"in \[0, 1\]"),
        ("cutmix", float("nan"), r"in \[0, 1\]"),
        ("rotate", 181.0, r"in \[0, 180\]"),
        ("shear", 46.0, r"in \[0, 45\]"),
        ("auto_augment", "auto", "trivial, rand or none"),
        ("ema_decay", -0.5, r"in \[0, 1\]"),
        ("balance_kind", "even", "one of switch, mse, cv2, information"),
        ("dispatch", "sparse", "one of auto, dense, grouped, per_image, static"),
        ("precision", "fp8", "no, bf16 or fp16"),
    ],
)
def test_ranges(name: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {rule}, got {value}"):
        TrainSettings(**{name: value})
