# SPDX-License-Identifier: Apache-2.0
"""Swapped models on disk: what does not fit is refused, with a word about why."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from moe_vision import load_swapped, swap
from moe_vision.surgery import SwapRecipe, save_swapped
from tests.strategies import assert_same
from tests.surgery.families import images


@pytest.fixture(scope="module")
def swapped() -> tuple[nn.Module, SwapRecipe]:
    model = timm.create_model("test_convnext", num_classes=5, in_chans=1).eval()
    x = images(1)[:, :1]
    return model, swap(model, kernel_sizes=(7, 7, 9, 11), stages=[3], example=x).recipe


def test_timm_builds_it_without_being_told(swapped: tuple[nn.Module, SwapRecipe], tmp_path: Path) -> None:
    model, recipe = swapped
    save_swapped(model, tmp_path / "new" / "folder", recipe)
    again = load_swapped(tmp_path / "new" / "folder")
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(images(2)[:, :1]), model(images(2)[:, :1]))


def test_half_precision_stays(tmp_path: Path) -> None:
    model = timm.create_model("test_convnext", dtype=torch.bfloat16).eval()
    save_swapped(model, tmp_path, swap(model, example=images(1).bfloat16()).recipe)
    again = load_swapped(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert_same(again(images(1).bfloat16()), model(images(1).bfloat16()))


def test_arguments_that_do_not_build_it(swapped: tuple[nn.Module, SwapRecipe], tmp_path: Path) -> None:
    model, recipe = swapped
    with pytest.raises(
        ValueError, match=r"must build the model, but 3 tensors differ, the first 'head.fc.bias': \(7,\)"
    ):
        save_swapped(model, tmp_path, recipe, arguments={"model_name": "test_convnext", "num_classes": 7})
    assert list(tmp_path.iterdir()) == []


def test_damaged_files(swapped: tuple[nn.Module, SwapRecipe], tmp_path: Path) -> None:
    save_swapped(*_first(swapped, tmp_path))
    record = json.loads((tmp_path / "swap.json").read_text())
    (tmp_path / "swap.json").write_text(json.dumps({**record, "format": "else"}))
    with pytest.raises(ValueError, match="must hold a swapped model: format must be 'moe_vision-swap-1', got 'else'"):
        load_swapped(tmp_path)
    (tmp_path / "swap.json").write_text(json.dumps({name: record[name] for name in ("format", "recipe")}))
    with pytest.raises(ValueError, match="must hold a swapped model: 'arguments'"):
        load_swapped(tmp_path)
    (tmp_path / "swap.json").write_text(json.dumps({**record, "arguments": {}}))
    with pytest.raises(ValueError, match="model must be given"):
        load_swapped(tmp_path)
    other = timm.create_model("test_convnext", num_classes=6, in_chans=1)
    with pytest.raises(ValueError, match="must be those of the model, but 2 tensors differ"):
        load_swapped(tmp_path, other)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must hold a swapped model"):
        load_swapped(tmp_path)


def _first(swapped: tuple[nn.Module, SwapRecipe], folder: Path) -> tuple[nn.Module, Path, SwapRecipe]:
    return swapped[0], folder, swapped[1]
