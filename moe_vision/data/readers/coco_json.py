# SPDX-License-Identifier: Apache-2.0
"""Read a COCO annotation file; whatever is not as it should be is reported and left out."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moe_vision.data.readers.files import read_file
from moe_vision.data.readers.objects import Box
from moe_vision.data.readers.paths import printable

Id = int | float | str
Entry = dict[str, Any]
Report = Callable[[str, object], None]  # reason, detail


class COCOContent(NamedTuple):
    """What a COCO file holds, by id.

    Attributes:
        names: Names of categories, in the order of their ids.
        images: Entries of images; each has a `file_name`.
        annotations: Entries of annotations by the id of their image.
    """

    names: dict[Id, str]
    images: dict[Id, Entry]
    annotations: dict[Id, list[Entry]]


def read_coco(path: Path, report: Report) -> COCOContent:
    """Read a COCO file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no JSON, or lacks one of the lists images, annotations and categories.
    """
    content = _load(path)
    categories = sorted(_with_text(content, "categories", "name", report), key=lambda entry: _order(entry["id"]))
    images = {entry["id"]: entry for entry in _with_text(content, "images", "file_name", report)}
    annotations: dict[Id, list[Entry]] = defaultdict(list)
    for entry in _entries(content, "annotations", report):
        image = entry.get("image_id")
        if isinstance(image, Id) and image in images:
            annotations[image].append(entry)
        else:
            report("annotation of an unknown image", f"{place(entry)}: image {image!r}")
    return COCOContent({entry["id"]: printable(entry["name"]) for entry in categories}, images, annotations)


def place(annotation: Entry) -> str:
    """Name an annotation in reports."""
    return f"annotation {annotation.get('id')!r}"


def read_box(annotation: Entry) -> Box | None:
    """Convert the box of an annotation to xyxy; None if it is not four numbers."""
    try:
        left, top, width, height = map(float, annotation.get("bbox", ()))
    except (TypeError, ValueError, OverflowError):
        return None
    return left, top, left + width, top + height


def read_area(annotation: Entry) -> float | None:
    """Return the area of an annotation in pixels, which decides whether it is small, medium or large; None if none."""
    area = annotation.get("area")
    return float(area) if isinstance(area, int | float) and 0 < area < 2**53 else None  # refuses nan too


def _load(path: Path) -> Entry:
    try:
        content = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:  # RecursionError: nested without end
        raise ValueError(f"annotations must be a JSON file, got {str(path)!r}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"annotations must be a COCO JSON file, got {str(path)!r} with a {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"annotations must be a COCO JSON file with a list {key!r}, got {str(path)!r} without")
    return content


def _entries(content: Entry, key: str, report: Report) -> Iterator[Entry]:
    """Yield the entries of a list whose ids, where they have any, are new."""
    seen: set[Id] = set()
    for number, entry in enumerate(content[key]):
        if not isinstance(entry, dict):
            report(f"broken entry in {key}", f"{key}[{number}]")
            continue
        identity = entry.get("id")
        if isinstance(identity, Id):
            if identity in seen:
                report(f"duplicate id in {key}", identity)
                continue
            seen.add(identity)
        yield entry


def _with_text(content: Entry, key: str, text: str, report: Report) -> Iterator[Entry]:
    """Yield the entries of a list that have an id and a text."""
    for entry in _entries(content, key, report):
        if isinstance(entry.get("id"), Id) and isinstance(entry.get(text), str):
            yield entry
        else:
            report(f"entry in {key} without id or {text}", entry.get("id", ""))


def _order(identity: Id) -> tuple[bool, Id]:
    return isinstance(identity, str), identity
