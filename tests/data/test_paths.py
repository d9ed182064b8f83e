# SPDX-License-Identifier: Apache-2.0
import pytest

from moe_vision.data.readers.paths import printable, stays_inside

from .checks import ESCAPES


@pytest.mark.parametrize("name", [*ESCAPES, "..", "\\\\host\\share\\a.png", "/", "a\\..\\..\\b"])
def test_names_that_lead_out(name: str) -> None:
    assert not stays_inside(name)


@pytest.mark.parametrize("name", ["a.png", "deep/a b.png", "..a.png", "a..b/c", "", "caf\u00e9"])
def test_names_that_stay(name: str) -> None:
    assert stays_inside(name)


def test_printable_leaves_all_but_broken_bytes() -> None:
    assert printable("caf\u00e9 \u732b") == "caf\u00e9 \u732b"
    assert printable("caf\udce9 \ud800") == "caf? ?"
