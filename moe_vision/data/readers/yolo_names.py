# SPDX-License-Identifier: Apache-2.0
"""Class names of a YOLO folder: the entry `names` of its `data.yaml`, read without a YAML library, or `classes.txt`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_vision.data.readers.files import MAX_ANNOTATION_BYTES, read_text

# A name, plain or quoted, after its number if it has one. What YAML could read differently does not match.
_NAME = re.compile(r"""(?:(\d+)\s*:\s+)?(?:"([^"\\]*)"|'([^']*)'|([^\s"'\[\]{}&*!|>%@`#,:?-][^"\[\]{}#,:]*))""")


def read_names(root: Path) -> tuple[str, ...] | None:
    """Read the class names of a folder; None if it has neither `data.yaml` nor `classes.txt`.

    Raises:
        ValueError: The file gives none, or in a form that `parse_names` does not read.
    """
    for name, parse in (("data.yaml", parse_names), ("classes.txt", _one_a_line)):
        path = root / name
        if path.is_file():
            try:
                return parse(read_text(path, MAX_ANNOTATION_BYTES))
            except ValueError as error:
                raise ValueError(f"{path}: {error}; give classes instead") from error
    return None


def parse_names(text: str) -> tuple[str, ...]:
    r"""Read the entry `names` of a YAML text: a list or a mapping from 0 on, in brackets or one a line.

    Raises:
        ValueError: There is no such entry, it has another form, or a name is empty, repeated or holds a sign that means
            something in YAML.

    Examples:
        >>> parse_names("nc: 2\nnames: [cat, 'hot dog']"), parse_names("names:\n  0: cat\n  1: dog\nnc: 2")
        (('cat', 'hot dog'), ('cat', 'dog'))
    """
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()]
    start = next((number for number, line in enumerate(lines) if re.match(r"names\s*:(\s|$)", line)), None)
    if start is None:
        raise ValueError("there must be an entry 'names', got none")
    inline = lines[start].split(":", 1)[1].strip()
    rest = lines[start + 1 :]
    names: list[str] = []
    for item in _bracketed(inline, rest) if inline else _listed(rest):
        match = _NAME.fullmatch(item)
        if match is None or match[1] not in (None, str(len(names))):
            raise ValueError(f"names must be plain or quoted, and numbered from 0 if at all, got {item!r}")
        names.append(next(group for group in match.groups()[1:] if group is not None))
    return _distinct(names)


def _bracketed(inline: str, rest: Sequence[str]) -> Iterator[str]:
    """Yield the items between brackets, which may span lines."""
    match = re.match(r"\[([^\[\]]*)\]|\{([^{}]*)\}", " ".join([inline, *rest]))
    if match is None:
        raise ValueError(f"names must be a list or a mapping from 0, got {inline!r}")
    yield from (item.strip() for item in (match[1] or match[2] or "").strip().removesuffix(",").split(","))


def _listed(rest: Sequence[str]) -> Iterator[str]:
    """Yield the items of the lines up to the next entry."""
    for line in filter(str.strip, rest):
        if not re.match(r"\s+\S|-\s", line):
            return
        yield line.strip().removeprefix("- ").strip()


def _one_a_line(text: str) -> tuple[str, ...]:
    return _distinct([line.strip() for line in text.rstrip().splitlines()])


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"names must be at least one, not empty and not repeated, got {list(names)}")
    return tuple(names)
