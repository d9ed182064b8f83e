# SPDX-License-Identifier: Apache-2.0
"""The public names: none goes unnoticed, each is documented, with an example, shapes and a place in the reference."""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import pytest

SURFACE: dict[str, list[str]] = json.loads(Path(__file__).with_name("api_surface.json").read_text())
REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
# What types are called, and what readers look like to others.
TYPES = {"ClassificationSource", "DetectionSource", "ImageLike", "Sample", "Target"}
INTERNAL = {"moe_vision.models.official"}  # part of moe_vision.models
RELEASED = sorted((Path(__file__).parent / "fixtures").glob("api-*.json"))  # of each version, as it was then
NAMES = [(module, name) for module, names in SURFACE.items() for name in names if name not in TYPES]


@pytest.mark.parametrize("module", SURFACE)
def test_no_name_comes_or_goes_unnoticed(module: str) -> None:
    public = sorted(import_module(module).__all__)
    assert public == SURFACE[module], f"update tests/api_surface.json and CHANGELOG.md with what changed in {module}"


def lost(released: dict[str, list[str]], now: dict[str, list[str]], deprecated: set[str]) -> set[str]:
    """Names of a version that are gone without having been deprecated."""
    gone = {f"{module}.{name}" for module, names in released.items() for name in set(names) - set(now.get(module, []))}
    return gone - deprecated


def deprecated() -> set[str]:
    """First column of the table of deprecations: names with their modules, in backquotes."""
    return set(re.findall(r"^\| `([\w.]+)` \|", (REFERENCE / "deprecations.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("version", RELEASED, ids=lambda path: path.stem)
def test_a_name_goes_only_through_a_deprecation(version: Path) -> None:
    assert not lost(json.loads(version.read_text()), SURFACE, deprecated())


def test_a_lost_name_is_seen() -> None:
    released = {"moe_vision.data": ["mixup", "mosaic"], "moe_vision.gone": ["thing"]}
    now = {"moe_vision.data": ["mosaic"]}
    assert lost(released, now, set()) == {"moe_vision.data.mixup", "moe_vision.gone.thing"}
    assert lost(released, now, {"moe_vision.data.mixup"}) == {"moe_vision.gone.thing"}


def test_every_package_with_public_names_is_recorded() -> None:
    files = (Path(__file__).parent.parent / "moe_vision").glob("**/__init__.py")
    packages = {".".join(path.parent.parts[path.parts.index("moe_vision") :]): path for path in files}
    public = {name for name, path in packages.items() if "__all__" in path.read_text() and name not in INTERNAL}
    assert public == set(SURFACE)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_has_a_docstring_with_an_example(module: str, name: str) -> None:
    documentation = inspect.getdoc(getattr(import_module(module), name)) or ""
    assert "\nExample" in documentation
    assert ">>> " in documentation


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_that_takes_tensors_says_their_shapes(module: str, name: str) -> None:
    thing = getattr(import_module(module), name)
    calls = [thing.__init__, getattr(thing, "forward", None)] if inspect.isclass(thing) else [thing]
    if any("Tensor" in str(inspect.signature(call)) for call in calls if call is not None):
        assert "\nShape:" in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("module", SURFACE)
def test_every_name_has_a_place_in_the_reference(module: str) -> None:
    text = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    entries = [path.rpartition(".") for path in re.findall(r"^::: ([\w.]+)", text, re.MULTILINE)]
    shown = [getattr(import_module(of), name) for of, _, name in entries]
    for name in SURFACE[module]:
        thing = getattr(import_module(module), name)
        assert any(thing is one for one in shown) or (name in TYPES and f"`{name}`" in text), f"add {name} to a page"


@pytest.mark.parametrize("module", SURFACE)
def test_names_show_in_dir(module: str) -> None:
    assert set(SURFACE[module]) <= set(dir(import_module(module)))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'moe_vision' has no attribute 'nonsense'"):
        import_module("moe_vision").nonsense  # noqa: B018
