# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with an export, and what it leaves behind."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE, create_model, export
from moe_vision.exporting import Suppression
from moe_vision.layers.convolution import ConvNormAct
from tests.strategies import make_layer

pytestmark = pytest.mark.export


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A file that was there before."""
    path = tmp_path / "net.onnx"
    path.write_bytes(b"earlier")
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"image_size": 100}, "image_size must be a multiple of 32, got 100"),
        ({"example": torch.rand(1, 3, 64, 100)}, "image_size must be a multiple of 32, got 100"),
        ({"example": torch.rand(3, 64, 64)}, r"example must be floats of shape \(B, C, H, W\)"),
        ({"example": torch.rand(1, 3, 64, 64), "image_size": 64}, "image_size must be None where example gives"),
        ({"sparse": "sparse"}, "sparse must be one of index, dense, got 'sparse'"),
        ({"suppress": Suppression(score=2)}, r"score must be in \[0, 1\], got 2"),
        ({"suppress": Suppression(max_detections=0)}, "max_detections must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], reason: str, earlier: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        export(create_model("yolo_master_n"), earlier, **settings)
    assert_untouched(earlier)


def test_suppression_needs_boxes(earlier: Path) -> None:
    for module in (ESMoE(8), create_model("yolo_master_n", task="classify")):
        with pytest.raises(ValueError, match="suppress must be None unless the module detects or segments"):
            export(module, earlier, suppress=Suppression())


def test_paths_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, error, reason in (
        ("net.pt", ValueError, "path must end in one of .onnx, .xml, .pt2, got net.pt"),
        ("none/net.onnx", FileNotFoundError, "path must lie in a folder that exists, but .*none does not"),
        ("folder.onnx", IsADirectoryError, "path must be a file, but .*folder.onnx is a folder"),
    ):
        with pytest.raises(error, match=reason):
            export(ESMoE(8), tmp_path / name)


def test_a_missing_extra_names_the_command() -> None:
    # A process where onnx can't be found, as if it had never been installed.
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'onnx' else find(name, *a)\n"
        "from moe_vision import ESMoE, export; export(ESMoE(8), 'layer.onnx')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "ModuleNotFoundError: onnx is not installed; pip install 'moe-vision[export]'" in done.stderr


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_an_operator_without_a_form_is_named_with_its_layer(earlier: Path) -> None:
    net = nn.Sequential(ConvNormAct(3, 4), nn.Sequential(Bessel()))
    with pytest.raises(ValueError, match=r"got aten.special_bessel_j0 in layer '1.0'"):
        export(net, earlier, example=torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"module can't be traced by torch.export: Could not guard on data"):
        export(Branching(), earlier, example=torch.rand(1, 3, 8, 8))
    small = nn.Sequential(nn.Conv2d(3, 4, 32, 32), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(ValueError, match=r"can't be traced .*; give an example of at least 64 x 64"):
        export(small, earlier, example=torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="module must return a tensor, or a tuple or dict of tensors, got str"):
        export(Returning("text"), earlier, example=torch.rand(1, 3, 8, 8))
    assert_untouched(earlier)


class Returning(nn.Module):
    def __init__(self, extra: object) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return x, self.extra


class Forgetful(nn.Module):
    """A network whose graph is not what it is in eager."""

    def __init__(self, lost: Callable[[ESMoE], None]) -> None:
        super().__init__()
        self.moe = make_layer(3)
        self.lost = lost

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            self.lost(self.moe)
        return self.moe(x)


def lose_an_expert(layer: ESMoE) -> None:
    layer.experts[2] = layer.experts[1]


def swap_experts(layer: ESMoE) -> None:
    layer.experts[2], layer.experts[3] = layer.experts[3], layer.experts[2]


def shift_the_router(layer: ESMoE) -> None:
    layer.router.fc2.bias = nn.Parameter(layer.router.fc2.bias + torch.tensor([1.0, 0, 0, 0]), requires_grad=False)


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (lose_an_expert, r"file must hold the weights of all experts, but it lacks moe.experts.2.conv_dw.weight"),
        (
            swap_experts,
            "output 'output' must be in ONNX Runtime what it is in eager, within 1e-04 of its largest value",
        ),
        (shift_the_router, "the router of 'moe' must give in ONNX Runtime what it gives in eager, got logits"),
    ],
)
def test_a_failed_check_leaves_no_file(lost: Callable[[ESMoE], None], reason: str, earlier: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        export(Forgetful(lost), earlier, example=torch.rand(1, 3, 8, 8))
    assert_untouched(earlier)


def test_an_interrupted_export_leaves_the_earlier_file(earlier: Path) -> None:
    class Interrupting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                raise KeyboardInterrupt
            return x

    with pytest.raises(KeyboardInterrupt):
        export(Interrupting(), earlier, example=torch.rand(1, 3, 8, 8))
    assert_untouched(earlier)
