# SPDX-License-Identifier: Apache-2.0
"""Open every page of the built site in headless Chromium, wide and narrow, light and dark.

    pip install playwright  # and `playwright install chromium`, where there is no chromium on the path
    mkdocs build --strict --site-dir SITE && python docs/check_in_browser.py SITE [--pictures DIR]

A page may not scroll sideways, complain, miss a file or ask another host for one; formulas take up room; and who types
ESMoE into the search finds its place in the reference.
"""

import argparse
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 390)
PICTURED = ("", "tutorials/first-moe-layer/", "reference/layers/", "benchmarks/", "explanation/es-moe/")
MEASURE = """() => ({
    sideways: document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth,
    formulas: [...document.querySelectorAll("math")].filter(one => one.getBoundingClientRect().width < 5).length,
    pictures: [...document.images].filter(one => one.complete && one.naturalWidth === 0).length,
})"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves the site without a line for each request."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder, and give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for pictures of some pages")
    options = parser.parse_args()
    paths = sorted(str(page.parent.relative_to(options.site)) for page in options.site.rglob("index.html"))
    places = ["" if path == "." else f"{path}/" for path in paths]
    problems: list[str] = []
    with served(options.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, shown in (("light", places), ("dark", PICTURED)):
            for place in shown:
                problems += check_page(browser, address, place, scheme, options.pictures)
        problems += check_search(browser, address)
        browser.close()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(places)} pages at {WIDTHS} pixels, {len(PICTURED)} of them also dark: {len(problems)} problems")
    return 1 if problems or not places else 0


def check_page(
    browser: Browser, address: str, place: str, scheme: Literal["light", "dark"], pictures: Path | None
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
        found += [f"{what} {value} at {width}" for what, value in page.evaluate(MEASURE).items() if value > 0]
        if pictures is not None and place in PICTURED:
            pictures.mkdir(parents=True, exist_ok=True)
            name = place.strip("/").replace("/", "-") or "home"
            page.screenshot(path=pictures / f"{name}-{width}-{scheme}.png", full_page=True)
    page.close()
    return [f"{place or 'home'}, {scheme}: {problem}" for problem in found]


def is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", f"blob:{address}"))


def check_search(browser: Browser, address: str) -> list[str]:
    """Type ESMoE into the search as a reader would, and return what is wrong with the answer."""
    page: Page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.locator("input.md-search__input").fill("ESMoE")
    hits = page.locator(".md-search-result__link")
    hits.first.wait_for(timeout=10_000)
    found = [str(hit.get_attribute("href")) for hit in hits.all()]
    page.close()
    return [] if any("reference/layers/" in link for link in found) else [f"search for ESMoE gives {found}"]


if __name__ == "__main__":
    sys.exit(main())
