# SPDX-License-Identifier: Apache-2.0
"""Open the demo page of a built site in a browser and compare what it shows with what `Runner` finds.

    mkdocs build && python docs/scripts/check_demo.py site [--screenshots FOLDER]

Each sample picture, and one given as a visitor gives it: the same cells to half a pixel, the same experts. No
message of the browser, and no request to anywhere but the site. At two widths, light and dark, the page is no wider
than the window.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from browser import chromium, served
from PIL import Image
from playwright.sync_api import Browser, Page

from moe_vision.runtime import Runner
from moe_vision.runtime.images import read_pixels

PIXELS = 0.5
SCORE = 0.01
WIDTHS = (1280, 390)


def result_of(page: Page) -> dict[str, Any]:
    """Wait for the page to be done, and return what it found."""
    page.wait_for_selector(".demo:is([data-state=done], [data-state=failed])", timeout=60_000)
    status = page.inner_text(".demo-status")
    assert page.get_attribute(".demo", "data-state") == "done", status
    print(f"  {status}", flush=True)
    return page.evaluate("document.querySelector('.demo').found")


def expect_result(page: Page) -> None:
    """Have `result_of` wait for what comes next, and not take what the page still shows for it."""
    page.evaluate("document.querySelector('.demo').dataset.state = 'waiting'")


def compare(found: dict[str, Any], picture: Path, runner: Runner, page: Page) -> None:
    """Raise AssertionError where the page differs from the runner, or shows something else than it found."""
    (expected,) = runner.predict(picture)
    cells = found["cells"]
    assert len(cells) == len(expected["boxes"]) > 3, (len(cells), len(expected["boxes"]))
    boxes, scores, labels = (np.array([list_of(cell[name]) for cell in cells]) for name in ("box", "score", "label"))
    # Rounding may change the order of cells that score alike: each is compared with the nearest of its label.
    distances = np.abs(boxes[:, None] - expected["boxes"]).max(axis=2) + 1e6 * (labels[:, None] != expected["labels"])
    nearest = distances.argmin(axis=1)
    assert sorted(nearest) == list(range(len(cells)))
    assert distances.min(axis=1).max() < PIXELS, distances.min(axis=1)
    assert np.abs(scores - expected["scores"][nearest]).max() < SCORE

    outputs = runner.run(runner._prepare(read_pixels(picture), runner.image_size))
    logits = [value[0] for name, value in outputs.items() if name.startswith("routing.")]
    top_k = runner.metadata["config"]["top_k"]
    chosen = [sorted(np.argsort(-values, kind="stable")[:top_k].tolist()) for values in logits]
    shown = [
        [index for index, cell in enumerate(row.query_selector_all("td")) if "✓" in cell.inner_text()]
        for row in page.query_selector_all(".demo-blocks tr")
    ]
    assert shown == chosen, (shown, chosen)
    counts = [int(item.split()[0]) for item in page.locator(".demo-counts span").all_inner_texts()]
    assert counts == np.bincount(expected["labels"], minlength=len(counts)).tolist()
    largest = distances.min(axis=1).max()
    print(f"  {picture.name}: {len(cells)} cells within {largest:.2f} pixels, experts {chosen}", flush=True)


def list_of(value: Any) -> Any:
    """Return a value of the page as Python's: arrays of a type come as dicts."""
    return list(value.values()) if isinstance(value, dict) else value


def check_results(browser: Browser, address: str, site: Path, other: Path) -> None:
    folder = site / "assets" / "demo"
    runner = Runner(folder / "cells.onnx")
    page = browser.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}/demo/")
    result_of(page)
    for number, name in enumerate(("few", "some", "many")):
        expect_result(page)
        page.locator(".demo-samples button").nth(number).click()
        compare(result_of(page), folder / f"{name}.jpg", runner, page)
    expect_result(page)
    page.set_input_files(".demo-file", other)
    compare(result_of(page), other, runner, page)
    page.set_input_files(".demo-file", site / "index.html")
    page.wait_for_selector(".demo[data-state=failed]")
    assert "can't read this file as a picture" in page.inner_text(".demo-status")
    assert not messages, messages
    outside = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert len(requests) > 10, requests
    assert not outside, outside
    page.close()


def check_layout(browser: Browser, address: str, screenshots: Path | None) -> None:
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(f"{address}/demo/")
            result_of(page)
            needed = page.evaluate("document.documentElement.scrollWidth")
            assert needed <= width, (needed, width)
            if screenshots is not None:
                page.screenshot(path=screenshots / f"demo-{width}-{scheme}.png", full_page=True)
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder that mkdocs built")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the page")
    options = parser.parse_args()
    other = options.site / "portrait.png"  # a picture of another shape and format than the samples
    Image.open(options.site / "assets" / "demo" / "many.jpg").crop((90, 0, 390, 480)).save(other)
    with chromium() as browser, served(options.site) as address:
        print("Chromium", browser.version)
        check_results(browser, address, options.site, other)
        check_layout(browser, address, options.screenshots)
    print("The demo page finds what Runner finds.")


if __name__ == "__main__":
    main()
