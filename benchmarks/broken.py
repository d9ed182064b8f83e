# SPDX-License-Identifier: Apache-2.0
"""Break the code on purpose, one line at a time, and see the check that guards it fail.

broken.toml names what is broken, and the check: a test, or a command. Each is tried on a copy of the repository, and
must fail there. The results, with the first error of each, are in benchmarks/results/broken.json.

    python benchmarks/broken.py [--only WORDS] [--new]
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from measure import RESULTS, merge_row

ROOT = Path(__file__).parent.parent
COPIED = ("moe_vision", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "mkdocs.yml")
PYTEST = ("-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", "slow or not slow")
# What no longer bounds its memory ends with an error, and what waits without end is ended.
MEMORY, SECONDS = 14 * 2**30, 600


def try_one(change: dict[str, str], copy: Path) -> dict[str, Any]:
    """Break the copy, run the check there, and mend it again."""
    path, text = copy / change["file"], None
    if "sound" in change:
        text = path.read_text()
        if (count := text.count(change["sound"])) != 1:
            raise ValueError(f"{change['sound']!r} must occur once in {change['file']}, got {count}")
        path.write_text(text.replace(change["sound"], change["broken"]))
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(change["broken"])
    start = time.perf_counter()
    try:
        failed, error = run(change["check"], copy)
    finally:
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    return {**change, "failed": failed, "error": error, "seconds": round(time.perf_counter() - start, 1)}


def run(check: str, copy: Path) -> tuple[bool, str]:
    """Return whether a check failed in the copy, and its first error."""
    command = check.split(" ") if check.startswith("benchmarks/") else [*PYTEST, *check.split(" ")]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )
    except subprocess.TimeoutExpired:
        return True, f"it did not end within {SECONDS} s"
    if done.returncode in (2, 3, 4, 5) and "-m" in command:
        raise ValueError(f"{check} can't be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    errors = re.findall(r"^(?:E  +|\w*Error: |.*Timeout).*", done.stdout + done.stderr, re.MULTILINE)
    return done.returncode != 0, errors[0].removeprefix("E").strip()[:200] if errors else f"exit {done.returncode}"


def seen(change: dict[str, str]) -> bool:
    """Tell whether this check has been seen to fail."""
    path = RESULTS / "broken.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return any(row["failed"] and change.items() <= row.items() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="those whose description has these words")
    parser.add_argument("--new", action="store_true", help="those that have not been seen to fail")
    options = parser.parse_args()
    changes = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["broken"]
    changes = [change for change in changes if options.only in change["what"]]
    if options.new:
        changes = [change for change in changes if not seen(change)]
    unseen = []
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy_of = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy_of(ROOT / name, Path(folder, name))
        for change in changes:
            row = try_one(change, Path(folder))
            merge_row("broken", row, key=("what",))
            print("failed" if row["failed"] else "NOT SEEN", row["what"], row["error"], sep=" | ", flush=True)
            unseen += [] if row["failed"] else [row["what"]]
    if unseen:
        sys.exit(f"{len(unseen)} checks passed although the code was broken")


if __name__ == "__main__":
    main()
