# SPDX-License-Identifier: Apache-2.0
"""Text files of a run are written whole or not at all: a run that is killed meanwhile leaves the previous ones."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file, or leave what it held.

    Args:
        path: The file; its folder must exist.
        text: What it will hold.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from moe_vision.train.files import write_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "settings.json"), "{}")
        ...     [path.name for path in Path(folder).iterdir()]
        ['settings.json']
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
