# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX, OpenVINO and torch.export: every expert in the file, checked before it is handed over."""

from moe_vision.exporting.calibration import calibration_images
from moe_vision.exporting.exporter import export
from moe_vision.exporting.report import ExportReport
from moe_vision.exporting.suppression import Suppression

__all__ = ["ExportReport", "Suppression", "calibration_images", "export"]
