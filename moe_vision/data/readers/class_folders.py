# SPDX-License-Identifier: Apache-2.0
"""Classification data in folders: each sub-folder is a class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_vision.data.readers.classification_reader import ClassificationReader, ClassifiedImage
from moe_vision.data.readers.paths import printable
from moe_vision.data.readers.reader import CACHE_BYTES


class ClassFolders(ClassificationReader):
    """Images in a folder for each class; whatever is wrong with a file is reported and the rest is used.

    All image headers are read at construction. Dropped and reported there: broken images, files that are no images by
    their name, files outside of the classes' folders, folders of an unknown class. Hidden files are passed over.

    A sample is an image (3, H, W), uint8, and a dict of `label` and `image_id`, its index. An image whose header is
    fine but whose pixels can not be decoded is reported and comes as uniform grey, with its label.

    Args:
        root: The folder that holds the classes' folders, which may hold folders again.
        classes: Class names in the order of their labels; None takes the sorted names of the folders. Give the training
            set's `classes` to the evaluation set.
        cache: Decode images at construction, up to 1 GiB of pixels, and keep them.

    Attributes:
        classes: Class names; a label is an index into it.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No image is usable.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from moe_vision.data import ClassFolders
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         Path(folder, name).mkdir()
        ...         Image.new("RGB", (64, 48)).save(f"{folder}/{name}/a.png")
        ...     pets = ClassFolders(folder)
        ...     pets.classes, pets[1][1]
        (('cat', 'dog'), {'label': 1, 'image_id': 1})
    """

    def __init__(self, root: str | Path, *, classes: Sequence[str] | None = None, cache: bool = True) -> None:
        super().__init__()
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of classes, got {str(root)!r}")
        visible = [path for path in sorted(self.root.iterdir()) if not path.name.startswith(".")]
        folders = [path for path in visible if path.is_dir()]
        for path in visible:
            if not path.is_dir():
                self._report(path, "file outside of the folders of classes")
        names = list(dict.fromkeys(printable(path.name) for path in folders))
        self._take(
            [image for folder in folders for image in self._read(folder)],
            names if classes is None else classes,
            f"root must hold at least one usable image in a folder of its class, got {str(root)!r}",
            CACHE_BYTES if cache else 0,
        )

    def _read(self, folder: Path) -> Iterator[ClassifiedImage]:
        paths = self._images_below(folder)
        if not paths:
            self._report(folder, "class without images")
        for path in paths:
            if image := self._open(path):
                yield ClassifiedImage(image, printable(folder.name), folder)
