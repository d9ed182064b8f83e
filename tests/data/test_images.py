# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moe_vision.data import read_image
from moe_vision.data.images import image_size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_any_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert (image.shape, image.dtype) == ((3, 4, 6), torch.uint8)
    assert image.unique().tolist() == [255]
    assert image_size(tmp_path / "image.png") == (4, 6)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("read", [read_image, image_size])
def test_errors_name_the_file(tmp_path: Path, read: object) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"path must be a readable image, got '.*text.jpg'"):
        read(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"absent.jpg"):
        read(tmp_path / "absent.jpg")
