# SPDX-License-Identifier: Apache-2.0
"""What an exported file says about itself: all it takes to use it."""

import json
from typing import Any

from torch import Tensor, nn

from moe_vision import __version__
from moe_vision.models import YOLOMaster
from moe_vision.models.anchors import STRIDES
from moe_vision.models.config import variant_of
from moe_vision.runtime.runner import FORMAT

# Images go in as RGB of float32 in [0, 1]; a network that wants other numbers normalises them itself.
INPUT = {"layout": "NCHW", "color": "RGB", "range": [0, 1], "mean": [0, 0, 0], "std": [1, 1, 1], "letterbox": 114 / 255}


def metadata(module: nn.Module, example: Tensor, **form: Any) -> dict[str, str]:
    """Return keys and values, each but ``format`` and ``version`` as JSON.

    Args:
        module: The module.
        example: Images as it takes them.
        form: How it was exported.
    """
    about: dict[str, Any] = {**form, "input_size": list(example.shape[2:])}
    if isinstance(module, YOLOMaster):
        config = module.config
        about |= {"task": config.task, "class_names": module.class_names, "variant": variant_of(config)}
        about |= {"image_size": example.shape[2], "input": INPUT, "config": json.loads(config.to_json())}
        if config.task != "classify":
            about["strides"] = STRIDES
    return {"format": FORMAT, "version": __version__, **{key: json.dumps(value) for key, value in about.items()}}
