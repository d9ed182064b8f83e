# SPDX-License-Identifier: Apache-2.0
"""Read files that a data set brings: regular ones alone, and no more of them than an annotation can be."""

from pathlib import Path

MAX_ANNOTATION_BYTES = 2**24  # of the annotation of one image: some hundred thousand boxes


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Read a file that exists and is neither a pipe, which would be waited for, nor a device, which has no end.

    Args:
        path: The file.
        max_bytes: Most bytes that it may have, any number if None.

    Raises:
        OSError: It can't be read.
        ValueError: It is no regular file, or larger.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"it must be a regular file, got {str(path)!r}")
    if max_bytes is not None and path.stat().st_size > max_bytes:
        raise ValueError(f"it must have at most {max_bytes} bytes, got {path.stat().st_size}")
    return path.read_bytes()


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """Read a file as UTF-8; what is not becomes question marks.

    Raises:
        OSError: It can't be read.
        ValueError: As of `read_file`.
    """
    return read_file(path, max_bytes).decode("utf-8-sig", errors="replace")
