# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from moe_vision.data import read_image, to_image
from moe_vision.data.images import image_size
from moe_vision.runtime.images import read_pixels


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


ORIENTATION = 0x0112  # of EXIF
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_everywhere(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert expected.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
    assert np.array_equal(read_pixels(path), expected)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)
    assert torch.equal(to_image(path), read_image(path))
    assert image_size(path) == expected.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # so says Pillow
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_data_turns_nothing(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "broken.jpg", exif=exif)
    assert read_image(tmp_path / "broken.jpg").shape == (3, 4, 6)
    assert image_size(tmp_path / "broken.jpg") == (4, 6)
