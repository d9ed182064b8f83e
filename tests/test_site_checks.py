# SPDX-License-Identifier: Apache-2.0
"""The check of the built documentation finds what it is there to find."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "scripts" / "check_site.py"
GOOD = '<h1 id="top">A</h1><a href="#top">here</a><a href="b/#end">there</a><a href="https://example.org">out</a>'


def check(site: Path, home: str, entry: str = "b/#end") -> tuple[int, str]:
    """Write a site of two pages, and return the exit code of its check and what that complains of."""
    for path, text in {"index.html": home, "b/index.html": '<p id="end">B</p>'}.items():
        (site / path).parent.mkdir(exist_ok=True)
        (site / path).write_text(text)
    (site / "search").mkdir()
    (site / "search/search_index.json").write_text(json.dumps({"docs": [{"location": entry, "title": "ESMoE"}]}))
    done = subprocess.run([sys.executable, SCRIPT, site], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_site_without_problems(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD) == (0, "")


@pytest.mark.parametrize(
    ("flaw", "complaint"),
    [
        ('<a href="c/">c</a>', "index.html: link to c/: no such file"),
        ('<a href="b/#middle">b</a>', "index.html: link to b/#middle: no such anchor"),
        ('<img src="https://example.org/a.png">', "index.html: fetches https://example.org/a.png from another host"),
        ('<script src="gone.js"></script>', "index.html: fetches gone.js: no such file"),
        (r"<p>$$\frac{1}{2}$$</p>", r"index.html: unrendered formula: $$\frac{1}{2}$$"),
    ],
)
def test_a_flaw_is_named(tmp_path: Path, flaw: str, complaint: str) -> None:
    assert check(tmp_path, GOOD + flaw) == (1, complaint + "\n")


def test_the_search_leads_somewhere(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD, entry="b/#gone") == (1, "search: b/#gone: no such anchor\n")
