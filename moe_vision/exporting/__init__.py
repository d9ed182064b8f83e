# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX: every expert in the file, unselected ones do not run, checked before it is handed over."""

from moe_vision.exporting.exporter import export
from moe_vision.exporting.report import ExportReport
from moe_vision.exporting.suppression import Suppression

__all__ = ["ExportReport", "Suppression", "export"]
