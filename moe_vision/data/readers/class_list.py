# SPDX-License-Identifier: Apache-2.0
"""Classification data in a list: a text or CSV file with the path and the class of each image."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_vision.data.readers.classification_reader import ClassificationReader, ClassifiedImage
from moe_vision.data.readers.files import read_text
from moe_vision.data.readers.reader import CACHE_BYTES

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name")
CLASS_COLUMNS = ("label", "class", "class_name", "category")

Row = tuple[int, str, str]  # number of the line, path, class name


class ClassList(ClassificationReader):
    """Images that a file lists with their classes; whatever is wrong with a line is reported and the rest is used.

    In a text file a line is a path, spaces and a class name without spaces. A file that ends in `.csv` has a header
    with a column named path, image, file, filename or file_name and one named label, class, class_name or category;
    without such a header the first two columns are these. Classes that are numbers are names too.

    All image headers are read at construction. Dropped and reported there: lines without both, paths that were
    listed before or lead out of `images`, missing and broken images, unknown classes. Samples are as in `ClassFolders`.

    Args:
        path: The list.
        images: The folder to which its paths are relative; None takes the folder of the list.
        classes: Class names in the order of their labels; None takes the names found, sorted, numbers by their value.
            Give the training set's `classes` to the evaluation set.
        cache: Decode images at construction, up to 1 GiB of pixels, and keep them.

    Attributes:
        classes: Class names; a label is an index into it.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: It is no CSV file by its content, or no image is usable.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from moe_vision.data import ClassList
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/a.png")
        ...     _ = Path(folder, "train.txt").write_text("a.png dog")
        ...     ClassList(f"{folder}/train.txt").summary()
        '1 images, 1 classes, 0 problems'
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        classes: Sequence[str] | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.root = self.path.parent if images is None else Path(images)
        classified = list(self._classified())
        self._take(
            classified,
            _sorted({item.name for item in classified}) if classes is None else classes,
            f"path must list at least one usable image, got {str(path)!r}",
            CACHE_BYTES if cache else 0,
        )

    def _classified(self) -> Iterator[ClassifiedImage]:
        seen: set[str] = set()
        for number, name, label in self._rows():
            if not name or not label:
                self._report(self.path, "line without path and class", f"line {number}")
            elif name in seen:
                self._report(self.path, "image listed before", f"line {number}: {name}")
            elif image := self._open_inside(self.root, name, self.path):
                yield ClassifiedImage(image, label, self.path)
            seen.add(name)

    def _rows(self) -> Iterator[Row]:
        lines = read_text(self.path).splitlines()
        if self.path.suffix.lower() == ".csv":
            try:
                yield from _csv_rows(lines)
            except csv.Error as error:
                raise ValueError(f"path must be a CSV file, got {str(self.path)!r}: {error}") from error
            return
        for number, line in enumerate(lines, 1):
            if words := line.rsplit(maxsplit=1):
                yield number, words[0], words[1] if len(words) == 2 else ""


def _csv_rows(lines: Sequence[str]) -> Iterator[Row]:
    rows = [(number, row) for number, row in enumerate(csv.reader(lines), 1) if row]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    path = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    label = next((header.index(name) for name in CLASS_COLUMNS if name in header), None)
    if path is None or label is None:
        path, label = 0, 1
    else:
        rows = rows[1:]
    for number, row in rows:
        cells = [cell.strip() for cell in row] + [""] * (max(path, label) + 1)
        yield number, cells[path], cells[label]


def _sorted(names: set[str]) -> list[str]:
    numbers = all(name.isdecimal() and len(name) < 20 for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)
