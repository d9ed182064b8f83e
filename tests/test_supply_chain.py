# SPDX-License-Identifier: Apache-2.0
"""What comes with an installation: licences that ours goes with, and lowest versions that are named."""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The LGPL and the MPL let a program under any licence use the library as it is; the GPL and AGPL extend to the program.
COPYLEFT = re.compile(r"affero general public|gnu general public|\bA?GPL", re.IGNORECASE)
GCC_EXCEPTION = re.compile(r"GPL-3\.0[\w-]* WITH GCC-exception", re.IGNORECASE)  # of its runtime libraries: any use


def needed(requirement: Requirement, seen: dict[str, Distribution]) -> dict[str, Distribution]:
    """Collect what installing a package brings, itself included, and check that what is installed satisfies it."""
    found = distribution(requirement.name)
    assert requirement.specifier.contains(found.version, prereleases=True), f"{found.version} must be {requirement}"
    seen[canonicalize_name(requirement.name)] = found
    for wanted in map(Requirement, found.requires or []):
        extras = [{"extra": extra} for extra in ("", *requirement.extras)]
        asked = wanted.marker is None or any(map(wanted.marker.evaluate, extras))
        if asked and (wanted.extras or canonicalize_name(wanted.name) not in seen):
            needed(wanted, seen)
    return seen


def licences(package: Distribution) -> Iterator[str]:
    """Everything that the metadata says of a licence; some packages put its whole text there."""
    for field in ("License-Expression", "License"):
        yield GCC_EXCEPTION.sub("", package.metadata.get(field) or "")
    yield from (text for text in package.metadata.get_all("Classifier") or [] if text.startswith("License ::"))


@pytest.fixture(scope="module")
def packages() -> dict[str, Distribution]:
    return needed(Requirement("moe-vision"), {})


def test_nothing_under_the_gpl_comes_along(packages: dict[str, Distribution]) -> None:
    assert {"torch", "torchvision", "timm", "numpy", "safetensors"} <= packages.keys()
    found = {name: text for name, package in packages.items() for text in licences(package) if COPYLEFT.search(text)}
    assert not found


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("AGPL-3.0-only", True),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("GPL-2.0-or-later", True),
        ("LGPL-2.1-only", False),
        ("License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MPL-2.0 AND MIT", False),
        ("Apache-2.0", False),
    ],
)
def test_licences_are_told_apart(text: str, copyleft: bool) -> None:
    assert bool(COPYLEFT.search(text)) == copyleft


def test_every_requirement_has_a_lowest_version(packages: dict[str, Distribution]) -> None:
    requirements = [Requirement(text) for text in packages["moe-vision"].requires or []]
    core = [requirement for requirement in requirements if requirement.marker is None]
    assert {"torch", "torchvision", "timm", "pillow"} <= {requirement.name for requirement in core}
    assert all([part.operator for part in requirement.specifier] == [">="] for requirement in core)
