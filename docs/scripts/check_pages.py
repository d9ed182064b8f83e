# SPDX-License-Identifier: Apache-2.0
"""Open every page of a built site in a browser, wide and narrow; some of them dark too.

    mkdocs build && python docs/scripts/check_pages.py site [--screenshots FOLDER]

A page may not scroll sideways, complain, miss a file or ask another host for one; formulas and pictures take up room;
and who types ESMoE into the search finds its place in the reference. What takes no browser is in check_site.py.
"""

import argparse
import sys
from pathlib import Path
from typing import Literal

from browser import chromium, served
from playwright.sync_api import Browser

WIDTHS = (1280, 390)
DARK = ("", "tutorials/first-moe-layer/", "reference/layers/", "benchmarks/", "explanation/es-moe/")
MEASURE = """() => ({
    "pixels wider than the window": document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth,
    "formulas without room": [...document.querySelectorAll("math")].filter(one => one.offsetWidth < 5
        && one.getBoundingClientRect().width < 5).length,
    "broken pictures": [...document.images].filter(one => one.complete && one.naturalWidth === 0).length,
})"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of some pages")
    options = parser.parse_args()
    paths = sorted(str(page.parent.relative_to(options.site)) for page in options.site.rglob("index.html"))
    places = ["" if path == "." else f"{path}/" for path in paths]
    problems = [] if places else ["no page"]
    with served(options.site) as address, chromium() as browser:
        for scheme, shown in (("light", places), ("dark", DARK)):
            for place in shown:
                problems += check_page(browser, f"{address}/", place, scheme, options.screenshots)
        problems += check_search(browser, address)
    print("\n".join(problems), file=sys.stderr)
    print(f"{len(places)} pages at {WIDTHS} pixels, {len(DARK)} of them also dark: {len(problems)} problems")
    return bool(problems)


def check_page(
    browser: Browser, address: str, place: str, scheme: Literal["light", "dark"], screenshots: Path | None
) -> list[str]:
    """Return what is wrong with a page."""
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900}, color_scheme=scheme)
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url) if is_elsewhere(request.url, address) else None)
    page.on("requestfailed", lambda request: found.append(f"{request.url} failed"))
    page.on("response", lambda answer: found.append(f"{answer.url}: {answer.status}") if answer.status >= 400 else None)
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.goto(address + place, wait_until="load")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found += [f"{value} {what} at {width}" for what, value in page.evaluate(MEASURE).items() if value > 0]
        if screenshots is not None and place in DARK:
            name = place.strip("/").replace("/", "-") or "home"
            page.screenshot(path=screenshots / f"{name}-{width}-{scheme}.png", full_page=True)
    page.close()
    return [f"{place or 'home'}, {scheme}: {problem}" for problem in found]


def is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", f"blob:{address}"))


def check_search(browser: Browser, address: str) -> list[str]:
    """Type ESMoE into the search as a reader would, and return what is wrong with the answer."""
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.goto(address)
    page.locator("input.md-search__input").fill("ESMoE")
    hits = page.locator(".md-search-result__link")
    hits.first.wait_for(timeout=30_000)
    found = [str(hit.get_attribute("href")) for hit in hits.all()]
    page.close()
    return [] if any("reference/layers/" in link for link in found) else [f"search for ESMoE gives {found}"]


if __name__ == "__main__":
    sys.exit(main())
