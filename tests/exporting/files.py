# SPDX-License-Identifier: Apache-2.0
"""What the tests of exported files share."""

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from moe_vision import ESMoE
from moe_vision.exporting import ExportReport


def run(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values = session.run(None, {"images": images.numpy()})
    return {one.name: torch.from_numpy(value) for one, value in zip(session.get_outputs(), values, strict=True)}


def alive(model: nn.Module) -> nn.Module:
    """Give routers and norms such values that images choose differently, and that every residual branch counts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # it starts at 0 at the end of a residual branch
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, ESMoE) and hasattr(module.router, "fc2"):
            nn.init.normal_(module.router.fc2.weight)
    return model.eval()


def assert_every_expert_checked(report: ExportReport, top_k: int | None = None) -> None:
    assert report.blocks
    for block in report.blocks:
        assert min(block.images) > 0
        assert top_k in (None, block.top_k)
    assert {run.routing for run in report.comparisons} == {"chosen", "forced"}
    assert {run.shape[0] for run in report.comparisons} == {1, 5}
    assert len({run.shape[2:] for run in report.comparisons}) == 2
    assert all(run.images > 0 and 0 <= run.error <= report.tolerance for run in report.comparisons)
