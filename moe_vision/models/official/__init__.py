# SPDX-License-Identifier: Apache-2.0
"""Released weights become our networks. A file is data here: nothing that it names is imported or called."""

from moe_vision.models.official.convert import load_official
from moe_vision.models.official.report import ConversionReport

__all__ = ["ConversionReport", "load_official"]
