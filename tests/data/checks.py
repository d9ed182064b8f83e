# SPDX-License-Identifier: Apache-2.0
"""What tests of readers share: image files, and the check that one problem was reported."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_vision.data import Problem
from moe_vision.data.readers.reader import ImageReader


def check_problem(data: ImageReader, file: Path | str, reason: str, caplog: pytest.LogCaptureFixture) -> Problem:
    """The one problem of a data set: of this file and kind, and logged once with the file's name."""
    (problem,) = data.problems
    assert (problem.file, problem.reason) == (str(file), reason)
    assert [str(file) in message for message in caplog.messages] == [True]
    assert f"1 problem (1 {reason})" in data.summary()
    return problem


def save_image(path: Path, width: int = 64, height: int = 48) -> Path:
    """Noise, so that a truncated file lacks pixels; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def huge_png(path: Path, side: int = 60_000) -> Path:
    """A PNG of a few bytes whose header promises 3.6 thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + b"\0\0\0\0IEND\xaeB`\x82")
    return path


# Bad image files, by what they hold.
BROKEN_IMAGES = {"empty": b"", "text": b"not an image", "cut header": b"\xff\xd8\xff\xe0"}
ESCAPES = ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "C:\\secret.png"]
