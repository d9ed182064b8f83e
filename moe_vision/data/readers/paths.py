# SPDX-License-Identifier: Apache-2.0
"""File names that a data set gives: they must stay inside it."""

from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from moe_vision.data.readers.files import read_text


def stays_inside(name: str) -> bool:
    """Tell whether a relative file name leads nowhere out of the folder it is relative to.

    Examples:
        >>> stays_inside("train/a.jpg"), stays_inside("../a.jpg"), stays_inside("C:/a.jpg")
        (True, False, False)
    """
    path = PureWindowsPath(name)  # knows both kinds of slash, and drives
    return not path.anchor and ".." not in path.parts


def read_split(folder: Path, split: str) -> Iterator[str]:
    """Yield the names in the lists `folder/<part>.txt` that `split` joins by "+", each name once.

    Raises:
        FileNotFoundError: There is no list of that name.
    """
    names: dict[str, None] = {}
    for part in split.split("+"):
        path = folder / f"{part}.txt"
        if not path.is_file():
            existing = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
            raise FileNotFoundError(f"split must name a list in {folder} (existing: {existing}), got {part!r}")
        names.update(dict.fromkeys(line.strip() for line in read_text(path).splitlines()))
    return (name for name in names if name)


def printable(name: object) -> str:
    """Replace what a file name has that is not UTF-8, which would break whatever prints it, by question marks."""
    return str(name).encode("utf-8", errors="replace").decode()
