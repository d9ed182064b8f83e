# SPDX-License-Identifier: Apache-2.0
"""Changes that make a sound file a hostile one, and the check that a reader takes them as it should."""

import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.borders import Border

Draw = Callable[[int], int]  # n -> a whole number in [0, n)

NUMBER = re.compile(rb"-?\d+(\.\d+)?")
NUMBERS = (
    b"nan", b"NaN", b"-inf", b"Infinity", b"1e999", b"1e308", b"-1", b"0", b"0.0", b"1e9", b"1000000000",
    b"9223372036854775808", b"9" * 5000, b"null", b"true", b'"1"', b"[]", b"{}",
)  # fmt: skip
PIECES = (
    *NUMBERS, b"../../etc/passwd", b"/etc/passwd", b"C:\\x", b"\\\\host\\x", b"\0", b"\xff\xfe", b"\xed\xa0\x80",
    b"\\ud800",
    b'"', b",", b"\n", b" ", b"[" * 2000, b'{"a":' * 2000, b"<a>" * 2000, b"<!DOCTYPE a [<!ENTITY b 'cc'>]>", b"&b;",
    b"<![CDATA[",
    b"<object>", b"a,b,cell", b'"id": 7, ', b'"image_id": 1e400, ', b"hf-hub:x/y", b'"pretrained": true, ',
    b'"checkpoint_path": "x.pt", ', b'"backbone": "hf-hub:x/y", ', b'"reg_max": 1000000000, ', b'"width": 1e30, ',
    b"cos\nsystem\n", b"\x8c\x05posix\x8c\x06system\x93", b"R", b"b", b".", b"\x81", b"(", b"\x85", b"h\x00",
    b"r\xff\xff\xff\xff",
    b"Exif\0\0II*\0", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"IDAT", b"eXIf",
)  # fmt: skip


def changed(sound: bytes, draw: Draw) -> bytes:
    """Change a content in one to three places."""
    content = sound
    for _ in range(1 + draw(3)):
        if not content:
            break
        start = draw(len(content))
        end = min(len(content), start + 1 + draw(1 + draw(64)))
        numbers = [match.span() for match in NUMBER.finditer(content[:4000])]
        action = draw(6)
        if action == 0:
            content = content[:start] + bytes([content[start] ^ 1 << draw(8)]) + content[start + 1 :]
        elif action == 1:
            content = content[:start] + content[end:]
        elif action == 2:
            content = content[:end] + content[start:end] * draw(50) + content[end:]
        elif action == 3:
            content = content[:start] + PIECES[draw(len(PIECES))] + content[start:]
        elif action == 4 and numbers:
            left, right = numbers[draw(len(numbers))]
            content = content[:left] + NUMBERS[draw(len(NUMBERS))] + content[right:]
        else:
            content = content[:start] + PIECES[draw(len(PIECES))] + content[end:]
    return content


class Outcome(NamedTuple):
    """How a reader took a content.

    Attributes:
        kind: "read", "read with reports", the name of the error, or "FAILED" with what should not have happened.
        seconds: How long it took.
        mebibytes: By how much the memory of the process grew at its highest.
    """

    kind: str
    seconds: float
    mebibytes: float


def outcome(border: Border, folder: Path, content: bytes) -> Outcome:
    """Let a border read a content; no file may come or go in its folder and around it."""
    before, memory, start = _files(folder), _peak(), time.perf_counter()
    try:
        result: Any = border.refuses_well(folder, content)
        kind = type(result).__name__ if isinstance(result, Exception) else "read with reports" if result else "read"
    except Exception as error:
        kind = f"FAILED {type(error).__name__}: {str(error)[:200]}"
    seconds, growth = time.perf_counter() - start, _peak() - memory
    if _files(folder) != before:
        kind = "FAILED: files came or went"
    return Outcome(kind, seconds, growth)


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """List what is beside the folder of a border and in it."""
    return sorted(os.listdir(folder.parent)), sorted(os.listdir(folder))  # noqa: PTH208 (100,000 times)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
