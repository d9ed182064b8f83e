# SPDX-License-Identifier: Apache-2.0
"""Check every page of the built site: links and anchors, nothing fetched from elsewhere, formulas, and the search.

    mkdocs build && python docs/scripts/check_site.py site

What takes a browser is in check_pages.py.
"""

import json
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Elements whose address a browser fetches by itself, and the links among them.
FETCHED = {"img": "src", "script": "src", "source": "src", "iframe": "src", "video": "src", "link": "href"}
ADDRESS_IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(https?://|//)""")
RAW_FORMULA = re.compile(r"\$\$|\\frac|\\sum|```math")


@dataclass
class Page(HTMLParser):
    """What a page refers to, what can be referred to in it, and its text outside of code."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    code: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if address := values.get(FETCHED.get(tag, ""), ""):
            self.fetched.append(address)
        self.code += tag in ("pre", "code", "script", "style", "annotation")

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag in ("pre", "code", "script", "style", "annotation")

    def handle_data(self, data: str) -> None:
        if not self.code:
            self.text.append(data)


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    problems = [f"{site}: no page"] if not pages else []
    for path, page in pages.items():
        problems += [f"{path.relative_to(site)}: {problem}" for problem in check_page(page, pages, site)]
    problems += check_styles(site) + check_search(pages, site)
    for problem in problems:
        print(problem, file=sys.stderr)
    links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {links} links, {len(problems)} problems")
    return 1 if problems else 0


def check_page(page: Page, pages: dict[Path, Page], site: Path) -> list[str]:
    """Return what is wrong with a page."""
    problems = [f"link to {link}: {why}" for link in page.links if (why := broken(link, page.path, pages, site))]
    for address in page.fetched:
        if is_elsewhere(address):
            problems.append(f"fetches {address} from another host")
        elif why := broken(address, page.path, pages, site):
            problems.append(f"fetches {address}: {why}")
    return problems + [f"unrendered formula: {text.strip()}" for text in page.text if RAW_FORMULA.search(text)]


def broken(link: str, start: Path, pages: dict[Path, Page], site: Path) -> str:
    """Say why a link within the site leads nowhere; empty if it leads somewhere, or out."""
    parts = urlsplit(link)
    if is_elsewhere(link) or parts.scheme in ("mailto", "data"):
        return ""
    path = unquote(parts.path)
    target = site / path.lstrip("/") if path.startswith("/") else (start.parent / path if path else start)
    target = target.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "no such file"
    # A fragment of an asset is a note to the style sheet; "__" begins what the theme's script handles.
    anchor = unquote(parts.fragment)
    if target in pages and anchor and not anchor.startswith("__") and anchor not in pages[target].anchors:
        return "no such anchor"
    return ""


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def check_styles(site: Path) -> list[str]:
    """Return the style sheets that fetch from another host."""
    sheets = sorted(site.rglob("*.css"))
    return [f"{sheet.relative_to(site)}: fetches from another host" for sheet in sheets if _leaves(sheet)]


def _leaves(sheet: Path) -> bool:
    return ADDRESS_IN_STYLE.search(sheet.read_text(encoding="utf-8")) is not None


def check_search(pages: dict[Path, Page], site: Path) -> list[str]:
    """Return what is wrong with the index of the search: every place exists, and `ESMoE` is found."""
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    places, home = [entry["location"] for entry in entries], site / "index.html"
    problems = [f"search: {place}: {why}" for place in places if (why := broken(place, home, pages, site))]
    if not any("ESMoE" in entry["title"] for entry in entries):
        problems.append("search: no entry is titled ESMoE")
    return problems


if __name__ == "__main__":
    sys.exit(main())
