# SPDX-License-Identifier: Apache-2.0
"""Read one Pascal VOC annotation file with the standard library, refusing document type and entity declarations."""

from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from moe_vision.data.readers.files import MAX_ANNOTATION_BYTES, read_file
from moe_vision.data.readers.objects import Box, LabelledObject

MAX_DEPTH = 100


class VOCAnnotation(NamedTuple):
    """What one annotation file says: the image's file name (empty if it has none) and the objects."""

    filename: str
    objects: list[LabelledObject]


def read_annotation(path: Path) -> VOCAnnotation:
    """Read one annotation file.

    Coordinates are taken as they are written, as continuous pixel positions from 0. Objects marked difficult count
    like all others; parts of objects are not read.

    Raises:
        OSError: The file can not be read.
        ValueError: The file is too large or too deep, is not well-formed XML, or declares a document type (by which a
            small file can expand to gigabytes).
    """
    root = _parse(read_file(path, MAX_ANNOTATION_BYTES))
    objects = [LabelledObject((item.findtext("name") or "").strip(), _box(item)) for item in root.findall("object")]
    return VOCAnnotation((root.findtext("filename") or "").strip(), objects)


def _parse(data: bytes) -> Element:
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:  # no annotation is
            raise ValueError(f"elements must be nested at most {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: unknown encoding
        raise ValueError(str(error)) from error
    return builder.close()


def _refuse_doctype(*_: object) -> None:
    raise ValueError("document type declarations are not accepted")


def _box(item: Element) -> Box | None:
    try:
        left, top, right, bottom = (float(item.findtext(f"bndbox/{side}", "")) for side in _SIDES)
    except ValueError:
        return None
    return left, top, right, bottom


_SIDES = ("xmin", "ymin", "xmax", "ymax")
